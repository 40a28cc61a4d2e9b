"""Every statement about the rounds of a reply that are over, and the calls of tools in them.

Owns what a call is and what became of it. Invariants: a round's items and its calls, as `running`, are stored before the
first of them runs, and only by whoever owns the generation; a call gets one result, and the first stays. One public method
is one transaction, and can be repeated; `held_call` and `inherit_rounds` are parts of others' transactions.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeVar

import orjson
import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chat.failures import error_of
from services.chat.generation_store import interrupted, translated
from services.chat.records import Generation, ToolCall, Usage
from services.chat.schema import generations, tool_calls
from services.runtime.database import DATABASE_FAILURES, Database
from services.runtime.errors import ServiceError

log = structlog.get_logger(__name__)

Item = Mapping[str, Any]
T = TypeVar("T")

_WAITS_SECONDS: Final = (0.1, 0.4, 1.5)
# JSONB stores no NUL: an escape of it, that is, one which no backslash before it makes a mere text.
_NUL: Final = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
_COLUMNS: Final = tuple(tool_calls.c[name] for name in ("tool", "server_label", "arguments", "status", "result", "error"))


@dataclass(frozen=True, slots=True)
class Progress:
    """The rounds that are over: their items, the response that the last came from, what they cost, and every call.

    `items` ends with the calls of the last round; their outputs join it with the next.
    """

    items: Sequence[Item] = ()
    response_id: str | None = None
    usage: Usage | None = None
    calls: Mapping[str, ToolCall] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RoundOver:
    """A round that is over: what it adds to the items, of which so many are stored, and the calls that it asks for by key.

    `usage` is what all rounds cost so far; `kept_response_ids` are all responses so far that the provider keeps.
    """

    stored_items: int
    items: Sequence[Item]
    response_id: str
    usage: Usage | None
    calls: Sequence[ToolCall]
    kept_response_ids: Collection[str] = ()


class ToolCallStore:
    """The rounds and calls in the database. Raises ServiceError.

    At most `concurrency` transactions at a time; the others wait here, in order, and not at the connection pool. What the
    database refuses for a moment is tried again for two seconds.
    """

    def __init__(self, database: Database, *, concurrency: int) -> None:
        self._database = database
        self._gate = asyncio.Semaphore(concurrency)

    async def start_calls(self, generation: Generation, round_over: RoundOver) -> None:
        """Stores a round that is over, and its calls as running. Idempotent.

        Raises Unavailable (GENERATION_INTERRUPTED), and nothing is written, when the generation is not this process's any
        more.
        """
        await self._retried(lambda connection: self._start(connection, generation, round_over), generation)

    async def _start(self, connection: AsyncConnection, generation: Generation, round_over: RoundOver) -> None:
        await self._append(connection, generation, round_over)
        names = ("tool", "server_label", "arguments")
        rows = [
            {name: getattr(call, name) for name in names}
            | {"call_id": call.id, "generation_id": generation.id, "user_id": generation.user_id}
            for call in round_over.calls
        ]
        await connection.execute(insert(tool_calls).values(rows).on_conflict_do_nothing())

    async def _append(self, connection: AsyncConnection, generation: Generation, round_over: RoundOver) -> None:
        """The update is the fence, too."""
        column = generations.c
        # Here, and not only with the next renewal: the next round's response is all that the log names from now on.
        kept = {"provider_response_ids": list(round_over.kept_response_ids)} if round_over.kept_response_ids else {}
        added = sa.cast(sa.bindparam("added", _storable(round_over.items), sa.Text), pg.JSONB)
        items = column["items"]  # `.items` is a method of the collection
        is_new = sa.func.jsonb_array_length(items) == round_over.stored_items
        updated = await connection.execute(
            generations.update()
            .where(_is_ours(generation))
            .values(
                items=sa.case((is_new, items.op("||")(added)), else_=items),
                items_response_id=round_over.response_id,
                items_usage=None if round_over.usage is None else asdict(round_over.usage),
                **kept,
            )
            .returning(column.id)
        )
        if updated.scalar_one_or_none() is None:
            raise error_of(interrupted(generation.id))

    async def finish_call(self, generation: Generation, call: ToolCall) -> ToolCall:
        """Stores how a call ended, unless it is stored already; returns what is stored then. Idempotent."""
        return await self._retried(lambda connection: self._finish(connection, generation, call), generation)

    async def _finish(self, connection: AsyncConnection, generation: Generation, call: ToolCall) -> ToolCall:
        key = (generation.id, call.id)
        finished = await connection.execute(
            tool_calls.update()
            .where(_is_call(*key), tool_calls.c.status == "running")
            .values(status=call.status, result=call.result, error=call.error, end_time=sa.func.now())
            .returning(tool_calls.c.call_id, *_COLUMNS)
        )
        row = finished.mappings().one_or_none()
        if row is None:
            found = await connection.execute(_calls_of(generation).where(tool_calls.c.call_id == call.id))
            row = found.mappings().one_or_none()
        if row is None:
            # Its conversation was deleted.
            raise error_of(interrupted(generation.id))
        return _call(row)

    async def read_progress(self, generation: Generation) -> Progress:
        """What is stored of a generation's rounds: for whoever goes on with it."""
        return await self._retried(lambda connection: self._read(connection, generation), generation)

    async def _read(self, connection: AsyncConnection, generation: Generation) -> Progress:
        column = generations.c
        stored = sa.select(column["items"].label("stored"), column.items_response_id, column.items_usage).where(
            column.id == generation.id, column.user_id == generation.user_id
        )
        row = (await connection.execute(stored)).one_or_none()
        if row is None:
            raise error_of(interrupted(generation.id))
        calls = (await connection.execute(_calls_of(generation))).mappings().all()
        return Progress(
            items=row.stored,
            response_id=row.items_response_id,
            usage=None if row.items_usage is None else Usage(**row.items_usage),
            calls={each["call_id"]: _call(each) for each in calls},
        )

    async def _retried(self, work: Callable[[AsyncConnection], Awaitable[T]], generation: Generation) -> T:
        for wait_seconds in _WAITS_SECONDS:
            try:
                return await self._once(work, generation)
            except ServiceError as error:
                if not isinstance(error.__cause__, DATABASE_FAILURES):
                    raise
                log.warning("tool_calls.save_retried", generation_id=generation.id, error=type(error).__name__)
            await asyncio.sleep(wait_seconds)
        return await self._once(work, generation)

    async def _once(self, work: Callable[[AsyncConnection], Awaitable[T]], generation: Generation) -> T:
        with translated():
            async with self._gate, self._database.transaction(user_id=generation.user_id) as connection:
                return await work(connection)


@dataclass(frozen=True, slots=True)
class CallKey:
    """Names a call for the tool that stores its change and its result together."""

    generation_id: str
    call_id: str


_HELD: Final = sa.text(
    "select tool_calls.call_id, tool, server_label, arguments, tool_calls.status, result, tool_calls.error"
    " from tool_calls join generations on generations.id = tool_calls.generation_id"
    " where tool_calls.generation_id = :generation_id and call_id = :call_id and tool_calls.user_id = :user_id"
    " and generations.status = 'running' for update of tool_calls for share of generations"
)


async def held_call(connection: AsyncConnection, key: CallKey, *, user_id: str) -> "HeldCall":
    """A call for the rest of the transaction: nobody else finishes it, and its generation stays as it is.

    Raises Unavailable (GENERATION_INTERRUPTED) when its generation is over: whoever goes on with it decides.
    """
    values = {"generation_id": key.generation_id, "call_id": key.call_id, "user_id": user_id}
    row = (await connection.execute(_HELD, values)).mappings().one_or_none()
    if row is None:
        raise error_of(interrupted(key.generation_id))
    return HeldCall(connection, key, _call(row))


class HeldCall:
    """A call whose result is stored in the transaction of its change."""

    def __init__(self, connection: AsyncConnection, key: CallKey, stored: ToolCall) -> None:
        self._connection = connection
        self._key = key
        self.stored = stored

    async def succeed(self, result: str) -> None:
        """Stores the result, as part of the transaction."""
        await self._connection.execute(
            tool_calls.update()
            .where(_is_call(self._key.generation_id, self._key.call_id))
            .values(status="succeeded", result=result, end_time=sa.func.now())
        )


_INHERIT: Final = sa.text(
    "update generations set items = old.items, items_response_id = old.items_response_id from generations old"
    " where generations.id = :to_id and generations.user_id = :user_id and old.id = :from_id and old.user_id = :user_id"
)


async def inherit_rounds(connection: AsyncConnection, *, from_id: str, to_id: str, user_id: str) -> None:
    """In the transaction that begins the next attempt: it goes on after the rounds of the one before.

    What that did with tools is done; a next attempt that began anew would do it twice. What it cost stays its own.
    """
    await connection.execute(_INHERIT, {"from_id": from_id, "to_id": to_id, "user_id": user_id})
    column, names = tool_calls.c, [one.name for one in tool_calls.c if one.name != "generation_id"]
    taken = sa.select(sa.literal(to_id, sa.Uuid(as_uuid=False)), *(column[name] for name in names)).where(
        column.generation_id == from_id, column.user_id == user_id
    )
    await connection.execute(insert(tool_calls).from_select(["generation_id", *names], taken))


def _is_ours(generation: Generation) -> sa.ColumnElement[bool]:
    column = generations.c
    return sa.and_(
        column.id == generation.id,
        column.user_id == generation.user_id,
        column.epoch == generation.epoch,
        column.status == "running",
    )


def _is_call(generation_id: str, call_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(tool_calls.c.generation_id == generation_id, tool_calls.c.call_id == call_id)


def _calls_of(generation: Generation) -> sa.Select[Any]:
    return sa.select(tool_calls.c.call_id, *_COLUMNS).where(
        tool_calls.c.generation_id == generation.id, tool_calls.c.user_id == generation.user_id
    )


def _call(row: Mapping[Any, Any]) -> ToolCall:
    return ToolCall(id=row["call_id"], **{column.name: row[column.name] for column in _COLUMNS})


def _storable(items: Iterable[Item]) -> str:
    text = orjson.dumps(list(items)).decode()
    return _NUL.sub(r"\1", text) if "\\u0000" in text else text
