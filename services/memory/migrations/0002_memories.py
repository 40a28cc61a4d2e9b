"""Long-term memory: facts and their sources, embeddings, summaries, the work that is owed, and what was erased for good."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

from services.runtime.migrations import isolate_by_user

revision = "0002"
down_revision = "0001"

# Characters beyond this are not searched by words: a tsvector holds 1 MiB at most, and a message 400,000 characters.
_SEARCHED_CHARACTERS = 50_000
_STAMPS = "('user', 'assistant', 'tool', 'sms_peer')"
# Turns and embeddings lie in so many partitions, by user: a search reads all rows of one user, which stand that much
# closer together. A power of two, so that each can be split. More of them cost planning, and the tests their time.
_PARTITIONS = 32


def upgrade() -> None:
    op.execute("create extension if not exists vector")
    _create_lexemes_function()
    op.execute("create schema partitions")
    _create_people()
    _add_columns_to_conversations()
    _partition_turns()
    _create_facts()
    _create_fact_sources()
    _create_embeddings()
    _create_summaries()
    _create_upkeep()
    for table in ("people", "facts", "fact_sources", "embeddings", "summaries", "upkeep"):
        isolate_by_user(table)


def _id(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.Uuid, nullable=nullable)


def _time(name: str, *, nullable: bool = False, default: bool = True) -> sa.Column[object]:
    server_default = sa.func.now() if default and not nullable else None
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=nullable, server_default=server_default)


def _create_lexemes_function() -> None:
    # English stems; a word of another language goes through the same rules on both sides, and so still finds itself. Scripts
    # that put no space between words are searched by the character.
    op.execute(
        "create function lexemes_of(body text) returns tsvector language sql immutable parallel safe strict return"
        r" to_tsvector('english'::regconfig, regexp_replace(left(body, " + str(_SEARCHED_CHARACTERS) + "),"
        " '([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])', ' \\1 ', 'g'))"
    )


def _create_people() -> None:
    op.create_table(
        "people",
        _id("user_id"),
        sa.Column("version", sa.BigInteger, nullable=False),
        _time("erase_time", nullable=True),
        _time("facts_erase_time", nullable=True),
        sa.PrimaryKeyConstraint("user_id", name="people_pkey"),
    )


def _add_columns_to_conversations() -> None:
    op.add_column("conversations", sa.Column("extracted_sequence", sa.Integer, nullable=False, server_default="0"))
    op.add_column("conversations", _time("erase_time", nullable=True))
    op.create_check_constraint("conversations_extracted_sequence_check", "conversations", "extracted_sequence >= 0")


def _partition_turns() -> None:
    """Another table takes the place of turns, with what is searched by words."""
    op.execute("alter table turns rename to turns_whole")
    for constraint in ("turns_pkey", "turns_user_message_key"):
        op.execute(f"alter table turns_whole drop constraint {constraint}")
    op.execute(
        "create table turns (like turns_whole including defaults including constraints,"
        " lexemes tsvector generated always as (lexemes_of(body)) stored,"
        " constraint turns_pkey primary key (user_id, conversation_id, sequence),"
        " constraint turns_user_message_key unique (user_id, message_id),"
        " constraint turns_conversation_fkey foreign key (user_id, conversation_id)"
        " references conversations (user_id, conversation_id)) partition by hash (user_id)"
    )
    _create_partitions("turns")
    isolate_by_user("turns")
    _move_turns()
    op.drop_table("turns_whole")


def _create_partitions(table: str) -> None:
    """A partition that is named is no way around its table's policy.

    They are in a schema that the service's role has no way into, under row-level security that lets nobody through.
    """
    for index in range(_PARTITIONS):
        partition = f"partitions.{table}_{index:02}"
        # What is read for each memory in each search stands in its row, not packed, as long as that fits into a page.
        op.execute(
            f"create table {partition} partition of {table}"
            f" for values with (modulus {_PARTITIONS}, remainder {index}) with (toast_tuple_target = 8160)"
        )
        op.execute(f"alter table {partition} enable row level security, force row level security")


def _move_turns() -> None:
    # By partition, so that no statement comes near its time; each user's rows together.
    op.execute("select set_config('parley.scope', 'service', true)")
    columns = "user_id, conversation_id, sequence, message_id, role, body, revision, token_count, create_time, record_time"
    for index in range(_PARTITIONS):
        op.execute(
            f"insert into turns ({columns}) select {columns} from turns_whole"  # noqa: S608 - of constants
            f" where satisfies_hash_partition('turns'::regclass, {_PARTITIONS}, {index}, user_id)"
            " order by user_id, conversation_id, sequence"
        )


def _create_facts() -> None:
    op.create_table(
        "facts",
        _id("user_id"),
        _id("id"),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("body_hash", sa.LargeBinary, nullable=False),
        sa.Column("subject", sa.Text, nullable=False, server_default="user"),
        sa.Column("attribute", sa.Text, nullable=False, server_default=""),
        sa.Column("importance", sa.SmallInteger, nullable=False, server_default="5"),
        sa.Column("stamped_by", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        _time("valid_from", nullable=True),
        _time("valid_to", nullable=True),
        _time("record_time"),
        _time("invalidate_time", nullable=True),
        _id("superseded_by", nullable=True),
        _time("expire_time", nullable=True),
        sa.Column("request_id", sa.Text),
        sa.Column("request_digest", sa.LargeBinary),
        sa.Column("lexemes", TSVECTOR, sa.Computed("lexemes_of(body)", persisted=True)),
        sa.PrimaryKeyConstraint("user_id", "id", name="facts_pkey"),
        sa.ForeignKeyConstraint(
            ["user_id", "superseded_by"], ["facts.user_id", "facts.id"], name="facts_superseded_by_fkey", ondelete="CASCADE"
        ),
        sa.CheckConstraint("body <> ''", name="facts_body_check"),
        sa.CheckConstraint("importance between 1 and 10", name="facts_importance_check"),
        sa.CheckConstraint(f"stamped_by in {_STAMPS}", name="facts_stamped_by_check"),
        sa.CheckConstraint("origin in ('stated', 'remembered', 'extracted', 'imported')", name="facts_origin_check"),
        sa.CheckConstraint("valid_to is null or valid_from is null or valid_from <= valid_to", name="facts_validity_check"),
        sa.CheckConstraint("superseded_by is null or invalidate_time is not null", name="facts_superseded_check"),
        sa.CheckConstraint("(request_id is null) = (request_digest is null)", name="facts_request_check"),
    )
    current = sa.text("invalidate_time is null")
    op.create_index("facts_current_body_key", "facts", ["user_id", "body_hash"], unique=True, postgresql_where=current)
    op.create_index("facts_record_time_idx", "facts", ["user_id", "record_time", "id"])
    op.create_index("facts_superseded_by_idx", "facts", ["user_id", "superseded_by", "invalidate_time"])
    named = sa.text("request_id is not null")
    op.create_index("facts_request_key", "facts", ["user_id", "request_id"], unique=True, postgresql_where=named)
    expiring = sa.text("expire_time is not null")
    op.create_index("facts_expire_time_idx", "facts", ["expire_time"], postgresql_where=expiring)


def _create_fact_sources() -> None:
    op.create_table(
        "fact_sources",
        _id("user_id"),
        _id("fact_id"),
        _id("conversation_id"),
        _id("message_id"),
        sa.PrimaryKeyConstraint("user_id", "fact_id", "message_id", name="fact_sources_pkey"),
        sa.ForeignKeyConstraint(
            ["user_id", "fact_id"], ["facts.user_id", "facts.id"], name="fact_sources_fact_fkey", ondelete="CASCADE"
        ),
    )
    op.create_index("fact_sources_message_idx", "fact_sources", ["user_id", "conversation_id", "message_id"])


def _create_embeddings() -> None:
    # halfvec without a length: rows of two models may stand beside each other while one replaces the other. PLAIN: a vector
    # kept out of line would cost a look-up each in an exact scan, and noise does not compress.
    op.execute(
        "create table embeddings ("
        " user_id uuid not null, item_id uuid not null, kind text not null, conversation_id uuid, sequence integer,"
        " model text not null, body halfvec not null, pieces halfvec[],"
        " constraint embeddings_pkey primary key (user_id, item_id),"
        " constraint embeddings_kind_check check (kind in ('turn', 'fact')),"
        " constraint embeddings_place_check check"
        " ((kind = 'turn') = (conversation_id is not null) and (kind = 'turn') = (sequence is not null)))"
        " partition by hash (user_id)"
    )
    op.execute("alter table embeddings alter column body set storage plain")
    # The pieces too stand in their row as long as that fits into a page: out of line they cost a search twice the time.
    op.execute("alter table embeddings alter column pieces set storage main")
    _create_partitions("embeddings")
    op.create_index("embeddings_conversation_idx", "embeddings", ["user_id", "conversation_id", "sequence"])
    op.create_index("embeddings_model_idx", "embeddings", ["model", "user_id", "conversation_id"])
    # Whatever takes or rewrites a text takes its embedding with it, in the same transaction and whoever does it. By the row:
    # a plan for many rows at once would stay with the session, and read all embeddings for the next one.
    _drop_embeddings_with("turns", "message_id")
    _drop_embeddings_with("facts", "id")


def _drop_embeddings_with(table: str, item: str) -> None:
    op.execute(
        # One plan for all users, which finds the partition when it runs: planning costs more than deleting.
        f"create function drop_embedding_of_{table}() returns trigger language plpgsql"  # noqa: S608 - of constants
        " set plan_cache_mode = force_generic_plan as $$ begin"
        f" delete from embeddings where user_id = old.user_id and item_id = old.{item}; return null; end $$"
    )
    for name, event in (("deleted", "delete"), ("rewritten", "update of body")):
        condition = "when (old.body is distinct from new.body)" if name == "rewritten" else ""
        op.execute(
            f"create trigger {table}_{name} after {event} on {table} for each row {condition}"
            f" execute function drop_embedding_of_{table}()"
        )


def _create_summaries() -> None:
    op.create_table(
        "summaries",
        _id("user_id"),
        _id("scope_id"),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("last_sequence", sa.Integer, nullable=False, server_default="0"),
        sa.Column("digest", sa.LargeBinary),
        _time("update_time"),
        sa.PrimaryKeyConstraint("user_id", "scope_id", name="summaries_pkey"),
        sa.CheckConstraint("kind in ('conversation', 'person')", name="summaries_kind_check"),
        sa.CheckConstraint("(kind = 'person') = (scope_id = user_id)", name="summaries_scope_check"),
        sa.CheckConstraint("last_sequence >= 0", name="summaries_last_sequence_check"),
    )


def _create_upkeep() -> None:
    op.create_table(
        "upkeep",
        _id("user_id"),
        _id("scope_id"),
        sa.Column("task", sa.Text, nullable=False),
        _time("due_time"),
        _time("owe_time"),
        _time("claim_until", nullable=True),
        sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
        sa.Column("revision", sa.BigInteger, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("user_id", "scope_id", "task", name="upkeep_pkey"),
        sa.CheckConstraint("task in ('embed', 'extract', 'summarize', 'portray', 'expire')", name="upkeep_task_check"),
        sa.CheckConstraint("tries >= 0", name="upkeep_tries_check"),
    )
    op.create_index("upkeep_due_idx", "upkeep", ["task", "due_time"])
    # What was recorded before is to be found by what it means too. Row-level security would show its owner nothing of it.
    op.execute("select set_config('parley.scope', 'service', true)")
    op.execute(
        "insert into upkeep (user_id, scope_id, task)"
        " select user_id, conversation_id, 'embed' from conversations where deleted_at is null"
    )
