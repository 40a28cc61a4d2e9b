"""Every statement about the end of a generation, and what is read of it; lease_store.py has its life.

Owns the fence. Invariants: a generation is finished once, by the process that owns it in its latest epoch; what lost its
generation writes nothing; the end settles its cost, what the provider is to forget and what memory is to be told, in the
same transaction. One public method is one transaction.
"""

import asyncio
import contextlib
from collections.abc import Collection, Iterator
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.events import SavedEvents, end_of, plain_events
from services.chat.records import Failure, Generation, Message, ToolCall, Turn
from services.chat.rows import TURN, turn_of
from services.chat.schema import generations, tool_calls
from services.chat.turn_end import FINISH, Outcome, finish_values, reply_of
from services.chat.unrecorded import Unrecorded
from services.runtime.calls import current_request_id
from services.runtime.database import DATABASE_FAILURES, Database, interval
from services.runtime.errors import ServiceError, Unauthenticated, reason_name, to_service_error
from services.runtime.jobs import Jobs
from services.runtime.lanes import UserTransaction

log = structlog.get_logger(__name__)

RECORD_TURN: Final = "record_turn"
TITLE_CONVERSATION: Final = "title_conversation"
FORGET_CONVERSATION: Final = "forget_conversation"
FORGET_RESPONSES: Final = "forget_responses"
_FINISH_WAITS_SECONDS: Final = (0.1, 0.4, 1.5)
_INTERRUPTED: Final = reason_name(reasons.ERROR_REASON_GENERATION_INTERRUPTED)


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
def translated() -> Iterator[None]:
    """The database's failures as ServiceErrors: for tasks, which have no interceptor around them."""
    try:
        yield
    except DATABASE_FAILURES as error:
        raise to_service_error(error, current_request_id()) from error


class GenerationStore:
    """The generations in the database.

    `owner` names this process; `lease_seconds` is how long it is believed after a sign of life. At most `concurrency`
    ends are saved at a time; the others wait here, in order, and not at the connection pool, whose patience is short.
    `title_jobs` is asked for a title after the first turn that ends well; None where the model gives none.
    """

    def __init__(  # noqa: PLR0913 - collaborators
        self,
        database: Database,
        jobs: Jobs,
        unrecorded: Unrecorded,
        *,
        title_jobs: Jobs | None,
        owner: str,
        lease_seconds: float,
        concurrency: int,
    ) -> None:
        self.owner = owner
        self._jobs = jobs
        self.lease_seconds = lease_seconds
        self.lease_expire_time = sa.func.now() + interval(lease_seconds)
        self._database = database
        self._unrecorded = unrecorded
        self._title_jobs = title_jobs
        self._lane = database.lane(size=concurrency)

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
            with translated():
                async with self._lane.transaction(user_id=turn.generation.user_id) as transaction:
                    return await self._finish(transaction, turn, outcome)
        except _LostGeneration:
            return None
        except Unauthenticated:
            # The user was purged meanwhile (the fence refused what it cost), and the generation with everything else.
            return None

    async def _finish(self, transaction: UserTransaction, turn: Turn, outcome: Outcome) -> Message:
        generation = turn.generation
        asks_title = self._title_jobs is not None and outcome.has_succeeded
        values = finish_values(turn, outcome, owner=self.owner, asks_title=asks_title)
        row = await transaction.fetch_one(FINISH, values)
        if row is None:
            raise _LostGeneration
        needs_title, *saved = row
        if self._title_jobs is not None and needs_title:
            ids = {"generation_id": generation.id, "user_id": generation.user_id}
            await self._title_jobs.defer(transaction.connection, TITLE_CONVERSATION, **ids)
        await self._forget(transaction.connection, generation, outcome)
        # Before the commit: should it fail, there is nothing to be read, and the list forgets it.
        self._unrecorded.note(generation.conversation_id)
        return reply_of(turn, outcome, saved)

    async def _forget(self, connection: AsyncConnection, generation: Generation, outcome: Outcome) -> None:
        """What nobody needs after the end: here, and by a job at the provider."""
        if outcome.response_ids:
            await defer_forgetting(self._jobs, connection, outcome.response_ids, user_id=generation.user_id)
        if outcome.failure is None and any(isinstance(part, ToolCall) for part in outcome.told.parts):
            # Of a failed reply they stay: the next attempt goes on after them.
            calls = tool_calls.c
            await connection.execute(
                tool_calls.delete().where(calls.generation_id == generation.id, calls.user_id == generation.user_id)
            )

    async def forget_responses(self, response_ids: Collection[str], *, user_id: str) -> None:
        """Has the provider delete these responses, whose generation is gone. Raises ServiceError."""
        if response_ids:
            with translated():
                async with self._database.service_transaction() as connection:
                    await defer_forgetting(self._jobs, connection, response_ids, user_id=user_id)

    async def read_turn(self, generation_id: str, *, user_id: str) -> Turn | None:
        """A generation of the user with its messages; None when there is none, or its conversation was deleted."""
        statement = TURN.where(generations.c.id == generation_id, generations.c.user_id == user_id)
        async with self._database.transaction(user_id=user_id) as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
        return None if row is None else turn_of(row)

    async def read_events(self, generation_id: str, *, user_id: str) -> tuple[Turn, SavedEvents] | None:
        """A generation of the user as `read_turn`, and what was saved of its events."""
        table = generations.c
        statement = TURN.add_columns(table.event_lengths, table.other_events, table.superseded_text).where(
            table.id == generation_id, table.user_id == user_id
        )
        async with self._database.transaction(user_id=user_id) as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
        if row is None:
            return None
        return turn_of(row), SavedEvents(row["event_lengths"], row["other_events"], row["superseded_text"])


async def supersede(connection: AsyncConnection, turn: Turn) -> None:
    """In the transaction that begins the next attempt: keeps what the reply of this one was, which leaves the message.

    Its terminal event, made of the message, joins the others.
    """
    generation, reply = turn.generation, turn.reply
    last = end_of(turn, generation.last_sequence or len(plain_events(turn)) + 1, generation.failure)
    others = sa.func.coalesce(generations.c.other_events, sa.literal([], generations.c.other_events.type))
    await connection.execute(
        generations.update()
        .where(generations.c.id == generation.id, generations.c.user_id == generation.user_id)
        .values(superseded_text=reply.text, other_events=sa.func.array_append(others, last))
    )


async def defer_forgetting(jobs: Jobs, connection: AsyncConnection, response_ids: Collection[str], *, user_id: str) -> None:
    """Has the provider delete these responses, by a job in this transaction. A purge of the user waits for it."""
    await jobs.defer(connection, FORGET_RESPONSES, response_ids=",".join(sorted(response_ids)), user_id=user_id)
