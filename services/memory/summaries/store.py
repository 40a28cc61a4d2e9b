"""Summaries in Postgres. One public method is one transaction; its SQL stands in statements.py.

Invariant: what is kept was made of what is still there. A summary is written in a transaction that holds the person and
the conversation, so that whatever deletes comes before it, and is seen, or after it, and finds the summary. It refuses to
write what was made of anything that changed since it was read: the answer is False, and the work is owed again.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.people import exclude_writers, hold_person, touch_people
from services.memory.summaries import statements
from services.memory.summaries.limits import SummaryLimits
from services.memory.summaries.records import KnownFact, Person, SaidTurn, Summary, SummaryPair, Talk
from services.memory.turns import ConversationKey
from services.memory.upkeep.store import owe
from services.runtime.database import Database

_MOST_TURNS: Final = 400
_MOST_FACTS: Final = 200


async def follow_recorded(
    connection: AsyncConnection, recorded: Mapping[ConversationKey, int], limits: SummaryLimits
) -> None:
    """Owes a summary, in the transaction that records, to conversations that have grown enough since their last one.

    `recorded` names the first message that is new in each. What a summary reaches over and was rewritten takes it along.
    """
    if not recorded:
        return
    values = {
        "user_ids": [key.user_id for key in recorded],
        "conversation_ids": [key.conversation_id for key in recorded],
        "sequences": list(recorded.values()),
        "after_messages": limits.after_messages,
        "every_messages": limits.every_messages,
    }
    rows = (await connection.execute(statements.AFFECTED, values)).all()
    await drop_summaries(connection, [(row[0], row[1]) for row in rows if row.is_rewritten], limits)
    await owe(connection, "summarize", [(row[0], row[1]) for row in rows], delay_seconds=limits.delay_seconds)


async def drop_summaries(
    connection: AsyncConnection, conversations: Sequence[tuple[str, str]], limits: SummaryLimits
) -> None:
    """Removes the summaries of conversations (user id, conversation id), and those of their people, which are owed anew.

    In the transaction that takes their words away, after it holds the people, whose versions it raises: a summary of the
    person that is being written of them is thrown away.
    """
    if not conversations:
        return
    user_ids = {user_id for user_id, _ in conversations}
    people = [(user_id, user_id) for user_id in user_ids]
    scopes = [*conversations, *people]
    values = {"user_ids": [user_id for user_id, _ in scopes], "scope_ids": [scope_id for _, scope_id in scopes]}
    await connection.execute(statements.DROP, values)
    await owe(connection, "portray", people, delay_seconds=limits.portrait_delay_seconds)
    await touch_people(connection, user_ids)


class SummaryStore:
    """The summaries of every user; each method acts for one."""

    def __init__(self, database: Database, limits: SummaryLimits) -> None:
        self._database = database
        self._limits = limits

    async def read(self, user_id: str, scope_id: str) -> Summary | None:
        """The summary of a conversation, or of the person (then the scope is the user)."""
        async with self._database.transaction(user_id=user_id) as connection:
            row = (await connection.execute(statements.of_scopes(user_id, [scope_id]))).one_or_none()
        return None if row is None else _summary(row)

    async def read_pair(self, key: ConversationKey) -> SummaryPair:
        """The summaries that belong into a context of this conversation. One statement."""
        scopes = [key.user_id, key.conversation_id]
        async with self._database.transaction(user_id=key.user_id) as connection:
            rows = (await connection.execute(statements.of_scopes(key.user_id, scopes))).all()
        found = {row.kind: _summary(row) for row in rows}
        return SummaryPair(found.get("person"), found.get("conversation"))

    async def read_talk(self, key: ConversationKey) -> Talk | None:
        """What is to be summed up of a conversation, up to 400 messages; None when it is unknown or deleted."""
        async with self._database.transaction(user_id=key.user_id) as connection:
            row = (await connection.execute(statements.talk(key))).one_or_none()
            if row is None:
                return None
            summary = None if row.body is None else Summary(row.body, row.summarized, row.update_time)
            after = summary.last_sequence if summary else 0
            statement = statements.turns_after(key, sequence=after, last_sequence=row.last_sequence, most=_MOST_TURNS)
            found = [SaidTurn(*turn) for turn in await connection.execute(statement)]
        return Talk(row.last_sequence, summary, found)

    async def keep_summary(self, key: ConversationKey, text: str, *, talk: Talk, turns: Sequence[SaidTurn]) -> bool:
        """Keeps a summary that was made of `turns` and of the summary that `talk` holds, and owes the person's.

        False, and nothing is changed, where any of them is not there any more as it was.
        """
        async with self._database.transaction(user_id=key.user_id) as connection:
            await hold_person(connection, key.user_id)
            if not await _are_there(connection, key, turns):
                return False
            reached = turns[-1].sequence
            if (await connection.execute(_written(key, text, reached, talk.summary))).rowcount == 0:
                return False
            if talk.last_sequence - reached >= self._limits.every_messages:
                await owe(connection, "summarize", [(key.user_id, key.conversation_id)])
        return True

    async def read_person(self, user_id: str) -> Person:
        """What is to be summed up of a person. Its version is read first: what changes meanwhile is noticed later."""
        async with self._database.transaction(user_id=user_id) as connection:
            await hold_person(connection, user_id)
            head = (await connection.execute(statements.version(user_id))).one()
            facts = await connection.execute(statements.current_facts(user_id, most=_MOST_FACTS))
            known = [KnownFact(*row) for row in facts]
        return Person(head.version, known, head.has_summary, head.digest)

    async def keep_portrait(self, user_id: str, text: str, *, version: int, digest: bytes) -> bool:
        """Keeps the summary of a person as they were at `version`; an empty one removes what they had.

        False, and nothing is changed, where something of what it was made of has changed since. What somebody is about to
        take away is waited for: writers of one user do not see each other, and do take words away where they rewrite them.
        """
        async with self._database.transaction(user_id=user_id) as connection:
            await exclude_writers(connection, user_id)
            if (await connection.execute(statements.version(user_id))).one().version != version:
                return False
            if text:
                await connection.execute(statements.write_portrait(user_id, text=text, digest=digest))
            else:
                await connection.execute(statements.drop_portrait(user_id))
        return True

    async def owe_again(self, user_id: str, scope_id: str) -> None:
        """Owes what could not be kept once more."""
        async with self._database.transaction(user_id=user_id) as connection:
            if scope_id == user_id:
                await self._owe_portrait(connection, user_id)
            else:
                await owe(connection, "summarize", [(user_id, scope_id)], delay_seconds=self._limits.delay_seconds)

    async def _owe_portrait(self, connection: AsyncConnection, user_id: str) -> None:
        await owe(connection, "portray", [(user_id, user_id)], delay_seconds=self._limits.portrait_delay_seconds)


async def _are_there(connection: AsyncConnection, key: ConversationKey, turns: Sequence[SaidTurn]) -> bool:
    held = (await connection.execute(statements.hold_conversation(key))).one_or_none()
    if held is None:
        return False
    ids, revisions = [turn.message_id for turn in turns], [turn.revision for turn in turns]
    found: int = (await connection.execute(statements.unchanged_turns(key, ids, revisions))).scalar_one()
    return found == len(turns)


def _written(key: ConversationKey, text: str, reached: int, earlier: Summary | None) -> sa.Update | sa.Insert:
    if earlier is None:
        return statements.begin_summary(key, text=text, last_sequence=reached)
    return statements.renew_summary(key, text=text, last_sequence=reached, since=earlier.update_time)


def _summary(row: sa.Row[Any]) -> Summary:
    return Summary(row.body, row.last_sequence, row.update_time)
