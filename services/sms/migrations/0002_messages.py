"""Text messages, what keeps them from those who want none, and what keeps the things of users from outliving them."""

from alembic import op

from services.runtime.migrations import isolate_by_user, keep_for_service

revision = "0002"
down_revision = "0001"

_MESSAGES = """
create table messages (
  id uuid default uuidv7() constraint messages_pkey primary key,
  user_id uuid,
  direction text not null constraint messages_direction_check check (direction in ('inbound', 'outbound')),
  kind text not null,
  phone_number text not null,
  text text not null,
  segments integer not null default 1,
  encoding text not null default 'gsm7' constraint messages_encoding_check check (encoding in ('gsm7', 'ucs2')),
  status text not null,
  answer text,
  error_code text not null default '',
  provider_message_id text,
  in_reply_to uuid constraint messages_reply_fkey references messages (id) on delete cascade,
  conversation_id uuid,
  consent_epoch integer,
  request_id text,
  request_digest bytea,
  attempts integer not null default 0,
  claim_time timestamptz,
  create_time timestamptz not null default now(),
  update_time timestamptz not null default now(),
  constraint messages_kind_check check (case direction
    when 'inbound' then kind in ('text', 'stop', 'start', 'help')
    else kind in ('text', 'reply', 'confirmation', 'help', 'code') end),
  constraint messages_status_check check (case direction
    when 'inbound' then status = 'received'
    else status in ('queued', 'sending', 'sent', 'delivered', 'undelivered', 'failed', 'blocked', 'unknown') end),
  constraint messages_answer_check check ((direction = 'inbound') = (answer is not null)),
  constraint messages_answer_word_check check (answer in ('pending', 'answered', 'not_wanted', 'opted_out', 'too_late',
    'failed', 'keyword', 'unmatched', 'no_text', 'limited')),
  constraint messages_code_check check (kind <> 'code' or text = ''),
  constraint messages_confirmation_check check ((kind = 'confirmation') = (consent_epoch is not null)),
  constraint messages_provider_check check (direction = 'outbound' or provider_message_id is not null),
  constraint messages_request_check check ((request_id is null) = (request_digest is null)),
  constraint messages_claim_check check (status <> 'sending' or claim_time is not null)
)
"""
_PROVIDER_KEY = (
    "create unique index messages_provider_message_key on messages (provider_message_id)"
    " where provider_message_id is not null"
)
_INDEXES = (
    _PROVIDER_KEY,
    "create unique index messages_reply_key on messages (in_reply_to) where in_reply_to is not null",
    "create unique index messages_confirmation_key on messages (phone_number, consent_epoch) where kind = 'confirmation'",
    "create unique index messages_user_request_key on messages (user_id, request_id) where request_id is not null",
    "create index messages_user_time_idx on messages (user_id, create_time desc, id desc)",
    "create index messages_number_time_idx on messages (phone_number, create_time desc)",
    "create index messages_sending_idx on messages (claim_time) where status = 'sending'",
    "create index messages_unmatched_idx on messages (create_time) where user_id is null",
)
# A send is claimed by becoming `sending`, from `queued` and from nothing else. The claim holds the number's consent until
# it commits, as a stop does: whichever commits first is seen by the other. The confirmation of the stop that holds is let
# through.
_GUARD_CLAIM = """
create function guard_claim() returns trigger language plpgsql as $$
declare
  consent consents%rowtype;
begin
  if tg_op = 'INSERT' or old.status <> 'queued' then
    raise exception 'only what is queued can be claimed' using errcode = 'check_violation',
      constraint = 'messages_queued_check';
  end if;
  insert into consents (phone_number) values (new.phone_number) on conflict do nothing;
  select * into strict consent from consents where phone_number = new.phone_number for update;
  if consent.is_opted_out and not (new.kind = 'confirmation' and new.consent_epoch = consent.epoch) then
    raise exception 'the owner of the number wants no text messages' using errcode = 'check_violation',
      constraint = 'messages_consent_check';
  end if;
  return new;
end
$$
"""
_GUARDING_CLAIM = (
    "create trigger messages_claim before insert or update of status on messages"
    " for each row when (new.status = 'sending') execute function guard_claim()"
)
# Else one could be claimed, and then be for somebody else.
_GUARD_ADDRESS = """
create function guard_address() returns trigger language plpgsql as $$
begin
  raise exception 'whom a message is for, and what it is, never changes' using errcode = 'check_violation',
    constraint = 'messages_address_check';
end
$$
"""
_GUARDING_ADDRESS = (
    "create trigger messages_address before update of phone_number, direction, kind, consent_epoch on messages"
    " for each row when ((old.phone_number, old.direction, old.kind, old.consent_epoch) is distinct from"
    " (new.phone_number, new.direction, new.kind, new.consent_epoch)) execute function guard_address()"
)
_SEEN_NUMBERS = """
create table seen_numbers (
  user_id uuid,
  phone_number text,
  seen_time timestamptz not null default now(),
  constraint seen_numbers_pkey primary key (user_id, phone_number)
)
"""
_PURGED_USERS = """
create table purged_users (
  user_id uuid constraint purged_users_pkey primary key,
  purge_time timestamptz not null default now()
)
"""
# Whoever stores something of a user shares the user's lock, and a purge has it alone: nothing slips past.
_GUARD_USER = """
create function guard_user() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock_shared(hashtextextended('parley user ' || new.user_id, 0));
  if exists (select from purged_users where user_id = new.user_id) then
    raise exception 'the user is gone' using errcode = 'check_violation', constraint = 'purged_users_check';
  end if;
  return new;
end
$$
"""


def guard_user(table: str) -> None:
    """Keeps a table from holding anything of users who were purged."""
    op.execute(
        f"create trigger {table}_user before insert or update of user_id on {table}"
        " for each row when (new.user_id is not null) execute function guard_user()"
    )


def upgrade() -> None:
    op.execute(_MESSAGES)
    for statement in (*_INDEXES, _GUARD_CLAIM, _GUARDING_CLAIM, _GUARD_ADDRESS, _GUARDING_ADDRESS):
        op.execute(statement)
    for statement in (_SEEN_NUMBERS, _PURGED_USERS, _GUARD_USER):
        op.execute(statement)
    isolate_by_user("messages")
    isolate_by_user("purged_users")
    keep_for_service("seen_numbers")
    guard_user("messages")
    guard_user("seen_numbers")
