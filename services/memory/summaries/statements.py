"""The SQL of summaries: nothing executed. Every statement names the user first."""

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, Insert, insert

from services.memory.schema import conversations, facts, people, summaries, turns
from services.memory.turns import ConversationKey

_MESSAGE_CHARACTERS: Final = 4_000

AFFECTED: Final = sa.text(
    "select cast(told.user_id as text), cast(told.conversation_id as text),"
    " coalesce(made.last_sequence >= told.sequence, false) as is_rewritten"
    " from unnest(cast(:user_ids as uuid[]), cast(:conversation_ids as uuid[]), cast(:sequences as integer[]))"
    " as told (user_id, conversation_id, sequence)"
    " join conversations known on known.user_id = told.user_id and known.conversation_id = told.conversation_id"
    " cross join lateral (select max(turns.sequence) as sequence from turns where turns.user_id = known.user_id"
    " and turns.conversation_id = known.conversation_id) last"
    " left join summaries made on made.user_id = told.user_id and made.scope_id = told.conversation_id"
    " where made.last_sequence >= told.sequence"
    " or last.sequence >= greatest(:after_messages, coalesce(made.last_sequence, 0) + :every_messages)"
)
"""The conversations that have grown enough since they were last summed up, or were rewritten where that had been done."""

DROP: Final = sa.text(
    "delete from summaries using unnest(cast(:user_ids as uuid[]), cast(:scope_ids as uuid[])) as told (user_id, scope_id)"
    " where summaries.user_id = told.user_id and summaries.scope_id = told.scope_id"
)
"""Removes summaries by what they are of."""


def talk(key: ConversationKey) -> sa.Select[Any]:
    """How far a conversation goes, over holes too, and its summary."""
    made, last = summaries, sa.select(sa.func.max(turns.c.sequence)).where(_is_of(key)).scalar_subquery()
    return (
        sa.select(
            sa.func.coalesce(last, 0).label("last_sequence"),
            made.c.body,
            made.c.last_sequence.label("summarized"),
            made.c.update_time,
        )
        .select_from(conversations.outerjoin(made, _is_summary_of(key)))
        .where(is_alive(key))
    )


def turns_after(key: ConversationKey, *, sequence: int, last_sequence: int, most: int) -> sa.Select[Any]:
    """The messages after one, oldest first, each cut to 4,000 characters."""
    body = sa.func.left(turns.c.body, _MESSAGE_CHARACTERS).label("body")
    return (
        sa.select(turns.c.sequence, turns.c.message_id, turns.c.revision, turns.c.role, body)
        .where(_is_of(key), turns.c.sequence > sequence, turns.c.sequence <= last_sequence)
        .order_by(turns.c.sequence)
        .limit(most)
    )


def hold_conversation(key: ConversationKey) -> sa.Select[Any]:
    """Keeps a conversation from being changed until the end of the transaction; no row where it was deleted."""
    return sa.select(conversations.c.last_sequence).where(is_alive(key)).with_for_update(read=True)


def unchanged_turns(key: ConversationKey, message_ids: list[str], revisions: list[int]) -> sa.Select[Any]:
    """Counts the messages that are there as they were."""
    ids = sa.cast(message_ids, ARRAY(sa.Uuid(as_uuid=False)))
    read = (
        sa.func.unnest(ids, sa.cast(revisions, ARRAY(sa.Integer)))
        .table_valued("message_id", "revision")
        .render_derived("kept")
    )
    return (
        sa.select(sa.func.count())
        .select_from(turns.join(read, (turns.c.message_id == read.c.message_id) & (turns.c.revision == read.c.revision)))
        .where(_is_of(key))
    )


def begin_summary(key: ConversationKey, *, text: str, last_sequence: int) -> Insert:
    """A conversation's first summary; nothing where it has one."""
    values = {"kind": "conversation", "body": text, "last_sequence": last_sequence}
    made = insert(summaries).values(user_id=key.user_id, scope_id=key.conversation_id, **values)
    return made.on_conflict_do_nothing(index_elements=["user_id", "scope_id"])


def renew_summary(key: ConversationKey, *, text: str, last_sequence: int, since: object) -> sa.Update:
    """The next summary in the place of the one written at `since`."""
    return (
        sa.update(summaries)
        .where(_is_summary_of(key), summaries.c.update_time == since)
        .values(body=text, last_sequence=last_sequence, update_time=sa.func.clock_timestamp())
    )


def current_facts(user_id: str, *, most: int) -> sa.Select[Any]:
    """What the user has said and holds now, what matters most first."""
    now = sa.func.now()
    return (
        sa.select(facts.c.body, facts.c.subject, facts.c.attribute, facts.c.valid_from)
        .where(
            facts.c.user_id == user_id,
            facts.c.stamped_by == "user",
            facts.c.invalidate_time.is_(None),
            facts.c.expire_time.is_(None) | (facts.c.expire_time > now),
            facts.c.valid_to.is_(None) | (facts.c.valid_to > now),
        )
        .order_by(facts.c.importance.desc(), facts.c.record_time.desc(), facts.c.id)
        .limit(most)
    )


def version(user_id: str) -> sa.Select[Any]:
    """The version of what is remembered of a person, and what the summary they have was made of."""
    of_person = (summaries.c.user_id == people.c.user_id) & (summaries.c.scope_id == people.c.user_id)
    has_summary = summaries.c.user_id.is_not(None).label("has_summary")
    return (
        sa.select(people.c.version, has_summary, summaries.c.digest)
        .select_from(people.outerjoin(summaries, of_person))
        .where(people.c.user_id == user_id)
    )


def write_portrait(user_id: str, *, text: str, digest: bytes) -> Insert:
    """The person's summary, in the place of the one they had."""
    made = insert(summaries).values(user_id=user_id, scope_id=user_id, kind="person", body=text, digest=digest)
    new = made.excluded
    return made.on_conflict_do_update(
        index_elements=["user_id", "scope_id"],
        set_={"body": new.body, "digest": new.digest, "update_time": sa.func.clock_timestamp()},
    )


def drop_portrait(user_id: str) -> sa.Delete:
    """Removes the person's summary."""
    return sa.delete(summaries).where(summaries.c.user_id == user_id, summaries.c.scope_id == user_id)


def of_scopes(user_id: str, scope_ids: list[str]) -> sa.Select[Any]:
    """Summaries by what they are of."""
    return sa.select(summaries.c.kind, summaries.c.body, summaries.c.last_sequence, summaries.c.update_time).where(
        summaries.c.user_id == user_id, summaries.c.scope_id.in_(scope_ids)
    )


def is_alive(key: ConversationKey) -> sa.ColumnElement[bool]:
    """A conversation that was not deleted."""
    mine = (conversations.c.user_id == key.user_id) & (conversations.c.conversation_id == key.conversation_id)
    return mine & conversations.c.deleted_at.is_(None)


def _is_of(key: ConversationKey) -> sa.ColumnElement[bool]:
    return (turns.c.user_id == key.user_id) & (turns.c.conversation_id == key.conversation_id)


def _is_summary_of(key: ConversationKey) -> sa.ColumnElement[bool]:
    return (summaries.c.user_id == key.user_id) & (summaries.c.scope_id == key.conversation_id)
