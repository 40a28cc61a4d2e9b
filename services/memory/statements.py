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
# Microseconds since 1970, and always more than before: a database restored from a backup never gives a version again
# that the working set still holds for other turns. Exact in Redis's scripts, whose numbers are doubles, until 2255.
_NEXT_VERSION: Final = sa.func.greatest(conversations.c.version + 1, _CLOCK)
_CONVERSATION: Final = ("user_id", "conversation_id")
_WRITTEN_ANEW: Final = ("role", "body", "revision", "token_count", "create_time")


def is_of(table: sa.Table, key: ConversationKey) -> sa.ColumnElement[bool]:
    """Rows of a conversation."""
    return (table.c.user_id == key.user_id) & (table.c.conversation_id == key.conversation_id)


def _is_alive(key: ConversationKey) -> sa.ColumnElement[bool]:
    return is_of(conversations, key) & conversations.c.deleted_at.is_(None)


def _identity(key: ConversationKey) -> dict[str, str]:
    return {"user_id": key.user_id, "conversation_id": key.conversation_id}


def head(key: ConversationKey) -> sa.Select[Any]:
    """Version and last sequence of a conversation that was not deleted."""
    return sa.select(conversations.c.version, conversations.c.last_sequence).where(_is_alive(key))


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


def lock(key: ConversationKey) -> Any:
    """Creates or holds the conversation's row and gives it its next version; no row when the conversation was deleted."""
    return (
        insert(conversations)
        .values(**_identity(key), version=_CLOCK)
        .on_conflict_do_update(
            index_elements=_CONVERSATION,
            set_={"version": _NEXT_VERSION},
            where=conversations.c.deleted_at.is_(None),
        )
        .returning(
            conversations.c.version,
            conversations.c.last_sequence,
            sa.literal_column("old.version", sa.BigInteger).label("old_version"),
        )
    )


def places(key: ConversationKey, told: Sequence[Turn]) -> sa.CompoundSelect[Any]:
    """What is recorded of the same messages or at the same places; without a sequence, what was edited away."""
    ids = [turn.message_id for turn in told]
    is_told = turns.c.message_id.in_(ids) | turns.c.sequence.in_([turn.sequence for turn in told])
    known = sa.select(turns.c.message_id, turns.c.revision, turns.c.sequence, turns.c.create_time).where(
        is_of(turns, key), is_told
    )
    forgotten = sa.select(forgotten_turns.c.message_id, forgotten_turns.c.revision, sa.null(), sa.null()).where(
        is_of(forgotten_turns, key), forgotten_turns.c.message_id.in_(ids)
    )
    return sa.union_all(known, forgotten)


def displace(key: ConversationKey, message_ids: Iterable[str]) -> sa.Delete:
    """Deletes messages that lost their place."""
    return sa.delete(turns).where(is_of(turns, key), turns.c.message_id.in_(list(message_ids)))


def note_forgotten() -> Insert:
    """Notes messages that were edited away, by `forgotten_row`."""
    return _keep_greatest_revision(insert(forgotten_turns))


def forgotten_row(key: ConversationKey, message_id: str, revision: int) -> dict[str, object]:
    """A message that was edited away."""
    return {**_identity(key), "message_id": message_id, "revision": revision}


def _keep_greatest_revision(statement: Insert) -> Insert:
    return statement.on_conflict_do_update(
        index_elements=[*_CONVERSATION, "message_id"],
        set_={"revision": sa.func.greatest(forgotten_turns.c.revision, statement.excluded.revision)},
    )


def write() -> Any:
    """Writes turns, by `turn_row`, and returns a row for each; none for a message that belongs to another conversation."""
    statement = insert(turns)
    return statement.on_conflict_do_update(
        index_elements=["user_id", "message_id"],
        set_={name: statement.excluded[name] for name in _WRITTEN_ANEW},
        where=turns.c.conversation_id == statement.excluded.conversation_id,
    ).returning(turns.c.sequence)


def turn_row(key: ConversationKey, turn: Turn) -> dict[str, object]:
    """A turn as a row."""
    return {
        **_identity(key),
        "sequence": turn.sequence,
        "message_id": turn.message_id,
        "role": turn.role,
        "body": turn.text,
        "revision": turn.revision,
        "token_count": turn.token_count,
        "create_time": turn.create_time,
    }


def extend(key: ConversationKey, last_sequence: int) -> Any:
    """Moves last_sequence over the turns that now follow it without a hole."""
    place = sa.func.row_number().over(order_by=turns.c.sequence)
    beyond = (
        sa.select(turns.c.sequence, place.label("place"))
        .where(is_of(turns, key), turns.c.sequence > last_sequence)
        .subquery()
    )
    following = sa.select(sa.func.count()).where(beyond.c.sequence == last_sequence + beyond.c.place).scalar_subquery()
    return (
        sa.update(conversations)
        .where(is_of(conversations, key))
        .values(last_sequence=last_sequence + following)
        .returning(conversations.c.last_sequence)
    )


def bury(key: ConversationKey) -> Any:
    """Turns the conversation's row into a tombstone, or makes one."""
    return (
        insert(conversations)
        .values(**_identity(key), version=_CLOCK, deleted_at=sa.func.now())
        .on_conflict_do_update(
            index_elements=_CONVERSATION,
            set_={
                "version": _NEXT_VERSION,
                "last_sequence": 0,
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
        .values(version=_NEXT_VERSION, last_sequence=sa.func.least(conversations.c.last_sequence, from_sequence - 1))
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
    statement = insert(pending_evictions).values(**_identity(key), version=version)
    return statement.on_conflict_do_update(index_elements=_CONVERSATION, set_={"version": statement.excluded.version})


def owed_evictions(limit: int) -> sa.Select[Any]:
    """The oldest evictions that are owed."""
    return sa.select(pending_evictions).order_by(pending_evictions.c.create_time).limit(limit)


def settle_eviction(key: ConversationKey, version: int) -> sa.Delete:
    """Strikes an eviction that is no newer than `version`."""
    return sa.delete(pending_evictions).where(is_of(pending_evictions, key), pending_evictions.c.version <= version)
