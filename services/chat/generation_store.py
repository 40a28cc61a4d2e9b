"""Every statement about a generation after its beginning: its life, its end, and what is read for it and from it.

Owns the fence. Invariants: a generation is finished once, by the process that owns it, or closed once its lease has
expired; what lost its generation writes nothing; every end defers the job that tells memory, in the same transaction. One
public method is one transaction.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
import structlog
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.records import Failure, Message, Timings, Turn, Usage
from services.chat.rows import TURN, message_of, turn_of
from services.chat.schema import conversations, generations, messages
from services.runtime.calls import current_request_id
from services.runtime.database import DATABASE_FAILURES, Database, interval
from services.runtime.errors import ServiceError, reason_name, to_service_error
from services.runtime.jobs import Jobs

log = structlog.get_logger(__name__)

RECORD_TURN: Final = "record_turn"
FORGET_CONVERSATION: Final = "forget_conversation"
_FINISH_WAITS_SECONDS: Final = (0.1, 0.4, 1.5)
_SWEPT_AT_ONCE: Final = 100
_INTERRUPTED: Final = reason_name(reasons.ERROR_REASON_GENERATION_INTERRUPTED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a generation ended: with a failure or, without one, well."""

    text: str
    incomplete_reason: str | None
    usage: Usage | None
    timings: Timings
    degraded: Sequence[str]
    failure: Failure | None = None


# In text, since these unnest arrays: one statement for all the generations of a process.
_RENEW: Final = sa.text(
    "update generations set lease_expire_time = now() + make_interval(secs => :lease_seconds)"
    " where id = any(cast(:ids as uuid[])) and status = 'running' and owner = :owner returning cast(id as text)"
)
_SAVE_TEXTS: Final = sa.text(
    "update messages set text = written.text"
    " from unnest(cast(:ids as uuid[]), cast(:texts as text[])) as written (generation_id, text)"
    " join generations on generations.id = written.generation_id"
    " where messages.id = generations.reply_message_id and messages.generation_id = generations.id"
    " and messages.status = 'generating'"
)


class _LostGeneration(Exception):
    """The generation is not this process's any more; the transaction is to leave no trace."""


def interrupted(generation_id: str) -> Failure:
    """The failure of a generation whose process died or had to stop."""
    return Failure(
        _INTERRUPTED,
        "The reply was interrupted. Repeat the call with the same request id.",
        {"generation_id": generation_id},
        1.0,
    )


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """The database's failures as ServiceErrors: for tasks, which have no interceptor around them."""
    try:
        yield
    except DATABASE_FAILURES as error:
        raise to_service_error(error, current_request_id()) from error


class GenerationStore:
    """The generations in the database.

    `owner` names this process; `lease_seconds` is how long it is believed after a sign of life. At most `concurrency`
    ends are saved at a time; the others wait here, in order, and not at the connection pool, whose patience is short.
    """

    def __init__(self, database: Database, jobs: Jobs, *, owner: str, lease_seconds: float, concurrency: int) -> None:
        self.owner = owner
        self._lease_seconds = lease_seconds
        self.lease_expire_time = sa.func.now() + interval(lease_seconds)
        self._database = database
        self._jobs = jobs
        self._gate = asyncio.Semaphore(concurrency)

    async def finish_turn(self, turn: Turn, outcome: Outcome) -> Message | None:
        """Saves the end of a generation of this process and returns the reply as saved.

        None, and nothing written, when the generation is not this process's any more: closed by another, or its
        conversation deleted. Tried again for two seconds; then raises ServiceError.
        """
        for wait_seconds in _FINISH_WAITS_SECONDS:
            try:
                return await self._finish_once(turn, outcome)
            except ServiceError as error:
                # Also a deadlock or a lost connection: whether it was committed after all, the fence knows.
                log.warning("generation.finish_retried", generation_id=turn.generation.id, error=type(error).__name__)
            await asyncio.sleep(wait_seconds)
        return await self._finish_once(turn, outcome)

    async def _finish_once(self, turn: Turn, outcome: Outcome) -> Message | None:
        try:
            with _translated():
                async with self._gate, self._database.transaction(user_id=turn.generation.user_id) as connection:
                    return await self._finish(connection, turn, outcome)
        except _LostGeneration:
            return None

    async def _finish(self, connection: AsyncConnection, turn: Turn, outcome: Outcome) -> Message:
        generation = turn.generation
        # The conversation first, as a deletion locks it first: no deadlock between the two.
        await _one(
            connection,
            conversations.update()
            .where(conversations.c.id == generation.conversation_id, conversations.c.user_id == generation.user_id)
            .values(last_message_time=sa.func.now(), update_time=sa.func.now())
            .returning(conversations.c.id),
        )
        await _one(
            connection,
            generations.update()
            .where(
                generations.c.id == generation.id,
                generations.c.user_id == generation.user_id,
                generations.c.status == "running",
                generations.c.owner == self.owner,
            )
            .values(_ended(outcome.failure) | {"degraded": list(outcome.degraded)})
            .returning(generations.c.id),
        )
        saved = await _one(
            connection,
            messages.update()
            .where(
                messages.c.id == turn.reply.id,
                messages.c.user_id == generation.user_id,
                messages.c.generation_id == generation.id,
            )
            .values(_written(outcome))
            .returning(*messages.c),
        )
        await self._defer_record(connection, generation.conversation_id, turn.user_message.sequence)
        return message_of(saved)

    async def _defer_record(self, connection: AsyncConnection, conversation_id: str, user_sequence: int) -> None:
        await self._jobs.defer(connection, RECORD_TURN, conversation_id=conversation_id, last_sequence=user_sequence + 1)

    @contextlib.asynccontextmanager
    async def _of_service(self) -> AsyncIterator[AsyncConnection]:
        with _translated():
            async with self._database.service_transaction() as connection:
                yield connection

    async def renew_leases(self, texts: Mapping[str, str | None]) -> set[str]:
        """Tells that these generations of this process live, and saves what they have written since the last time.

        `texts` holds each one's text so far, None where nothing is new. Returns those that are still this process's own;
        nothing is written of the others.
        """
        async with self._of_service() as connection:
            renewed = await connection.execute(_RENEW, self._parameters(list(texts)))
            ours = set(renewed.scalars())
            written = {key: text for key, text in texts.items() if text is not None and key in ours}
            if written:
                await connection.execute(_SAVE_TEXTS, {"ids": list(written), "texts": list(written.values())})
        return ours

    def _parameters(self, generation_ids: Sequence[str]) -> dict[str, object]:
        return {"ids": generation_ids, "owner": self.owner, "lease_seconds": self._lease_seconds}

    async def close_expired(self, *, conversation_id: str | None = None) -> int:
        """Closes generations that nobody keeps alive, of one conversation or of all; returns how many. At most 100."""
        dead = (
            sa.select(generations.c.id, generations.c.conversation_id, generations.c.reply_message_id)
            .where(generations.c.status == "running", generations.c.lease_expire_time < sa.func.now())
            .limit(_SWEPT_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        if conversation_id is not None:
            dead = dead.where(generations.c.conversation_id == conversation_id)
        async with self._of_service() as connection:
            found = (await connection.execute(dead)).all()
            for row in found:
                sequence = await close_generation(connection, row.id)
                await self._defer_record(connection, row.conversation_id, sequence - 1)
        if found:
            log.warning("generations.closed_as_interrupted", count=len(found))
        return len(found)

    async def read_turn(self, generation_id: str, *, user_id: str) -> Turn | None:
        """A generation of the user with its messages; None when there is none, or its conversation was deleted."""
        statement = TURN.where(generations.c.id == generation_id, generations.c.user_id == user_id)
        async with self._database.transaction(user_id=user_id) as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
        return None if row is None else turn_of(row)


async def close_generation(connection: AsyncConnection, generation_id: str) -> int:
    """Closes a generation whose lease has expired, with what is saved of its reply; returns the reply's sequence.

    0 when it was renewed or ended meanwhile.
    """
    closed = await connection.execute(
        generations.update()
        .where(
            generations.c.id == generation_id,
            generations.c.status == "running",
            generations.c.lease_expire_time < sa.func.now(),
        )
        .values(_ended(interrupted(generation_id)))
        .returning(generations.c.reply_message_id)
    )
    reply_id = closed.scalar_one_or_none()
    if reply_id is None:
        return 0
    marked = await connection.execute(
        messages.update()
        .where(messages.c.id == reply_id)
        .values(status="incomplete", incomplete_reason=_INTERRUPTED)
        .returning(messages.c.sequence)
    )
    return int(marked.scalar_one())


async def _one(connection: AsyncConnection, statement: Any) -> RowMapping:
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise _LostGeneration
    return row


def _ended(failure: Failure | None) -> dict[str, Any]:
    if failure is None:
        return {"status": "completed", "end_time": sa.func.now()}
    return {
        "status": "failed",
        "end_time": sa.func.now(),
        "reason": failure.reason,
        "error": failure.message,
        "error_metadata": dict(failure.metadata),
        "retry_delay_seconds": failure.retry_delay_seconds,
    }


def _written(outcome: Outcome) -> dict[str, Any]:
    reason = outcome.failure.reason if outcome.failure else outcome.incomplete_reason
    usage = outcome.usage
    return {
        "text": outcome.text,
        "status": "incomplete" if reason else "complete",
        "incomplete_reason": reason,
        "input_tokens": usage and usage.input_tokens,
        "cached_tokens": usage and usage.cached_tokens,
        "output_tokens": usage and usage.output_tokens,
        "reasoning_tokens": usage and usage.reasoning_tokens,
        "time_to_first_token_ms": outcome.timings.time_to_first_token_ms,
        "processing_time_ms": outcome.timings.processing_time_ms,
    }
