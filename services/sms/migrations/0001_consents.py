"""Who wants no text messages: the consent of each number, and the ledger of how it came to be; and the job queue."""

from alembic import op

from services.runtime.migrations import create_job_tables, keep_for_service

revision = "0001"
down_revision = None

_CONSENTS = """
create table consents (
  phone_number text constraint consents_pkey primary key,
  is_opted_out boolean not null default false,
  epoch integer not null default 0,
  source text constraint consents_source_check check (source in ('keyword', 'user', 'provider')),
  change_time timestamptz,
  constraint consents_change_check check ((source is null) = (change_time is null)),
  constraint consents_opted_out_check check (not is_opted_out or source is not null)
)
"""
_OPTED_OUT = "create index consents_opted_out_idx on consents (change_time desc, phone_number desc) where is_opted_out"
_EVENTS = """
create table consent_events (
  id uuid default uuidv7() constraint consent_events_pkey primary key,
  phone_number text not null,
  change text not null constraint consent_events_change_check check (change in ('stop', 'start', 'help')),
  source text not null constraint consent_events_source_check check (source in ('keyword', 'user', 'provider')),
  epoch integer not null,
  provider_message_id text,
  create_time timestamptz not null default now()
)
"""
_EVENTS_OF_NUMBER = "create index consent_events_number_idx on consent_events (phone_number, create_time)"
# A ledger is written and read.
_KEEP_EVENTS = """
create function keep_consent_events() returns trigger language plpgsql as $$
begin
  raise exception 'the ledger of consent is never changed' using errcode = 'check_violation',
    constraint = 'consent_events_ledger_check';
end
$$
"""
_KEEPING = (
    "create trigger consent_events_ledger before update or delete on consent_events"
    " for each row execute function keep_consent_events()"
)


def upgrade() -> None:
    for statement in (_CONSENTS, _OPTED_OUT, _EVENTS, _EVENTS_OF_NUMBER, _KEEP_EVENTS, _KEEPING):
        op.execute(statement)
    # A number is nobody's here: what its owner said holds whoever that is.
    keep_for_service("consents")
    keep_for_service("consent_events")
    create_job_tables()
