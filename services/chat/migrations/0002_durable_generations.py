"""Generations that outlive their process, replies of parts, versions of messages, images, tool calls."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

from services.runtime.migrations import isolate_by_user

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _extend_conversations()
    _extend_messages()
    _extend_generations()
    _create_message_images()
    _create_tool_calls()
    for table in ("message_images", "tool_calls"):
        isolate_by_user(table)


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now())


def _extend_conversations() -> None:
    op.add_column("conversations", sa.Column("kind", sa.Text, nullable=False, server_default="written"))
    op.create_check_constraint("conversations_kind_check", "conversations", "kind in ('written', 'spoken')")


def _extend_messages() -> None:
    for name in ("parts", "citations"):
        op.add_column("messages", sa.Column(name, pg.JSONB, nullable=False, server_default=sa.text("'[]'::jsonb")))
    op.add_column("messages", sa.Column("version", sa.Integer, nullable=False, server_default="1"))
    op.add_column("messages", sa.Column("supersede_time", sa.TIMESTAMP(timezone=True)))
    op.create_check_constraint("messages_version_check", "messages", "version >= 1")
    op.drop_constraint("messages_conversation_sequence_key", "messages")
    op.create_unique_constraint("messages_conversation_version_key", "messages", ["conversation_id", "sequence", "version"])
    # The user first: so it also finds the latest messages of a user.
    op.create_unique_constraint("messages_user_id_key", "messages", ["user_id", "id"])
    op.create_index(
        "messages_conversation_sequence_key",
        "messages",
        ["conversation_id", "sequence"],
        unique=True,
        postgresql_where=sa.text("supersede_time is null"),
    )


def _extend_generations() -> None:
    for column in (
        sa.Column("epoch", sa.Integer, nullable=False, server_default="1"),
        sa.Column("is_cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("options", pg.JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("sealed_secrets", sa.LargeBinary),
        sa.Column("items", pg.JSONB, nullable=False, server_default=sa.text("'[]'::jsonb")),
        sa.Column("items_response_id", sa.Text),
        sa.Column("items_usage", pg.JSONB),
        sa.Column("provider_response_ids", pg.ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'::text[]")),
        sa.Column("event_lengths", pg.ARRAY(sa.Integer)),
        sa.Column("other_events", pg.ARRAY(sa.LargeBinary)),
        sa.Column("last_sequence", sa.Integer, nullable=False, server_default="0"),
        sa.Column("superseded_text", sa.Text),
    ):
        op.add_column("generations", column)
    op.create_check_constraint("generations_epoch_check", "generations", "epoch >= 1")
    op.create_unique_constraint("generations_id_user_key", "generations", ["id", "user_id"])


def _create_message_images() -> None:
    op.create_table(
        "message_images",
        sa.Column("id", sa.Uuid, primary_key=True, server_default=sa.text("uuidv7()")),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("message_id", sa.Uuid, nullable=False),
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


def _create_tool_calls() -> None:
    op.create_table(
        "tool_calls",
        sa.Column("generation_id", sa.Uuid, primary_key=True),
        sa.Column("call_id", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Uuid, nullable=False),
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
        sa.CheckConstraint(
            "status in ('running', 'succeeded', 'failed', 'approval_required')", name="tool_calls_status_check"
        ),
        sa.CheckConstraint("(status = 'running') = (end_time is null)", name="tool_calls_end_time_check"),
    )
