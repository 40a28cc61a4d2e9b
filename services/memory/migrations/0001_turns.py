"""Conversations and their turns, what was edited out of them, and the evictions that Redis has not confirmed."""

import sqlalchemy as sa
from alembic import op

from services.runtime.migrations import isolate_by_user

revision = "0001"
down_revision = None


def upgrade() -> None:
    _create_conversations()
    _create_turns()
    _create_forgotten_turns()
    _create_pending_evictions()
    for table in ("conversations", "turns", "forgotten_turns", "pending_evictions"):
        isolate_by_user(table)


def _id(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.Uuid, nullable=False)


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now())


def _of_conversation(name: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["user_id", "conversation_id"], ["conversations.user_id", "conversations.conversation_id"], name=name
    )


def _create_conversations() -> None:
    op.create_table(
        "conversations",
        _id("user_id"),
        _id("conversation_id"),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("last_sequence", sa.Integer, nullable=False, server_default="0"),
        sa.Column("deleted_at", sa.TIMESTAMP(timezone=True)),
        _time("create_time"),
        sa.PrimaryKeyConstraint("user_id", "conversation_id", name="conversations_pkey"),
        sa.CheckConstraint("last_sequence >= 0", name="conversations_last_sequence_check"),
        sa.CheckConstraint("deleted_at is null or last_sequence = 0", name="conversations_deleted_check"),
    )


def _create_turns() -> None:
    op.create_table(
        "turns",
        _id("user_id"),
        _id("conversation_id"),
        sa.Column("sequence", sa.Integer, nullable=False),
        _id("message_id"),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("token_count", sa.Integer, nullable=False),
        sa.Column("create_time", sa.TIMESTAMP(timezone=True), nullable=False),
        _time("record_time"),
        sa.PrimaryKeyConstraint("user_id", "conversation_id", "sequence", name="turns_pkey"),
        _of_conversation("turns_conversation_fkey"),
        sa.UniqueConstraint("user_id", "message_id", name="turns_user_message_key"),
        sa.CheckConstraint("sequence >= 1", name="turns_sequence_check"),
        sa.CheckConstraint("role in ('user', 'assistant')", name="turns_role_check"),
        sa.CheckConstraint("revision >= 0", name="turns_revision_check"),
        sa.CheckConstraint("token_count >= 0", name="turns_token_count_check"),
    )


def _create_forgotten_turns() -> None:
    op.create_table(
        "forgotten_turns",
        _id("user_id"),
        _id("conversation_id"),
        _id("message_id"),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "conversation_id", "message_id", name="forgotten_turns_pkey"),
        _of_conversation("forgotten_turns_conversation_fkey"),
    )


def _create_pending_evictions() -> None:
    op.create_table(
        "pending_evictions",
        _id("user_id"),
        _id("conversation_id"),
        sa.Column("version", sa.BigInteger, nullable=False),
        _time("create_time"),
        sa.PrimaryKeyConstraint("user_id", "conversation_id", name="pending_evictions_pkey"),
    )
