"""The tables of sms.

Owns their shape and what may stand in them. Invariants: a provider's message or call is one row; an inbound text has one
reply; a number has one consent row, and each change of it one confirmation; the triggers of migration 0002 let no row become
`sending` whose receiver wants none. Rows of a user are confined to the user; consent is the number's, and names no user.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

metadata = sa.MetaData()

CONSENT_GUARD: Final = "messages_consent_check"
PURGE_GUARD: Final = "purged_users_check"
REQUEST_KEY: Final = "messages_user_request_key"


def _id() -> sa.Column[str]:
    return sa.Column("id", sa.Uuid(as_uuid=False), primary_key=True, server_default=sa.text("uuidv7()"))


def _user() -> sa.Column[str]:
    return sa.Column("user_id", sa.Uuid(as_uuid=False))


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now())


consents = sa.Table(
    "consents",
    metadata,
    sa.Column("phone_number", sa.Text, primary_key=True),
    sa.Column("is_opted_out", sa.Boolean, nullable=False, server_default=sa.false()),
    # Grows with every change: a confirmation is of one of them.
    sa.Column("epoch", sa.Integer, nullable=False, server_default="0"),
    sa.Column("source", sa.Text),
    sa.Column("change_time", sa.TIMESTAMP(timezone=True)),
    sa.CheckConstraint("source in ('keyword', 'user', 'provider')", name="consents_source_check"),
    sa.CheckConstraint("(source is null) = (change_time is null)", name="consents_change_check"),
    sa.CheckConstraint("not is_opted_out or source is not null", name="consents_opted_out_check"),
    sa.Index(
        "consents_opted_out_idx",
        sa.text("change_time desc"),
        sa.text("phone_number desc"),
        postgresql_where=sa.text("is_opted_out"),
    ),
)

# The ledger itself: what was said and done, never changed.
consent_events = sa.Table(
    "consent_events",
    metadata,
    _id(),
    sa.Column("phone_number", sa.Text, nullable=False),
    sa.Column("change", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    # Of the consent after it.
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("provider_message_id", sa.Text),
    _time("create_time"),
    sa.CheckConstraint("change in ('stop', 'start', 'help')", name="consent_events_change_check"),
    sa.CheckConstraint("source in ('keyword', 'user', 'provider')", name="consent_events_source_check"),
    sa.Index("consent_events_number_idx", "phone_number", "create_time"),
)

messages = sa.Table(
    "messages",
    metadata,
    _id(),
    # Null while, or because, nobody has verified the number.
    _user(),
    sa.Column("direction", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("phone_number", sa.Text, nullable=False),
    # Of a verification code nothing: it stands only where it is being sent.
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("segments", sa.Integer, nullable=False, server_default="1"),
    sa.Column("encoding", sa.Text, nullable=False, server_default="gsm7"),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("answer", sa.Text),
    sa.Column("error_code", sa.Text, nullable=False, server_default=""),
    sa.Column("provider_message_id", sa.Text),
    sa.Column("in_reply_to", sa.Uuid(as_uuid=False)),
    sa.Column("conversation_id", sa.Uuid(as_uuid=False)),
    # Of a confirmation: the change that it confirms.
    sa.Column("consent_epoch", sa.Integer),
    sa.Column("request_id", sa.Text),
    sa.Column("request_digest", sa.LargeBinary),
    # How often it was given to the provider, and when last.
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("claim_time", sa.TIMESTAMP(timezone=True)),
    _time("create_time"),
    _time("update_time"),
    sa.ForeignKeyConstraint(["in_reply_to"], ["messages.id"], name="messages_reply_fkey", ondelete="CASCADE"),
    sa.CheckConstraint("direction in ('inbound', 'outbound')", name="messages_direction_check"),
    sa.CheckConstraint(
        "case direction when 'inbound' then kind in ('text', 'stop', 'start', 'help')"
        " else kind in ('text', 'reply', 'confirmation', 'help', 'code') end",
        name="messages_kind_check",
    ),
    sa.CheckConstraint(
        "case direction when 'inbound' then status = 'received' else status in"
        " ('queued', 'sending', 'sent', 'delivered', 'undelivered', 'failed', 'blocked', 'unknown') end",
        name="messages_status_check",
    ),
    sa.CheckConstraint("(direction = 'inbound') = (answer is not null)", name="messages_answer_check"),
    sa.CheckConstraint(
        "answer in ('pending', 'answered', 'not_wanted', 'opted_out', 'too_late', 'failed', 'keyword', 'unmatched',"
        " 'no_text', 'limited')",
        name="messages_answer_word_check",
    ),
    sa.CheckConstraint("encoding in ('gsm7', 'ucs2')", name="messages_encoding_check"),
    sa.CheckConstraint("kind <> 'code' or text = ''", name="messages_code_check"),
    sa.CheckConstraint("(kind = 'confirmation') = (consent_epoch is not null)", name="messages_confirmation_check"),
    sa.CheckConstraint("direction = 'outbound' or provider_message_id is not null", name="messages_provider_check"),
    sa.CheckConstraint("(request_id is null) = (request_digest is null)", name="messages_request_check"),
    sa.CheckConstraint("status <> 'sending' or claim_time is not null", name="messages_claim_check"),
    sa.Index(
        "messages_provider_message_key",
        "provider_message_id",
        unique=True,
        postgresql_where=sa.text("provider_message_id is not null"),
    ),
    sa.Index("messages_reply_key", "in_reply_to", unique=True, postgresql_where=sa.text("in_reply_to is not null")),
    sa.Index(
        "messages_confirmation_key",
        "phone_number",
        "consent_epoch",
        unique=True,
        postgresql_where=sa.text("kind = 'confirmation'"),
    ),
    sa.Index(REQUEST_KEY, "user_id", "request_id", unique=True, postgresql_where=sa.text("request_id is not null")),
    # The lists of a user, and how many a user was sent of late.
    sa.Index("messages_user_time_idx", "user_id", sa.text("create_time desc"), sa.text("id desc")),
    # How many a number was sent of late; what is told of a number that is nobody's.
    sa.Index("messages_number_time_idx", "phone_number", sa.text("create_time desc")),
    sa.Index("messages_sending_idx", "claim_time", postgresql_where=sa.text("status = 'sending'")),
    sa.Index("messages_unmatched_idx", "create_time", postgresql_where=sa.text("user_id is null")),
)

# Numbers that were a user's at some time, as far as it was seen here. Whose a number is now says auth.
seen_numbers = sa.Table(
    "seen_numbers",
    metadata,
    sa.Column("user_id", sa.Uuid(as_uuid=False), primary_key=True),
    sa.Column("phone_number", sa.Text, primary_key=True),
    _time("seen_time"),
)

decisions = sa.Table(
    "decisions",
    metadata,
    _id(),
    sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
    sa.Column("input_text", sa.Text, nullable=False),
    sa.Column("is_yes", sa.Boolean, nullable=False),
    sa.Column("reply", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("confidence", pg.DOUBLE_PRECISION, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text),
    sa.Column("request_digest", sa.LargeBinary),
    _time("create_time"),
    sa.CheckConstraint("confidence between 0 and 1", name="decisions_confidence_check"),
    sa.CheckConstraint("is_yes or reply = ''", name="decisions_reply_check"),
    sa.CheckConstraint("(request_id is null) = (request_digest is null)", name="decisions_request_check"),
    sa.Index(
        "decisions_user_request_key",
        "user_id",
        "request_id",
        unique=True,
        postgresql_where=sa.text("request_id is not null"),
    ),
    sa.Index("decisions_user_time_idx", "user_id", sa.text("create_time desc"), sa.text("id desc")),
)

calls = sa.Table(
    "calls",
    metadata,
    _id(),
    # Null while, or because, nobody has verified the number.
    _user(),
    sa.Column("direction", sa.Text, nullable=False),
    sa.Column("phone_number", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("start_time", sa.TIMESTAMP(timezone=True), nullable=False),
    sa.Column("duration_seconds", sa.Integer, nullable=False, server_default="0"),
    sa.Column("summary", sa.Text, nullable=False, server_default=""),
    sa.Column("provider_call_id", sa.Text),
    sa.Column("request_id", sa.Text),
    sa.Column("request_digest", sa.LargeBinary),
    _time("create_time"),
    _time("update_time"),
    sa.CheckConstraint("direction in ('inbound', 'outbound')", name="calls_direction_check"),
    sa.CheckConstraint(
        "status in ('queued', 'ringing', 'in_progress', 'completed', 'busy', 'no_answer', 'canceled', 'failed')",
        name="calls_status_check",
    ),
    sa.CheckConstraint("duration_seconds >= 0", name="calls_duration_check"),
    sa.CheckConstraint("user_id is not null or provider_call_id is not null", name="calls_user_check"),
    sa.CheckConstraint("(request_id is null) = (request_digest is null)", name="calls_request_check"),
    sa.Index(
        "calls_provider_call_key", "provider_call_id", unique=True, postgresql_where=sa.text("provider_call_id is not null")
    ),
    sa.Index(
        "calls_user_request_key", "user_id", "request_id", unique=True, postgresql_where=sa.text("request_id is not null")
    ),
    sa.Index("calls_user_time_idx", "user_id", sa.text("start_time desc"), sa.text("id desc")),
    sa.Index("calls_unmatched_idx", "create_time", postgresql_where=sa.text("user_id is null")),
)

# Who was purged of late: what is under way for them is not stored any more.
purged_users = sa.Table(
    "purged_users",
    metadata,
    sa.Column("user_id", sa.Uuid(as_uuid=False), primary_key=True),
    _time("purge_time"),
)
