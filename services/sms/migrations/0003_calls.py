"""Calls, and decisions about texts."""

from alembic import op

from services.runtime.migrations import isolate_by_user

revision = "0003"
down_revision = "0002"

_CALLS = """
create table calls (
  id uuid default uuidv7() constraint calls_pkey primary key,
  user_id uuid,
  direction text not null constraint calls_direction_check check (direction in ('inbound', 'outbound')),
  phone_number text not null,
  status text not null constraint calls_status_check check (status in ('queued', 'ringing', 'in_progress', 'completed',
    'busy', 'no_answer', 'canceled', 'failed')),
  start_time timestamptz not null,
  duration_seconds integer not null default 0 constraint calls_duration_check check (duration_seconds >= 0),
  summary text not null default '',
  provider_call_id text,
  request_id text,
  request_digest bytea,
  create_time timestamptz not null default now(),
  update_time timestamptz not null default now(),
  constraint calls_user_check check (user_id is not null or provider_call_id is not null),
  constraint calls_request_check check ((request_id is null) = (request_digest is null))
)
"""
_DECISIONS = """
create table decisions (
  id uuid default uuidv7() constraint decisions_pkey primary key,
  user_id uuid not null,
  input_text text not null,
  is_yes boolean not null,
  reply text not null,
  reason text not null,
  confidence double precision not null constraint decisions_confidence_check check (confidence between 0 and 1),
  model text not null,
  request_id text,
  request_digest bytea,
  create_time timestamptz not null default now(),
  constraint decisions_reply_check check (is_yes or reply = ''),
  constraint decisions_request_check check ((request_id is null) = (request_digest is null))
)
"""
_INDEXES = (
    "create unique index calls_provider_call_key on calls (provider_call_id) where provider_call_id is not null",
    "create unique index calls_user_request_key on calls (user_id, request_id) where request_id is not null",
    "create index calls_user_time_idx on calls (user_id, start_time desc, id desc)",
    "create index calls_unmatched_idx on calls (create_time) where user_id is null",
    "create unique index decisions_user_request_key on decisions (user_id, request_id) where request_id is not null",
    "create index decisions_user_time_idx on decisions (user_id, create_time desc, id desc)",
)


def upgrade() -> None:
    for statement in (_CALLS, _DECISIONS, *_INDEXES):
        op.execute(statement)
    for table in ("calls", "decisions"):
        isolate_by_user(table)
        op.execute(
            f"create trigger {table}_user before insert or update of user_id on {table}"
            " for each row when (new.user_id is not null) execute function guard_user()"
        )
