"""The SQL of store.py: one function a statement, nothing executed.

Invariant: every statement names the user before anything else, as every key does; row-level security is the second
wall.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import Insert, insert

from services.memory.schema import conversations, forgotten_turns, pending_evictions, turns
from services.memory.turns import ConversationKey, Turn

_CLOCK: Final = sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()) * 1_000_000, sa.BigInteger)
_CLOCK_TEXT: Final = "cast(extract(epoch from clock_timestamp()) * 1000000 as bigint)"
# Microseconds since 1970, and always more than before: a database restored from a backup never gives a version again
# that the working set still holds for other turns. Exact in Redis's scripts, whose numbers are doubles, until 2255.
_NEXT_VERSION: Final = sa.func.greatest(conversations.c.version + 1, _CLOCK)
_CONVERSATION: Final = ("user_id", "conversation_id")


HEAD: Final = (
    b"select version, last_sequence from conversations"
    b" where user_id = %(user_id)s and conversation_id = %(conversation_id)s and deleted_at is null"
)
"""Version and last sequence of a conversation that was not deleted; for the driver, with what `identity` gives."""


def is_of(table: sa.Table, key: ConversationKey) -> sa.ColumnElement[bool]:
    """Rows of a conversation."""
    return (table.c.user_id == key.user_id) & (table.c.conversation_id == key.conversation_id)


def _is_alive(key: ConversationKey) -> sa.ColumnElement[bool]:
    return is_of(conversations, key) & conversations.c.deleted_at.is_(None)


def identity(key: ConversationKey) -> dict[str, str]:
    """The key of a conversation, by column."""
    return {"user_id": key.user_id, "conversation_id": key.conversation_id}


def latest(key: ConversationKey, *, most_messages: int, most_tokens: int) -> sa.Select[Any]:
    """Newest first; the first turn that does not fit comes last, without its text. No turn at all: one row without one."""
    running = sa.func.sum(turns.c.token_count).over(order_by=turns.c.sequence.desc())
    last = conversations.c.last_sequence
    near = (
        sa.select(turns, running.label("running"))
        .where(is_of(turns, key), turns.c.sequence.between(last - most_messages + 1, last), turns.c.body != "")
        .lateral("near")
    )
    body = sa.case((near.c.running <= most_tokens, near.c.body)).label("body")
    seen = (near.c.message_id, near.c.sequence, near.c.role, near.c.revision, near.c.create_time, near.c.token_count)
    return (
        sa.select(conversations.c.version, last, body, *seen)
        .select_from(conversations.outerjoin(near, near.c.running - near.c.token_count <= most_tokens))
        .where(_is_alive(key))
        .order_by(near.c.sequence.desc())
    )


# In text where many conversations are told of at once: these unnest arrays, so that one statement, prepared once, serves any
# number of them. LOCK goes by the order of the keys: two that lock the same ones never wait for each other in a ring.
LOCK: Final = sa.text(
    "insert into conversations (user_id, conversation_id, version)"  # noqa: S608 - of constants
    f" select user_id, conversation_id, {_CLOCK_TEXT}"
    " from unnest(cast(:user_ids as uuid[]), cast(:conversation_ids as uuid[])) as told (user_id, conversation_id)"
    " order by user_id, conversation_id"
    " on conflict (user_id, conversation_id) do update"
    f" set version = greatest(conversations.version + 1, {_CLOCK_TEXT}) where conversations.deleted_at is null"
    " returning cast(user_id as text), cast(conversation_id as text), version, last_sequence, extracted_sequence,"
    " erase_time, old.version as old_version"
)
"""Creates or holds the conversations' rows and gives each its next version; no row for a conversation that was deleted."""

PLACES: Final = sa.text(
    "with told as (select * from unnest(cast(:user_ids as uuid[]), cast(:conversation_ids as uuid[]),"
    " cast(:message_ids as uuid[]), cast(:sequences as integer[]))"
    " as told (user_id, conversation_id, message_id, sequence)), found as ("
    " select told.conversation_id as told_conversation_id, turns.user_id, turns.conversation_id, turns.message_id,"
    " turns.revision, turns.sequence, turns.create_time from told join turns using (user_id, message_id)"
    " union select told.conversation_id, turns.user_id, turns.conversation_id, turns.message_id,"
    " turns.revision, turns.sequence, turns.create_time from told join turns using (user_id, conversation_id, sequence)"
    " union select told.conversation_id, gone.user_id, gone.conversation_id, gone.message_id, gone.revision, null, null"
    " from told join forgotten_turns gone using (user_id, conversation_id, message_id))"
    " select cast(user_id as text), cast(told_conversation_id as text) as conversation_id, cast(message_id as text),"
    " revision, sequence, create_time, conversation_id = told_conversation_id as is_of_conversation from found"
)
"""What is recorded of the same messages or at the same places; without a sequence, what was edited away."""

WRITE: Final = sa.text(
    "insert into turns (user_id, conversation_id, sequence, message_id, role, body, revision, token_count, create_time)"
    " select * from unnest(cast(:user_ids as uuid[]), cast(:conversation_ids as uuid[]), cast(:sequences as integer[]),"
    " cast(:message_ids as uuid[]), cast(:roles as text[]), cast(:bodies as text[]), cast(:revisions as integer[]),"
    " cast(:token_counts as integer[]), cast(:create_times as timestamptz[]))"
    " on conflict (user_id, message_id) do update set role = excluded.role, body = excluded.body,"
    " revision = excluded.revision, token_count = excluded.token_count, create_time = excluded.create_time"
    " where turns.conversation_id = excluded.conversation_id"
)
"""Writes turns. A message that belongs to another conversation is left as it is, and not counted."""

EXTEND: Final = sa.text(
    "update conversations known set last_sequence = known.last_sequence + ("
    " select count(*) from (select sequence, row_number() over (order by sequence) as place from turns"
    " where turns.user_id = known.user_id and turns.conversation_id = known.conversation_id"
    " and turns.sequence > known.last_sequence) beyond where beyond.sequence = known.last_sequence + beyond.place)"
    " from unnest(cast(:user_ids as uuid[]), cast(:conversation_ids as uuid[])) as told (user_id, conversation_id)"
    " where known.user_id = told.user_id and known.conversation_id = told.conversation_id"
    " returning cast(known.user_id as text), cast(known.conversation_id as text), known.last_sequence"
)
"""Moves last_sequence over the turns that now follow it without a hole."""


SETTLE_EVICTIONS: Final = sa.text(
    "delete from pending_evictions owed using"
    " unnest(cast(:user_ids as uuid[]), cast(:conversation_ids as uuid[]), cast(:versions as bigint[]))"
    " as told (user_id, conversation_id, version)"
    " where owed.user_id = told.user_id and owed.conversation_id = told.conversation_id and owed.version <= told.version"
)
"""Strikes evictions that are no newer than the versions."""


def of_conversations(keys: Iterable[ConversationKey]) -> dict[str, list[Any]]:
    """Conversations, as LOCK and EXTEND take them."""
    ordered = list(keys)
    return {
        "user_ids": [key.user_id for key in ordered],
        "conversation_ids": [key.conversation_id for key in ordered],
    }


def of_messages(told: Sequence[tuple[ConversationKey, Turn]]) -> dict[str, list[Any]]:
    """Messages, as PLACES takes them."""
    return of_conversations(key for key, _ in told) | {
        "message_ids": [turn.message_id for _, turn in told],
        "sequences": [turn.sequence for _, turn in told],
    }


def of_turns(told: Sequence[tuple[ConversationKey, Turn]]) -> dict[str, list[Any]]:
    """Messages with what is in them, as WRITE takes them."""
    return of_messages(told) | {
        "roles": [turn.role for _, turn in told],
        "bodies": [turn.text for _, turn in told],
        "revisions": [turn.revision for _, turn in told],
        "token_counts": [turn.token_count for _, turn in told],
        "create_times": [turn.create_time for _, turn in told],
    }


def displace(key: ConversationKey, message_ids: Iterable[str]) -> sa.Delete:
    """Deletes messages that lost their place."""
    return sa.delete(turns).where(is_of(turns, key), turns.c.message_id.in_(list(message_ids)))


def note_forgotten() -> Insert:
    """Notes messages that were edited away, by `forgotten_row`."""
    return _keep_greatest_revision(insert(forgotten_turns))


def forgotten_row(key: ConversationKey, message_id: str, revision: int) -> dict[str, object]:
    """A message that was edited away."""
    return {**identity(key), "message_id": message_id, "revision": revision}


def _keep_greatest_revision(statement: Insert) -> Insert:
    return statement.on_conflict_do_update(
        index_elements=[*_CONVERSATION, "message_id"],
        set_={"revision": sa.func.greatest(forgotten_turns.c.revision, statement.excluded.revision)},
    )


def bury(key: ConversationKey) -> Any:
    """Turns the conversation's row into a tombstone, or makes one."""
    return (
        insert(conversations)
        .values(**identity(key), version=_CLOCK, deleted_at=sa.func.now())
        .on_conflict_do_update(
            index_elements=_CONVERSATION,
            set_={
                "version": _NEXT_VERSION,
                "last_sequence": 0,
                "extracted_sequence": 0,
                "deleted_at": sa.func.coalesce(conversations.c.deleted_at, sa.func.now()),
            },
        )
        .returning(conversations.c.version)
    )


def shorten(key: ConversationKey, from_sequence: int) -> Any:
    """Holds the row of a conversation that ends before `from_sequence` from now on."""
    return (
        sa.update(conversations)
        .where(_is_alive(key))
        .values(
            version=_NEXT_VERSION,
            last_sequence=sa.func.least(conversations.c.last_sequence, from_sequence - 1),
            extracted_sequence=sa.func.least(conversations.c.extracted_sequence, from_sequence - 1),
        )
        .returning(conversations.c.version)
    )


def edit_away(key: ConversationKey, from_sequence: int) -> sa.Select[Any]:
    """Deletes the turns from `from_sequence` on, notes which they were, and counts them."""
    gone = (
        sa.delete(turns)
        .where(is_of(turns, key), turns.c.sequence >= from_sequence)
        .returning(turns.c.user_id, turns.c.conversation_id, turns.c.message_id, turns.c.revision)
        .cte("gone")
    )
    columns = [*_CONVERSATION, "message_id", "revision"]
    noted = _keep_greatest_revision(insert(forgotten_turns).from_select(columns, sa.select(gone)))
    return sa.select(sa.func.count()).select_from(gone).add_cte(noted.cte("noted"))


def owe_eviction(key: ConversationKey, version: int) -> Insert:
    """Notes that the working set must forget what it holds from before `version`."""
    statement = insert(pending_evictions).values(**identity(key), version=version)
    return statement.on_conflict_do_update(index_elements=_CONVERSATION, set_={"version": statement.excluded.version})


def owed_evictions(limit: int) -> sa.Select[Any]:
    """The oldest evictions that are owed."""
    return sa.select(pending_evictions).order_by(pending_evictions.c.create_time).limit(limit)
