"""The tables of chat.

Owns the shape of conversations, messages and generations and what may stand in them. Invariants: a message's sequence is
unique in its conversation; a conversation has at most one running generation; a request id names one turn of a user, and its
attempts are counted. Every row carries its user, by whom row-level security confines it.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

metadata = sa.MetaData()

RUNNING_INDEX: Final = "generations_running_conversation_key"
ATTEMPT_CONSTRAINT: Final = "generations_user_request_attempt_key"
REQUEST_INDEX: Final = "conversations_user_request_key"


def _id() -> sa.Column[str]:
    return sa.Column("id", sa.Uuid(as_uuid=False), primary_key=True, server_default=sa.text("uuidv7()"))


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now())


conversations = sa.Table(
    "conversations",
    metadata,
    _id(),
    sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
    sa.Column("title", sa.Text, nullable=False, server_default=""),
    sa.Column("is_titled_by_user", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("message_count", sa.Integer, nullable=False, server_default="0"),
    # The reply that was last written anew, and its revision: memory may still hold what it replaced.
    sa.Column("rewritten_sequence", sa.Integer, nullable=False, server_default="0"),
    sa.Column("rewritten_revision", sa.Integer, nullable=False, server_default="0"),
    sa.Column("request_id", sa.Text),
    sa.Column("request_digest", sa.LargeBinary),
    sa.Column("last_message_time", sa.TIMESTAMP(timezone=True)),
    _time("create_time"),
    _time("update_time"),
    # What the list is sorted by.
    sa.Column(
        "latest_time",
        sa.TIMESTAMP(timezone=True),
        sa.Computed("coalesce(last_message_time, create_time)", persisted=True),
        nullable=False,
    ),
    sa.CheckConstraint("char_length(title) <= 200", name="conversations_title_check"),
    sa.CheckConstraint("message_count >= 0", name="conversations_message_count_check"),
    sa.CheckConstraint("(request_id is null) = (request_digest is null)", name="conversations_request_check"),
    sa.UniqueConstraint("id", "user_id", name="conversations_id_user_key"),
    sa.Index("conversations_user_latest_idx", "user_id", sa.text("latest_time desc"), sa.text("id desc")),
    sa.Index(REQUEST_INDEX, "user_id", "request_id", unique=True, postgresql_where=sa.text("request_id is not null")),
)

messages = sa.Table(
    "messages",
    metadata,
    _id(),
    sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
    sa.Column("conversation_id", sa.Uuid(as_uuid=False), nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="complete"),
    sa.Column("incomplete_reason", sa.Text),
    sa.Column("model", sa.Text),
    sa.Column("generation_id", sa.Uuid(as_uuid=False)),
    sa.Column("revision", sa.Integer, nullable=False, server_default="0"),
    sa.Column("input_tokens", sa.Integer),
    sa.Column("cached_tokens", sa.Integer),
    sa.Column("output_tokens", sa.Integer),
    sa.Column("reasoning_tokens", sa.Integer),
    sa.Column("time_to_first_token_ms", sa.Integer),
    sa.Column("processing_time_ms", sa.Integer),
    sa.Column("metadata", pg.JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
    _time("create_time"),
    sa.ForeignKeyConstraint(
        ["conversation_id", "user_id"],
        ["conversations.id", "conversations.user_id"],
        ondelete="CASCADE",
        name="messages_conversation_fkey",
    ),
    sa.UniqueConstraint("conversation_id", "sequence", name="messages_conversation_sequence_key"),
    sa.CheckConstraint("sequence >= 1", name="messages_sequence_check"),
    sa.CheckConstraint("role in ('user', 'assistant')", name="messages_role_check"),
    sa.CheckConstraint("status in ('generating', 'complete', 'incomplete')", name="messages_status_check"),
    sa.CheckConstraint("role = 'assistant' or status = 'complete'", name="messages_user_status_check"),
    sa.CheckConstraint("role = 'assistant' or generation_id is null", name="messages_user_generation_check"),
    sa.CheckConstraint("status <> 'generating' or generation_id is not null", name="messages_generating_check"),
    sa.CheckConstraint("(status = 'incomplete') = (incomplete_reason is not null)", name="messages_incomplete_reason_check"),
    sa.CheckConstraint(
        "num_nulls(input_tokens, cached_tokens, output_tokens, reasoning_tokens) in (0, 4)", name="messages_usage_check"
    ),
    sa.CheckConstraint("num_nulls(time_to_first_token_ms, processing_time_ms) in (0, 2)", name="messages_timings_check"),
)

generations = sa.Table(
    "generations",
    metadata,
    _id(),
    sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
    sa.Column("conversation_id", sa.Uuid(as_uuid=False), nullable=False),
    sa.Column("user_message_id", sa.Uuid(as_uuid=False), nullable=False),
    sa.Column("reply_message_id", sa.Uuid(as_uuid=False), nullable=False),
    sa.Column("request_id", sa.Text),
    sa.Column("request_digest", sa.LargeBinary, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, server_default="1"),
    sa.Column("status", sa.Text, nullable=False, server_default="running"),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("lease_expire_time", sa.TIMESTAMP(timezone=True), nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("degraded", pg.ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'::text[]")),
    sa.Column("reason", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("error_metadata", pg.JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
    sa.Column("retry_delay_seconds", sa.Float),
    _time("create_time"),
    sa.Column("end_time", sa.TIMESTAMP(timezone=True)),
    sa.ForeignKeyConstraint(
        ["conversation_id", "user_id"],
        ["conversations.id", "conversations.user_id"],
        ondelete="CASCADE",
        name="generations_conversation_fkey",
    ),
    sa.UniqueConstraint("user_id", "request_id", "attempt", name=ATTEMPT_CONSTRAINT),
    sa.CheckConstraint("attempt >= 1", name="generations_attempt_check"),
    sa.CheckConstraint("status in ('running', 'completed', 'failed', 'cancelled')", name="generations_status_check"),
    sa.CheckConstraint("(status = 'running') = (end_time is null)", name="generations_end_time_check"),
    sa.CheckConstraint("(status = 'failed') = (reason is not null)", name="generations_reason_check"),
    sa.CheckConstraint("(reason is null) = (error is null)", name="generations_error_check"),
    sa.Index(RUNNING_INDEX, "conversation_id", unique=True, postgresql_where=sa.text("status = 'running'")),
    sa.Index("generations_lease_idx", "lease_expire_time", postgresql_where=sa.text("status = 'running'")),
)
