"""Everything that is remembered of a user, out of Postgres: the state of one moment, in bounded memory.

Owns the pages. Invariants: all pages are of one snapshot, a read-only transaction; messages come in the order of
conversation and place, then facts, each before its versions; what has expired is not told. A page holds some MiB at most,
whatever the messages. A snapshot keeps a connection, and the database from tidying up: so few exports run at once, and
whoever reads them is given a time, see servicer.py.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from parley.type.v1 import error_reason_pb2 as reasons
from services.memory.facts.statements import fact_of
from services.memory.records import Fact
from services.memory.transfer import statements
from services.memory.transfer.records import SaidMessage
from services.memory.turns import Turn
from services.runtime.database import Database
from services.runtime.errors import Unavailable

Page = Sequence[SaidMessage] | Sequence[Fact]

_FIRST_ID: Final = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True)
class ExportLimits:
    """`at_once` exports run in a process, one of a user, so that nobody keeps the others out; the next waits `wait_seconds`.

    A page is to be taken within `page_seconds`, the whole within `whole_seconds`. A page has at most `page_records`, and
    ends with the message that makes it `page_bytes` long.
    """

    at_once: int = 2
    wait_seconds: float = 5.0
    page_seconds: float = 20.0
    whole_seconds: float = 300.0
    page_records: int = 500
    page_bytes: int = 2_000_000


class ExportStore:
    """What is remembered, to be read as a whole."""

    def __init__(self, database: Database, limits: ExportLimits) -> None:
        self._database = database
        self._gate = asyncio.Semaphore(limits.at_once)
        self._exporting = set[str]()
        self.limits = limits

    async def pages(self, user_id: str) -> AsyncGenerator[Page, None]:
        """Everything of a user, page by page; close it when done. Raises Unavailable (SERVICE_BUSY) before the first."""
        async with self._turn(user_id), self._database.snapshot(user_id=user_id) as connection:
            place: dict[str, Any] = {"conversation_id": _FIRST_ID, "sequence": 0}
            while messages := await self._messages(connection, {"user_id": user_id, **place}):
                yield messages
                place = {"conversation_id": messages[-1].conversation_id, "sequence": messages[-1].turn.sequence}
            for is_version in (False, True):
                after_id = _FIRST_ID
                while facts := await self._facts(connection, user_id, is_version=is_version, after_id=after_id):
                    yield facts
                    after_id = facts[-1].id

    @asynccontextmanager
    async def _turn(self, user_id: str) -> AsyncIterator[None]:
        if user_id in self._exporting:
            raise _busy()
        self._exporting.add(user_id)
        try:
            async with self._place():
                yield
        finally:
            self._exporting.discard(user_id)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.limits.wait_seconds):
                await self._gate.acquire()
        except TimeoutError:
            raise _busy() from None
        try:
            yield
        finally:
            self._gate.release()

    async def _messages(self, connection: AsyncConnection, values: dict[str, Any]) -> Sequence[SaidMessage]:
        bounds = {"most": self.limits.page_records, "most_bytes": self.limits.page_bytes}
        rows = (await connection.execute(statements.MESSAGES, values | bounds)).all()
        return [_said(row) for row in rows]

    async def _facts(self, connection: AsyncConnection, user_id: str, *, is_version: bool, after_id: str) -> Sequence[Fact]:
        values = {"user_id": user_id, "is_version": is_version, "after_id": after_id, "most": self.limits.page_records}
        return [fact_of(row) for row in (await connection.execute(statements.FACTS, values)).mappings()]


def _said(row: Any) -> SaidMessage:
    turn = Turn(
        message_id=row.message_id,
        sequence=row.sequence,
        role=row.role,
        text=row.body,
        revision=row.revision,
        create_time=row.create_time,
        token_count=row.token_count,
    )
    return SaidMessage(row.conversation_id, turn)


def _busy() -> Unavailable:
    return Unavailable(
        "Other exports are under way. Try again.",
        reasons.ERROR_REASON_SERVICE_BUSY,
        metadata={"work": "export"},
        retry_delay_seconds=5,
    )
