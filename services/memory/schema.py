"""The tables of memory.

Owns the shape of what is remembered. Invariants: every key begins with the user, so that somebody else's conversation
id names nothing, and row-level security holds each row to its user; a conversation has one message at a place, and a
message one place; a fact's words are current once; what was deleted leaves rows without text only.
"""

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, TSVECTOR
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.types import UserDefinedType

from services.runtime.purging import purged_users_table

metadata = sa.MetaData()
purged_users = purged_users_table(metadata)

MESSAGE_KEY: Final = "turns_user_message_key"
# What each search reads all of, of one user. The partitions stand in migration 0002, in a schema of their own.
BY_USER: Final = "hash (user_id)"


def _id(name: str, *, primary_key: bool = True) -> sa.Column[str]:
    return sa.Column(name, sa.Uuid(as_uuid=False), primary_key=primary_key, nullable=False)


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now())


def _maybe_time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.TIMESTAMP(timezone=True))


class HalfVector(UserDefinedType[str]):
    """pgvector's halfvec, of any length; written and read as text."""

    cache_ok = True

    def __init__(self, length: int | None = None) -> None:
        """For reflection, which gives a length where there is one."""
        self.length = length

    def get_col_spec(self, **_: Any) -> str:
        """The type's name in SQL."""
        return "halfvec"


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
    # Facts were extracted from turns up to here.
    sa.Column("extracted_sequence", sa.Integer, nullable=False, server_default="0"),
    # What was said here until then was erased, and is not taken any more.
    _maybe_time("erase_time"),
    sa.CheckConstraint("last_sequence >= 0", name="conversations_last_sequence_check"),
    sa.CheckConstraint("extracted_sequence >= 0", name="conversations_extracted_sequence_check"),
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
    # What is searched by words. The function stands in migration 0002.
    sa.Column("lexemes", TSVECTOR, sa.Computed("lexemes_of(body)", persisted=True)),
    # In the order in which a user's messages come here. None for what is from before migration 0004, until it is indexed.
    sa.Column("number", sa.BigInteger, server_default=sa.text("nextval('turn_numbers')")),
    _of_conversation("turns_conversation_fkey"),
    sa.UniqueConstraint("user_id", "message_id", name=MESSAGE_KEY),
    sa.CheckConstraint("sequence >= 1", name="turns_sequence_check"),
    sa.CheckConstraint("role in ('user', 'assistant')", name="turns_role_check"),
    sa.CheckConstraint("revision >= 0", name="turns_revision_check"),
    sa.CheckConstraint("token_count >= 0", name="turns_token_count_check"),
    postgresql_partition_by=BY_USER,
)

sa.Index("turns_number_idx", turns.c.user_id, turns.c.number)

# Runs of a user's messages by number, closed: none comes to lie in one any more. `is_built`: their words stand in postings.
segments = sa.Table(
    "segments",
    metadata,
    _id("user_id"),
    sa.Column("last_number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("first_number", sa.BigInteger, nullable=False),
    sa.Column("is_built", sa.Boolean, nullable=False, server_default=sa.false()),
    # Of messages with text, while it is built.
    sa.Column("message_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("length_total", sa.BigInteger, nullable=False, server_default="0"),
    # An entry of postings has 38 bits for the distance from the first number.
    sa.CheckConstraint(
        "first_number >= 1 and last_number - first_number between 0 and 274877906943", name="segments_extent_check"
    ),
)

# By word, which messages of a segment hold it: see postings/statements.py. Triggers of migration 0004 drop them.
postings = sa.Table(
    "postings",
    metadata,
    _id("user_id"),
    sa.Column("segment", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("word", sa.Text(collation="C"), primary_key=True),
    sa.Column("entries", ARRAY(sa.BigInteger), nullable=False),
    sa.ForeignKeyConstraint(
        ["user_id", "segment"],
        ["segments.user_id", "segments.last_number"],
        name="postings_segment_fkey",
        ondelete="CASCADE",
    ),
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

# One row a user, once there is anything to say: the version of what is remembered beyond conversations, and until when all
# messages, and all facts, were erased: what was said, or recorded, until then is not taken any more. Whatever writes text of
# a user holds this row first, and whatever forgets has it alone, so that nothing slips past: see people.py.
people = sa.Table(
    "people",
    metadata,
    _id("user_id"),
    sa.Column("version", sa.BigInteger, nullable=False),
    _maybe_time("erase_time"),
    _maybe_time("facts_erase_time"),
)

facts = sa.Table(
    "facts",
    metadata,
    _id("user_id"),
    _id("id"),
    sa.Column("body", sa.Text, nullable=False),
    # Of the words alone, whatever their case and punctuation: see facts.body_hash.
    sa.Column("body_hash", sa.LargeBinary, nullable=False),
    sa.Column("subject", sa.Text, nullable=False, server_default="user"),
    sa.Column("attribute", sa.Text, nullable=False, server_default=""),
    sa.Column("importance", sa.SmallInteger, nullable=False, server_default="5"),
    # Who it comes from: of several sources the least trusted.
    sa.Column("stamped_by", sa.Text, nullable=False),
    # How it came here. Only what the user stated or imported needs no source.
    sa.Column("origin", sa.Text, nullable=False),
    # When it holds in the world.
    _maybe_time("valid_from"),
    _maybe_time("valid_to"),
    # When it was known here.
    _time("record_time"),
    _maybe_time("invalidate_time"),
    # The fact that says now what this version said before; that one kept the id. A history is flat, and goes with its fact.
    sa.Column("superseded_by", sa.Uuid(as_uuid=False)),
    _maybe_time("expire_time"),
    sa.Column("request_id", sa.Text),
    sa.Column("request_digest", sa.LargeBinary),
    sa.Column("lexemes", TSVECTOR, sa.Computed("lexemes_of(body)", persisted=True)),
    sa.ForeignKeyConstraint(
        ["user_id", "superseded_by"], ["facts.user_id", "facts.id"], name="facts_superseded_by_fkey", ondelete="CASCADE"
    ),
    sa.CheckConstraint("body <> ''", name="facts_body_check"),
    sa.CheckConstraint("importance between 1 and 10", name="facts_importance_check"),
    sa.CheckConstraint("stamped_by in ('user', 'assistant', 'tool', 'sms_peer')", name="facts_stamped_by_check"),
    sa.CheckConstraint("origin in ('stated', 'remembered', 'extracted', 'imported')", name="facts_origin_check"),
    sa.CheckConstraint("valid_to is null or valid_from is null or valid_from <= valid_to", name="facts_validity_check"),
    sa.CheckConstraint("superseded_by is null or invalidate_time is not null", name="facts_superseded_check"),
    sa.CheckConstraint("(request_id is null) = (request_digest is null)", name="facts_request_check"),
)
sa.Index(
    "facts_current_body_key",
    facts.c.user_id,
    facts.c.body_hash,
    unique=True,
    postgresql_where=facts.c.invalidate_time.is_(None),
)
sa.Index("facts_record_time_idx", facts.c.user_id, facts.c.record_time, facts.c.id)
sa.Index("facts_superseded_by_idx", facts.c.user_id, facts.c.superseded_by, facts.c.invalidate_time)
sa.Index(
    "facts_request_key",
    facts.c.user_id,
    facts.c.request_id,
    unique=True,
    postgresql_where=facts.c.request_id.is_not(None),
)
sa.Index("facts_expire_time_idx", facts.c.expire_time, postgresql_where=facts.c.expire_time.is_not(None))

# The messages that a fact was learned from. A fact that was extracted or remembered goes with its last source.
fact_sources = sa.Table(
    "fact_sources",
    metadata,
    _id("user_id"),
    _id("fact_id"),
    _id("conversation_id", primary_key=False),
    _id("message_id"),
    sa.ForeignKeyConstraint(
        ["user_id", "fact_id"], ["facts.user_id", "facts.id"], name="fact_sources_fact_fkey", ondelete="CASCADE"
    ),
)
sa.Index("fact_sources_message_idx", fact_sources.c.user_id, fact_sources.c.conversation_id, fact_sources.c.message_id)

# Of turns and facts, by their ids; none where the model has not been asked yet. `body` is the whole, `pieces` its sentences
# where there are several. Kept apart from the text, so that another model's replace them without touching that. They go with
# their text, and when it is rewritten, by triggers of migration 0002.
embeddings = sa.Table(
    "embeddings",
    metadata,
    _id("user_id"),
    _id("item_id"),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("conversation_id", sa.Uuid(as_uuid=False)),
    sa.Column("sequence", sa.Integer),
    # Name and dimensions: vectors of different models are never compared.
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("body", HalfVector, nullable=False),
    sa.Column("pieces", ARRAY(HalfVector)),
    sa.CheckConstraint("kind in ('turn', 'fact')", name="embeddings_kind_check"),
    sa.CheckConstraint(
        "(kind = 'turn') = (conversation_id is not null) and (kind = 'turn') = (sequence is not null)",
        name="embeddings_place_check",
    ),
    postgresql_partition_by=BY_USER,
)
sa.Index("embeddings_conversation_idx", embeddings.c.user_id, embeddings.c.conversation_id, embeddings.c.sequence)
sa.Index("embeddings_model_idx", embeddings.c.model, embeddings.c.user_id, embeddings.c.conversation_id)

# The summary of a conversation, or of the person (then the scope is the user).
summaries = sa.Table(
    "summaries",
    metadata,
    _id("user_id"),
    _id("scope_id"),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    # Of a conversation: up to where it reaches.
    sa.Column("last_sequence", sa.Integer, nullable=False, server_default="0"),
    # Of the person: what it was made of, so that the same is not asked twice.
    sa.Column("digest", sa.LargeBinary),
    _time("update_time"),
    sa.CheckConstraint("kind in ('conversation', 'person')", name="summaries_kind_check"),
    sa.CheckConstraint("(kind = 'person') = (scope_id = user_id)", name="summaries_scope_check"),
    sa.CheckConstraint("last_sequence >= 0", name="summaries_last_sequence_check"),
)

# Work that is owed for a conversation, or for the user (then the scope is the user), once each: see upkeep/. Ids only.
upkeep = sa.Table(
    "upkeep",
    metadata,
    _id("user_id"),
    _id("scope_id"),
    sa.Column("task", sa.Text, primary_key=True),
    _time("due_time"),
    # Since when it has been owed.
    _time("owe_time"),
    # Until when a process that works on it is left alone.
    _maybe_time("claim_until"),
    sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
    # Another number whenever it is owed anew, so that what came meanwhile is not struck with what was done.
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="1"),
    sa.CheckConstraint("task in ('embed', 'extract', 'summarize', 'portray', 'expire', 'index')", name="upkeep_task_check"),
    sa.CheckConstraint("tries >= 0", name="upkeep_tries_check"),
)
sa.Index("upkeep_due_idx", upkeep.c.task, upkeep.c.due_time)

# So that the tables can also be made, and read back, without the migrations: tests compare the two.
ischema_names["halfvec"] = HalfVector


@sa.event.listens_for(metadata, "before_create")
def _prepare(_: sa.MetaData, connection: sa.Connection, **__: Any) -> None:
    connection.execute(sa.text("create extension if not exists vector"))
    connection.execute(sa.text("create sequence turn_numbers"))
    connection.execute(
        sa.text("create function lexemes_of(body text) returns tsvector language sql immutable return cast('' as tsvector)")
    )
