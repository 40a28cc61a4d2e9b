"""What goes with messages and facts that go: everything that was made of them, in the same transaction.

Owns the consequences of forgetting. Invariant: what was made of a message that is forgotten is not there either. An
embedding goes with its message or fact (by triggers of migration 0002); a source with its message; a fact that was learned
(`extracted`, `remembered`), or a version of one, with the last message that it was learned from; the summary of a
conversation with the first message that it told of; the person's summary with any of those, and another is owed. What the
user stated or imported needs no message, and stays: also where something that is forgotten had superseded it. A fact then
says again what it said before that.

Call these while writers are excluded (people.exclude_writers); else what a writer is about to commit is not seen.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.people import touch_person
from services.memory.upkeep.store import owe

# A message that was never heard of may be one of a turn that is under way, of which something was remembered already.
_DROP_SOURCES: Final = sa.text(
    "delete from fact_sources where user_id = :user_id and conversation_id = any(cast(:conversation_ids as uuid[]))"
    " and not exists (select from turns where turns.user_id = :user_id and turns.message_id = fact_sources.message_id)"
    " and (:whole or exists (select from forgotten_turns gone where gone.user_id = :user_id"
    " and gone.conversation_id = fact_sources.conversation_id and gone.message_id = fact_sources.message_id))"
    " returning cast(fact_id as text)"
)
_GROUNDLESS: Final = sa.text(
    "select cast(id as text) from facts where user_id = :user_id and id = any(cast(:fact_ids as uuid[]))"
    " and origin in ('extracted', 'remembered') and not exists ("
    " select from fact_sources where fact_sources.user_id = :user_id and fact_sources.fact_id = facts.id)"
)
_DROP_VERSIONS: Final = sa.text(
    "delete from facts where user_id = :user_id and id = any(cast(:fact_ids as uuid[])) and superseded_by is not null"
)
# The latest version that stands by itself. A fact that was closed stays closed; words that another current fact has are
# that one's, and of two that would have the same words one gets them.
_REVERT: Final = sa.text(
    "with left_over as (select distinct on (version.superseded_by) version.*, fact.invalidate_time as closed,"
    " fact.valid_from as superseded_from from facts version"
    " join facts fact on fact.user_id = version.user_id and fact.id = version.superseded_by"
    " where version.user_id = :user_id and version.superseded_by = any(cast(:fact_ids as uuid[]))"
    " and (version.expire_time is null or version.expire_time > clock_timestamp())"
    " and (version.origin in ('stated', 'imported') or exists (select from fact_sources source"
    " where source.user_id = version.user_id and source.fact_id = version.id))"
    " order by version.superseded_by, version.invalidate_time desc, version.id desc),"
    " chosen as (select distinct on (body_hash) * from left_over where closed is not null or not exists ("
    " select from facts other where other.user_id = left_over.user_id and other.body_hash = left_over.body_hash"
    " and other.invalidate_time is null and other.id <> left_over.superseded_by) order by body_hash, id)"
    " update facts set body = chosen.body, body_hash = chosen.body_hash, subject = chosen.subject,"
    " attribute = chosen.attribute, importance = chosen.importance, stamped_by = chosen.stamped_by,"
    " origin = chosen.origin, valid_from = chosen.valid_from, record_time = chosen.record_time,"
    " expire_time = chosen.expire_time, valid_to = case when chosen.closed is null"
    " and chosen.valid_to in (chosen.superseded_from, chosen.invalidate_time) then null else chosen.valid_to end"
    " from chosen where facts.user_id = :user_id and facts.id = chosen.superseded_by"
    " returning cast(facts.id as text) as id, cast(chosen.id as text) as version_id"
)
_MOVE_SOURCES: Final = sa.text(
    "update fact_sources set fact_id = reverted.fact_id"
    " from unnest(cast(:fact_ids as uuid[]), cast(:version_ids as uuid[])) as reverted (fact_id, version_id)"
    " where user_id = :user_id and fact_sources.fact_id = reverted.version_id"
)
_DROP_SOURCES_OF: Final = sa.text(
    "delete from fact_sources where user_id = :user_id and fact_id = any(cast(:fact_ids as uuid[]))"
)
# With the versions, so that they are counted: the foreign key would delete them too.
_DROP_FACTS: Final = sa.text(
    "delete from facts where user_id = :user_id"
    " and (id = any(cast(:fact_ids as uuid[])) or superseded_by = any(cast(:fact_ids as uuid[])))"
)
_DROP_SUMMARIES: Final = sa.text(
    "delete from summaries using unnest(cast(:conversation_ids as uuid[]), cast(:sequences as integer[]))"
    " as lost (conversation_id, sequence)"
    " where user_id = :user_id and scope_id = lost.conversation_id and summaries.last_sequence >= lost.sequence"
    " returning cast(scope_id as text)"
)
_WITH_TURNS: Final = sa.text(
    "select distinct cast(conversation_id as text) from turns where user_id = :user_id"
    " and conversation_id = any(cast(:conversation_ids as uuid[]))"
)
_DROP_PORTRAIT: Final = sa.text("delete from summaries where user_id = :user_id and scope_id = :user_id")
_DROP_UPKEEP: Final = sa.text(
    "delete from upkeep where user_id = :user_id and scope_id = any(cast(:conversation_ids as uuid[]))"
)


async def follow_lost_turns(connection: AsyncConnection, user_id: str, lost: Mapping[str, int], *, whole: bool) -> int:
    """Deletes what was made of messages that are deleted; returns how many facts, versions included.

    `lost` names, by conversation, the first sequence that is lost there; `whole`: all that was said there is. Else messages
    count as lost that are noted in `forgotten_turns`. Call it when the messages are deleted and noted, and
    `conversations.last_sequence` is set. The number of statements does not depend on the number of messages.
    """
    of = {"user_id": user_id, "conversation_ids": list(lost)}
    orphans = (await connection.execute(_DROP_SOURCES, of | {"whole": whole})).scalars().all()
    count = await drop_groundless(connection, user_id, await _groundless(connection, user_id, orphans))
    told = (await connection.execute(_DROP_SUMMARIES, of | {"sequences": list(lost.values())})).scalars().all()
    if told:
        left = (await connection.execute(_WITH_TURNS, {"user_id": user_id, "conversation_ids": told})).scalars().all()
        await owe(connection, "summarize", [(user_id, one) for one in left])
    if count or told:
        await renounce_portrait(connection, user_id)
    return count


async def _groundless(connection: AsyncConnection, user_id: str, fact_ids: Collection[str]) -> Sequence[str]:
    if not fact_ids:
        return ()
    found = await connection.execute(_GROUNDLESS, {"user_id": user_id, "fact_ids": list(set(fact_ids))})
    return found.scalars().all()


async def drop_facts(connection: AsyncConnection, user_id: str, fact_ids: Sequence[str]) -> int:
    """Deletes facts with their history, and counts them, versions included."""
    if not fact_ids:
        return 0
    return (await connection.execute(_DROP_FACTS, {"user_id": user_id, "fact_ids": list(fact_ids)})).rowcount


async def drop_groundless(connection: AsyncConnection, user_id: str, fact_ids: Collection[str]) -> int:
    """Deletes facts and versions that nothing speaks for any more, and counts what is not said any more.

    A fact whose history holds something that stands by itself stays, under its id, and says that; its embedding is owed.
    """
    if not fact_ids:
        return 0
    of = {"user_id": user_id, "fact_ids": list(fact_ids)}
    count: int = (await connection.execute(_DROP_VERSIONS, of)).rowcount
    reverted = {row.id: row.version_id for row in await connection.execute(_REVERT, of)}
    if reverted:
        facts, versions = list(reverted), list(reverted.values())
        await connection.execute(_DROP_SOURCES_OF, {"user_id": user_id, "fact_ids": facts})
        values = {"user_id": user_id, "fact_ids": facts, "version_ids": versions}
        await connection.execute(_MOVE_SOURCES, values)
        await drop_facts(connection, user_id, versions)
        await owe(connection, "embed", [(user_id, user_id)])
    return count + len(reverted) + await drop_facts(connection, user_id, [one for one in fact_ids if one not in reverted])


async def renounce_portrait(connection: AsyncConnection, user_id: str) -> None:
    """Drops the person's summary, which may tell what is forgotten, owes another, and raises the person's version."""
    await drop_portrait(connection, user_id)
    await owe(connection, "portray", [(user_id, user_id)])
    await touch_person(connection, user_id)


async def drop_portrait(connection: AsyncConnection, user_id: str) -> None:
    """Drops the person's summary, before the caller owes another and raises the person's version."""
    await connection.execute(_DROP_PORTRAIT, {"user_id": user_id})


async def drop_upkeep(connection: AsyncConnection, user_id: str, conversation_ids: Sequence[str]) -> None:
    """Strikes what is owed for conversations that are deleted."""
    await connection.execute(_DROP_UPKEEP, {"user_id": user_id, "conversation_ids": list(conversation_ids)})
