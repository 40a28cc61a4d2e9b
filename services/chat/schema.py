"""The tables of chat.

Owns the shape of conversations, messages and generations and what may stand in them. Invariants: a message's sequence is
unique in its conversation, among the versions that were not superseded; a conversation has at most one running generation; a
request id names one turn of a user, and its attempts are counted; a generation has one owner, and its epoch grows whenever
that changes. Every row carries its user, by whom row-level security confines it. The tables of tasks, MCP servers and usage
stand with their own code.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from services.runtime.purging import purged_users_table

metadata = sa.MetaData()
purged_users = purged_users_table(metadata)

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
    # Whether the model was asked for a title: once, after the first turn that ended well.
    sa.Column("is_title_asked", sa.Boolean, nullable=False, server_default=sa.false()),
    # What a search finds the title by, kept by a trigger; null in rows from before.
    sa.Column("words", pg.TSVECTOR),
    # The message that was last written anew, and its revision: memory may still hold what it replaced.
    sa.Column("rewritten_sequence", sa.Integer, nullable=False, server_default="0"),
    sa.Column("rewritten_revision", sa.Integer, nullable=False, server_default="0"),
    # `spoken` and `texted`: made of utterances and texts, which go on with the latest of them.
    sa.Column("kind", sa.Text, nullable=False, server_default="written"),
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
    sa.CheckConstraint("kind in ('written', 'spoken', 'texted')", name="conversations_kind_check"),
    sa.CheckConstraint("(request_id is null) = (request_digest is null)", name="conversations_request_check"),
    sa.UniqueConstraint("id", "user_id", name="conversations_id_user_key"),
    # For administrators, who see those of all users.
    sa.Index("conversations_latest_idx", sa.text("latest_time desc"), sa.text("id desc")),
    sa.Index("conversations_user_latest_idx", "user_id", sa.text("latest_time desc"), sa.text("id desc")),
    sa.Index(REQUEST_INDEX, "user_id", "request_id", unique=True, postgresql_where=sa.text("request_id is not null")),
)

# What memory has yet to be told of: from which message on, and when somebody else may tell it.
unrecorded_turns = sa.Table(
    "unrecorded_turns",
    metadata,
    sa.Column("conversation_id", sa.Uuid(as_uuid=False), primary_key=True),
    sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
    sa.Column("first_sequence", sa.Integer, nullable=False),
    sa.Column("due_time", sa.TIMESTAMP(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(
        ["conversation_id", "user_id"],
        ["conversations.id", "conversations.user_id"],
        ondelete="CASCADE",
        name="unrecorded_turns_conversation_fkey",
    ),
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
    # What a reply is made of, where that is more than text; see records.Part.
    sa.Column("parts", pg.JSONB, nullable=False, server_default=sa.text("'[]'::jsonb")),
    sa.Column("citations", pg.JSONB, nullable=False, server_default=sa.text("'[]'::jsonb")),
    sa.Column("version", sa.Integer, nullable=False, server_default="1"),
    # When a later version took its place.
    sa.Column("supersede_time", sa.TIMESTAMP(timezone=True)),
    # What a search finds it by, kept by a trigger; null in rows from before.
    sa.Column("words", pg.TSVECTOR),
    # The memories that the model was given for a reply; their texts are memory's.
    sa.Column("memory_ids", pg.ARRAY(sa.Uuid(as_uuid=False)), nullable=False, server_default=sa.text("'{}'::uuid[]")),
    _time("create_time"),
    sa.ForeignKeyConstraint(
        ["conversation_id", "user_id"],
        ["conversations.id", "conversations.user_id"],
        ondelete="CASCADE",
        name="messages_conversation_fkey",
    ),
    sa.UniqueConstraint("conversation_id", "sequence", "version", name="messages_conversation_version_key"),
    # The user first: so it also finds the latest messages of a user.
    sa.UniqueConstraint("user_id", "id", name="messages_user_id_key"),
    # The history of a user: what they said, by time.
    sa.Index(
        "messages_user_said_idx",
        "user_id",
        sa.text("create_time desc"),
        sa.text("id desc"),
        postgresql_where=sa.text("role = 'user' and supersede_time is null"),
    ),
    sa.CheckConstraint("version >= 1", name="messages_version_check"),
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
    sa.Index(
        "messages_conversation_sequence_key",
        "conversation_id",
        "sequence",
        unique=True,
        postgresql_where=sa.text("supersede_time is null"),
    ),
)

# The images of the user's messages, apart from them, so that lists do not carry the data.
message_images = sa.Table(
    "message_images",
    metadata,
    _id(),
    sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
    sa.Column("message_id", sa.Uuid(as_uuid=False), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("url", sa.Text),
    sa.Column("media_type", sa.Text),
    sa.Column("data", sa.LargeBinary),
    sa.ForeignKeyConstraint(
        ["message_id", "user_id"],
        ["messages.id", "messages.user_id"],
        ondelete="CASCADE",
        name="message_images_message_fkey",
    ),
    sa.UniqueConstraint("message_id", "position", name="message_images_message_position_key"),
    sa.CheckConstraint("num_nonnulls(url, data) = 1", name="message_images_content_check"),
    sa.CheckConstraint("(data is null) = (media_type is null)", name="message_images_media_type_check"),
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
    # Grows with each take-over: what writes under an older one is refused, in the database and in the log.
    sa.Column("epoch", sa.Integer, nullable=False, server_default="1"),
    sa.Column("is_cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("degraded", pg.ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'::text[]")),
    sa.Column("reason", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("error_metadata", pg.JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
    sa.Column("retry_delay_seconds", sa.Float),
    # How the reply is to be written (options.ReplyOptions without secrets), for whoever takes it over.
    sa.Column("options", pg.JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
    # The secrets of the options, encrypted; forgotten at the end.
    sa.Column("sealed_secrets", sa.LargeBinary),
    # The provider's items of the rounds that are over, for the next round; and the response that the last of them came from.
    sa.Column("items", pg.JSONB, nullable=False, server_default=sa.text("'[]'::jsonb")),
    sa.Column("items_response_id", sa.Text),
    # What those rounds cost together; null where the provider does not say.
    sa.Column("items_usage", pg.JSONB),
    # Responses that the provider keeps for us, to be deleted there.
    sa.Column("provider_response_ids", pg.ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'::text[]")),
    # The events as they were told, in order: the length of a text, or 0 for the next of `other_events`, which holds them as
    # serialized CompletionEvents. The terminal one is made from the row. Null while it runs.
    sa.Column("event_lengths", pg.ARRAY(sa.Integer)),
    sa.Column("other_events", pg.ARRAY(sa.LargeBinary)),
    sa.Column("last_sequence", sa.Integer, nullable=False, server_default="0"),
    # What it had written, once the next attempt at the same reply took its place in the message.
    sa.Column("superseded_text", sa.Text),
    _time("create_time"),
    sa.Column("end_time", sa.TIMESTAMP(timezone=True)),
    sa.ForeignKeyConstraint(
        ["conversation_id", "user_id"],
        ["conversations.id", "conversations.user_id"],
        ondelete="CASCADE",
        name="generations_conversation_fkey",
    ),
    sa.UniqueConstraint("user_id", "request_id", "attempt", name=ATTEMPT_CONSTRAINT),
    sa.UniqueConstraint("id", "user_id", name="generations_id_user_key"),
    sa.CheckConstraint("attempt >= 1", name="generations_attempt_check"),
    sa.CheckConstraint("epoch >= 1", name="generations_epoch_check"),
    sa.CheckConstraint("status in ('running', 'completed', 'failed', 'cancelled')", name="generations_status_check"),
    sa.CheckConstraint("(status = 'running') = (end_time is null)", name="generations_end_time_check"),
    sa.CheckConstraint("(status = 'failed') = (reason is not null)", name="generations_reason_check"),
    sa.CheckConstraint("(reason is null) = (error is null)", name="generations_error_check"),
    sa.Index(RUNNING_INDEX, "conversation_id", unique=True, postgresql_where=sa.text("status = 'running'")),
    sa.Index("generations_lease_idx", "lease_expire_time", postgresql_where=sa.text("status = 'running'")),
    # For whatever deletes conversations: the cascade, too, looks for what refers to each.
    sa.Index("generations_conversation_idx", "conversation_id"),
)

# What the model called, written before the tool runs and once more with its result: a call runs once, whoever runs it.
tool_calls = sa.Table(
    "tool_calls",
    metadata,
    sa.Column("generation_id", sa.Uuid(as_uuid=False), primary_key=True),
    sa.Column("call_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
    sa.Column("tool", sa.Text, nullable=False),
    sa.Column("server_label", sa.Text, nullable=False, server_default=""),
    sa.Column("arguments", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="running"),
    sa.Column("result", sa.Text, nullable=False, server_default=""),
    sa.Column("error", sa.Text, nullable=False, server_default=""),
    _time("create_time"),
    sa.Column("end_time", sa.TIMESTAMP(timezone=True)),
    sa.ForeignKeyConstraint(
        ["generation_id", "user_id"],
        ["generations.id", "generations.user_id"],
        ondelete="CASCADE",
        name="tool_calls_generation_fkey",
    ),
    sa.CheckConstraint("status in ('running', 'succeeded', 'failed', 'approval_required')", name="tool_calls_status_check"),
    sa.CheckConstraint("(status = 'running') = (end_time is null)", name="tool_calls_end_time_check"),
)
