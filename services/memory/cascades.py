"""What goes with messages and facts that go: everything that was made of them, in the same transaction.

Owns the consequences of forgetting. Invariant: what was made of a message that is forgotten is not there either. An
embedding goes with its message or fact (by triggers of migration 0002); a source with its message; a fact that was learned
(`extracted`, `remembered`) with its last source, and its history with it; a version of a fact with the last message that it
was learned from; the summary of a conversation with the first message that it told of; the person's summary with any of
those, and another is owed. What the user stated or imported needs no message, and stays.

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
    "select cast(conversation_id as text) from conversations where user_id = :user_id"
    " and conversation_id = any(cast(:conversation_ids as uuid[])) and last_sequence > 0"
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
    count = await drop_facts(connection, user_id, await _groundless(connection, user_id, orphans))
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


async def renounce_portrait(connection: AsyncConnection, user_id: str) -> None:
    """Drops the person's summary, which may tell what is forgotten, owes another, and raises the person's version."""
    await connection.execute(_DROP_PORTRAIT, {"user_id": user_id})
    await owe(connection, "portray", [(user_id, user_id)])
    await touch_person(connection, user_id)


async def drop_upkeep(connection: AsyncConnection, user_id: str, conversation_ids: Sequence[str]) -> None:
    """Strikes what is owed for conversations that are deleted."""
    await connection.execute(_DROP_UPKEEP, {"user_id": user_id, "conversation_ids": list(conversation_ids)})
