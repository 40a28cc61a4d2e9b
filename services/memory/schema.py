"""The tables of memory.

Owns the shape of what is remembered. Invariants: every key begins with the user, so that somebody else's conversation
id names nothing, and row-level security holds each row to its user; a conversation has one message at a place, and a
message one place; what was deleted leaves rows without text only.
"""

from typing import Final

import sqlalchemy as sa

metadata = sa.MetaData()

MESSAGE_KEY: Final = "turns_user_message_key"


def _id(name: str, *, primary_key: bool = True) -> sa.Column[str]:
    return sa.Column(name, sa.Uuid(as_uuid=False), primary_key=primary_key, nullable=False)


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now())


def _of_conversation(name: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["user_id", "conversation_id"], ["conversations.user_id", "conversations.conversation_id"], name=name
    )


conversations = sa.Table(
    "conversations",
    metadata,
    _id("user_id"),
    _id("conversation_id"),
    # Names one state of the turns. See store.NEXT_VERSION.
    sa.Column("version", sa.BigInteger, nullable=False),
    # Turns 1 to last_sequence are there without a hole; turns beyond it may be.
    sa.Column("last_sequence", sa.Integer, nullable=False, server_default="0"),
    # The tombstone: nothing of this conversation is accepted any more.
    sa.Column("deleted_at", sa.TIMESTAMP(timezone=True)),
    _time("create_time"),
    sa.CheckConstraint("last_sequence >= 0", name="conversations_last_sequence_check"),
    sa.CheckConstraint("deleted_at is null or last_sequence = 0", name="conversations_deleted_check"),
)

turns = sa.Table(
    "turns",
    metadata,
    _id("user_id"),
    _id("conversation_id"),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    _id("message_id", primary_key=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    # Estimated when it was recorded, see tokens.py; 0 for an empty body.
    sa.Column("token_count", sa.Integer, nullable=False),
    # When chat wrote it; record_time is when we heard of it.
    sa.Column("create_time", sa.TIMESTAMP(timezone=True), nullable=False),
    _time("record_time"),
    _of_conversation("turns_conversation_fkey"),
    sa.UniqueConstraint("user_id", "message_id", name=MESSAGE_KEY),
    sa.CheckConstraint("sequence >= 1", name="turns_sequence_check"),
    sa.CheckConstraint("role in ('user', 'assistant')", name="turns_role_check"),
    sa.CheckConstraint("revision >= 0", name="turns_revision_check"),
    sa.CheckConstraint("token_count >= 0", name="turns_token_count_check"),
)

# Messages that were edited away, without their text: a late repeat of the call that brought them must not bring them back.
# Gone with their conversation, whose tombstone says the same.
forgotten_turns = sa.Table(
    "forgotten_turns",
    metadata,
    _id("user_id"),
    _id("conversation_id"),
    _id("message_id"),
    sa.Column("revision", sa.Integer, nullable=False),
    _of_conversation("forgotten_turns_conversation_fkey"),
)

# Working sets that hold forgotten text until Redis was told. Written in the transaction that forgets.
pending_evictions = sa.Table(
    "pending_evictions",
    metadata,
    _id("user_id"),
    _id("conversation_id"),
    sa.Column("version", sa.BigInteger, nullable=False),
    _time("create_time"),
)
