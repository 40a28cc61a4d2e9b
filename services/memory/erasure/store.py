"""Erasing what a user wants forgotten, in Postgres: one call is one transaction, in which nobody writes for that user.

What deletion means here:

- Everything (no filter): messages, facts with their history, sources, embeddings, summaries and what is owed; of
  conversations and of edited messages ids and times stay. From then on no message counts that was written until then, and
  no fact that was recorded until then: what is under way, repeated or imported later is dropped.
- Messages (`kind` message, or of a `conversation_id`): with what was made of nothing but them, see cascades.py. Without
  `before` what was written until then, there or anywhere, is not taken any more.
- Facts (`kind` fact): with their history; of a `conversation_id` those that were learned from nothing else. What is there of
  messages is not learned from again.
- `before`: what was recorded before that time, whatever arrives later; a message that was deleted does not come back.

Invariant: the transaction excludes everybody who writes text of the user or what is made of it, so nothing from before
slips past; evictions are owed in it until the working set has forgotten too. A deadlock with the upkeep that is being
settled is tried again; nothing was done then.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.cascades import drop_facts, drop_groundless, drop_upkeep, follow_lost_turns, renounce_portrait
from services.memory.erasure import statements
from services.memory.people import Erased, erased_until, exclude_writers, note_erasure, touch_person
from services.memory.store import Eviction
from services.memory.turns import ConversationKey
from services.runtime.database import Database
from services.runtime.fairness import FairGate

# What is left of the pool is for those whose calls are short.
_ERASURES_AT_ONCE: Final = 2
_BATCH: Final = 10_000
_TRIES: Final = 3
_DEADLOCK: Final = "40P01"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be erased: each that is set narrows it."""

    conversation_id: str | None = None
    kind: Literal["fact", "message"] | None = None
    before: datetime | None = None

    @property
    def is_everything(self) -> bool:
        """Whether nothing narrows it."""
        return self == Wanted()


@dataclass(frozen=True, slots=True)
class Gone:
    """What was erased; the evictions are owed until they are settled."""

    facts: int
    messages: int
    evictions: Sequence[Eviction]


class ErasureStore:
    """What is remembered, to be erased; each method acts for the user that it names.

    A few erasures run at a time in a process, and one of a user: the others wait here, and hold no connection.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._gate = FairGate(size=_ERASURES_AT_ONCE)

    async def erase(self, user_id: str, wanted: Wanted) -> Gone:
        """Erases what is wanted, all of it or nothing. Idempotent: a second time there is nothing left."""
        for _ in range(_TRIES - 1):
            try:
                return await self._erase(user_id, wanted)
            except exc.OperationalError as error:
                if getattr(error.orig, "sqlstate", None) != _DEADLOCK:
                    raise
        return await self._erase(user_id, wanted)

    async def _erase(self, user_id: str, wanted: Wanted) -> Gone:
        async with self._gate.passed(user_id), self._database.transaction(user_id=user_id) as connection:
            await exclude_writers(connection, user_id)
            return await _Erasing(connection, user_id, wanted).run()


class _Erasing:
    """One erasure, inside its transaction."""

    def __init__(self, connection: AsyncConnection, user_id: str, wanted: Wanted) -> None:
        self._connection = connection
        self._user_id = user_id
        self._wanted = wanted
        self._lost: dict[str, int] = {}
        self._messages = 0

    async def run(self) -> Gone:
        """Erases, and says what."""
        wanted = self._wanted
        if wanted.conversation_id is None and wanted.before is None:
            await note_erasure(
                self._connection, self._user_id, messages=wanted.kind != "fact", facts=wanted.kind != "message"
            )
        if wanted.is_everything:
            for statement in statements.DROP_EVERYTHING_MADE:
                while (await self._run(statement)).rowcount:
                    pass
        evictions = await self._drop_messages() if wanted.kind != "fact" else []
        facts = 0 if wanted.is_everything or wanted.kind == "fact" else await self._follow()
        facts += await self._drop_facts() if wanted.kind != "message" else 0
        await self._end(facts)
        return Gone(facts, self._messages, evictions)

    async def _drop_messages(self) -> list[Eviction]:
        covered = await self._cover()
        while True:
            values = {"covered": covered, "most": _BATCH, **self._filters()}
            rows = (await self._run(statements.DROP_TURNS, values)).all()
            for row in rows:
                self._lost[row.conversation_id] = min(row.first, self._lost.get(row.conversation_id, row.first))
            count = sum(row.count for row in rows)
            self._messages += count
            if count < _BATCH:
                break
        cut = {"conversation_ids": list(self._lost), "firsts": list(self._lost.values())}
        evicted = (await self._run(statements.CUT, cut)).all()
        return [Eviction(ConversationKey(self._user_id, row.conversation_id), row.version) for row in evicted]

    async def _cover(self) -> datetime | None:
        """Until when messages are not taken any more, by this erasure; None where it says nothing of that."""
        if self._wanted.before is not None:
            return None
        if self._wanted.conversation_id is None:
            return (await self._erased()).messages
        values = {"conversation_id": self._wanted.conversation_id}
        time: datetime | None = (await self._run(statements.COVER_CONVERSATION, values)).scalar_one_or_none()
        return time

    async def _follow(self) -> int:
        """What was made of the messages."""
        lost, is_whole = self._lost, self._wanted.before is None
        if is_whole:
            named = self._wanted.conversation_id
            here = [named] if named else (await self._run(statements.ALL_CONVERSATIONS)).scalars().all()
            lost = dict.fromkeys(here, 0)
            await drop_upkeep(self._connection, self._user_id, here)
        return await follow_lost_turns(self._connection, self._user_id, lost, whole=is_whole)

    async def _drop_facts(self) -> int:
        is_of_one = self._wanted.conversation_id is not None
        statement, drop = (
            (statements.FACTS_OF_CONVERSATION, drop_groundless) if is_of_one else (statements.FACTS, drop_facts)
        )
        total = 0
        while found := (await self._run(statement, {"most": _BATCH, **self._filters()})).scalars().all():
            total += await drop(self._connection, self._user_id, found)
        return total

    async def _end(self, facts: int) -> None:
        """What else was going to be made of what is gone."""
        wanted = self._wanted
        if wanted.kind == "fact" and wanted.before is None:
            await self._run(statements.SKIP_EXTRACTION, self._filters())
            values = {"tasks": ["extract"], "scope_id": wanted.conversation_id}
            await self._run(statements.DROP_UPKEEP_OF, values)
        if wanted.is_everything:
            await touch_person(self._connection, self._user_id)
        elif facts:
            await renounce_portrait(self._connection, self._user_id)

    async def _erased(self) -> Erased:
        return await erased_until(self._connection, self._user_id)

    def _filters(self) -> dict[str, Any]:
        return {"conversation_id": self._wanted.conversation_id, "before": self._wanted.before}

    async def _run(self, statement: Any, values: dict[str, Any] | None = None) -> Any:
        return await self._connection.execute(statement, {"user_id": self._user_id, **(values or {})})
