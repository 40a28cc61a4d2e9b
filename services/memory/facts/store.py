"""The facts in Postgres. One public method is one transaction; its SQL stands in statements.py.

Owns the order of changes: whatever changes facts of a user excludes all others who write for that user, in every process, so
that two changes never meet and none slips past an erasure; see people.py. What is read is of one moment.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from services.memory.facts import statements
from services.memory.facts.changes import MAX_CHANGES, Add, Basis, Change, FactEdit, Outcome
from services.memory.facts.held import FactLimits, HeldFacts, Request
from services.memory.facts.refusals import memory_not_found, too_many_facts
from services.memory.people import exclude_writers
from services.memory.records import Fact, Stamp
from services.memory.turns import Turn
from services.runtime.database import Database
from services.runtime.fairness import FairGate

Key = tuple[datetime, str]
"""Where a page begins: after the fact with this time and id."""


@dataclass(frozen=True, slots=True)
class FoundMessage:
    """A message of memory, with its conversation and when it was recorded."""

    turn: Turn
    conversation_id: str
    record_time: datetime


# More would only wait for each other in the database.
_CHANGES_AT_ONCE: Final = 4


class FactStore:
    """The facts of every user; each method acts for the one that it names.

    A few changes are made at a time in a process, and one of a user: the others wait here, and hold no connection.
    """

    def __init__(self, database: Database, limits: FactLimits, *, portray_delay_seconds: float) -> None:
        self._database = database
        self._limits = limits
        self._portray_delay_seconds = portray_delay_seconds
        self._gate = FairGate(size=_CHANGES_AT_ONCE)

    async def change(self, user_id: str, changes: Sequence[Change], *, basis: Basis | None) -> list[Outcome]:
        """Makes changes, in their order, 200 at most; says what came of each. Idempotent: what is so already stays so.

        With a basis they are made once, together with noting how far was extracted. Raises Stale where its messages are not
        there any more as they were, or another process was faster.
        """
        if len(changes) > MAX_CHANGES:
            raise ValueError(f"at most {MAX_CHANGES} changes at a time")
        async with self._held(user_id) as held:
            if basis is not None:
                await held.check(basis)
            return await held.make(changes)

    async def add(self, user_id: str, content: Add, *, request: Request | None) -> Fact:
        """Adds a fact, or returns the one that the request added before, or the one with the same words, merged.

        Raises InvalidArgument where its source was deleted, AlreadyExists (REQUEST_ID_REUSED) and ResourceExhausted
        (LIMIT_REACHED).
        """
        async with self._held(user_id) as held:
            made = None if request is None else await held.made_by(request)
            if made is not None:
                return await held.read(made)
            for source in content.sources:
                await held.check_source(source)
            [outcome] = await held.make([content])
            if outcome.result == "full":
                raise too_many_facts(self._limits.facts)
            if request is not None:
                await held.name_request(outcome.fact_id, request)
            return await held.read(outcome.fact_id)

    async def edit(self, user_id: str, fact_id: str, edit: FactEdit, *, stamped_by: Stamp) -> Fact:
        """Changes a current fact; what it said stays in its history. Idempotent.

        Raises NotFound, and AlreadyExists (MEMORY_EXISTS) where another current fact has these words.
        """
        async with self._held(user_id) as held:
            await held.edit(fact_id, edit, stamped_by=stamped_by)
            return await held.read(fact_id)

    async def delete(self, user_id: str, fact_id: str) -> None:
        """Deletes a fact with its history, or one version. Raises NotFound."""
        async with self._held(user_id) as held:
            if not await held.delete([fact_id]):
                raise memory_not_found(fact_id)

    async def expire(self, user_id: str) -> int:
        """Deletes the user's facts whose time has come, with their history, and counts them. Idempotent.

        What is owed for the facts that expire later is due when the first of them does.
        """
        async with self._held(user_id) as held:
            return await held.expire()

    async def users_with_expired(self, most: int) -> Sequence[str]:
        """Users with facts that expired and are still there: of the `most` that expired first."""
        async with self._database.service_transaction() as connection:
            return list((await connection.execute(statements.WITH_EXPIRED, {"most": most})).scalars())

    @asynccontextmanager
    async def _held(self, user_id: str) -> AsyncIterator[HeldFacts]:
        async with self._gate.passed(user_id), self._database.transaction(user_id=user_id) as connection:
            await exclude_writers(connection, user_id)
            yield HeldFacts(connection, user_id, self._limits, portray_delay_seconds=self._portray_delay_seconds)

    async def find(self, user_id: str, memory_id: str) -> Fact | FoundMessage:
        """A fact, current or not, or a message. Raises NotFound. One statement."""
        async with self._database.transaction(user_id=user_id) as connection:
            values = {"user_id": user_id, "id": memory_id}
            row = (await connection.execute(statements.FIND, values)).mappings().one()
        if row["id"] is not None:
            return statements.fact_of(row)
        if row["is_message"]:
            return _message(row)
        raise memory_not_found(memory_id)

    async def read_page(
        self, user_id: str, *, limit: int, after: Key | None = None, subject: str = "", include_closed: bool = False
    ) -> Sequence[Fact]:
        """The facts after a key, the latest recorded first, without versions. One statement."""
        wanted = {"subject": subject, "include_closed": include_closed}
        return await self._facts(statements.LIST, user_id, most=limit, **_after(after), **wanted)

    async def read_history(self, user_id: str, fact_id: str, *, limit: int, after: Key | None = None) -> Sequence[Fact]:
        """The versions of a fact after a key, the latest first. Raises NotFound without such a fact. One statement."""
        values = {"user_id": user_id, "id": fact_id, "most": limit, **_after(after)}
        async with self._database.transaction(user_id=user_id) as connection:
            rows = (await connection.execute(statements.HISTORY, values)).mappings().all()
        if not rows:
            raise memory_not_found(fact_id)
        return [statements.fact_of(row) for row in rows if row["id"] is not None]

    async def read_live(self, user_id: str, *, most: int) -> Sequence[Fact]:
        """Current facts, those that matter most first, then the latest. One statement."""
        return await self._facts(statements.LIVE, user_id, most=most)

    async def read_similar(self, user_id: str, text: str, *, most: int) -> Sequence[Fact]:
        """Current facts that share words with a text, the most alike first. One statement."""
        return await self._facts(statements.SIMILAR, user_id, most=most, text=text)

    async def _facts(self, statement: Any, user_id: str, **values: Any) -> Sequence[Fact]:
        async with self._database.transaction(user_id=user_id) as connection:
            rows = await connection.execute(statement, {"user_id": user_id, **values})
            return [statements.fact_of(row) for row in rows.mappings()]


def _after(key: Key | None) -> dict[str, Any]:
    time, fact_id = key or (None, None)
    return {"after_time": time, "after_id": fact_id}


def _message(row: Mapping[Any, Any]) -> FoundMessage:
    turn = Turn(
        message_id=row["message_id"],
        sequence=row["sequence"],
        role=row["role"],
        text=row["message_body"],
        revision=row["revision"],
        create_time=row["create_time"],
        token_count=row["token_count"],
    )
    return FoundMessage(turn, row["conversation_id"], row["message_record_time"])
