"""Turns: what a call gets, whether it began the turn or came back to it.

Owns the choice between a reply that this process writes, one that another process writes, and one that has ended. Invariant:
the same request id leads to the same turn by every way. How a reply of another process is followed is hidden in
`_Followed`.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.generation_store import GenerationStore
from services.chat.generations import Generations
from services.chat.model import ReplyOptions
from services.chat.records import Turn
from services.chat.reply import Ending, Reply
from services.chat.responses import HEARTBEAT, Event, deleted_events, replayed_events
from services.chat.turn_store import TurnDraft, TurnStore
from services.runtime.calls import detached
from services.runtime.errors import reason_name

_FIRST_POLL_SECONDS = 0.05
_LONGEST_POLL_SECONDS = 1.0


class Answer(Protocol):
    """What a call gets of a turn: all events from the first on, or just the end."""

    def events(self) -> AsyncGenerator[Event, None]:
        """Every event from the first on; heartbeats in silence."""

    async def ended(self) -> tuple[Turn, Ending]:
        """The turn and how it ended. A caller that stops waiting changes nothing."""


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """A turn as a call asks for it; `arrival` is when the call came, on the loop's clock."""

    draft: TurnDraft
    options: ReplyOptions
    arrival: float


class Turns:
    """Begins turns and finds them again."""

    def __init__(
        self, store: TurnStore, generation_store: GenerationStore, generations: Generations, *, heartbeat_seconds: float
    ) -> None:
        self._store = store
        self._generation_store = generation_store
        self._generations = generations
        self._heartbeat_seconds = heartbeat_seconds
        self._beginning: set[asyncio.Task[Answer]] = set()

    async def begin(self, request: TurnRequest) -> Answer:
        """The answer to a request: of a new turn, or of the one that its request id names. Raises ServiceError.

        Once asked for, the turn is begun even when the caller leaves in between: what is stored also runs.
        """
        task = asyncio.create_task(self._begin(request), context=detached())
        self._beginning.add(task)
        task.add_done_callback(self._begun)
        return await asyncio.shield(task)

    def _begun(self, task: asyncio.Task[Answer]) -> None:
        self._beginning.discard(task)
        if not task.cancelled():
            # Looked at here, since the caller may have left.
            task.exception()

    async def _begin(self, request: TurnRequest) -> Answer:
        with self._generations.place() as refusal:
            begun = await self._store.begin_turn(request.draft, refusal=refusal)
            if begun.is_new:
                reply = self._generations.start(begun.turn, begun.known, request.options, arrival=request.arrival)
                return _Live(reply, self._generation_store)
        return self._found(begun.turn, request)

    def _found(self, turn: Turn, request: TurnRequest) -> Answer:
        reply = self._generations.find(turn.generation.id)
        if reply is not None:
            return _Live(reply, self._generation_store)
        if turn.generation.status != "running":
            return _Ended(turn)
        return _Followed(lambda: self._resolved(turn, request), heartbeat_seconds=self._heartbeat_seconds)

    async def _resolved(self, turn: Turn, request: TurnRequest) -> Answer | None:
        """What became of a turn that another process answers; None while it goes on."""
        generation = turn.generation
        if self._generations.find(generation.id) is not None:
            return self._found(turn, request)
        seen = await self._generation_store.read_turn(generation.id, user_id=generation.user_id)
        if seen is None:
            return _Deleted(turn)
        if seen.generation.status == "running" and not seen.generation.is_expired:
            return None
        if seen.generation.status == "running" or _is_interrupted(seen):
            # The store lets one of all who ask begin the next attempt; the others find that.
            return await self.begin(request)
        return _Ended(seen)


def _is_interrupted(turn: Turn) -> bool:
    failure = turn.generation.failure
    return failure is not None and failure.reason == reason_name(reasons.ERROR_REASON_GENERATION_INTERRUPTED)


class _Live:
    """A reply that this process writes."""

    def __init__(self, reply: Reply, store: GenerationStore) -> None:
        self._reply = reply
        self._store = store

    def events(self) -> AsyncGenerator[Event, None]:
        return self._saved_events() if self._reply.is_released else self._reply.events()

    async def _saved_events(self) -> AsyncGenerator[Event, None]:
        """The events of a reply that ended, and was let go, before its reader came to read."""
        turn = self._reply.turn
        saved = await self._store.read_turn(turn.generation.id, user_id=turn.generation.user_id)
        for event in replayed_events(saved) if saved else deleted_events(turn):
            yield event

    async def ended(self) -> tuple[Turn, Ending]:
        return self._reply.turn, await self._reply.ended()


class _Ended:
    """A reply that has ended, from the database."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    async def events(self) -> AsyncGenerator[Event, None]:
        for event in replayed_events(self._turn):
            yield event

    async def ended(self) -> tuple[Turn, Ending]:
        return self._turn, Ending(self._turn.reply, self._turn.generation.failure)


class _Deleted:
    """A reply whose conversation was deleted while it was being followed."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    async def events(self) -> AsyncGenerator[Event, None]:
        for event in deleted_events(self._turn):
            yield event

    async def ended(self) -> tuple[Turn, Ending]:
        return self._turn, Ending(None, None)


class _Followed:
    """A reply that another process writes: watched in the database until it has ended or died, then told from there.

    It says nothing but heartbeats meanwhile, since a dead generation's events would not be those of the next attempt.
    The lease bounds the waiting: what is not renewed is dead.
    """

    def __init__(self, resolve: Callable[[], Awaitable[Answer | None]], *, heartbeat_seconds: float) -> None:
        self._resolve = resolve
        self._heartbeat_seconds = heartbeat_seconds

    async def events(self) -> AsyncGenerator[Event, None]:
        loop = asyncio.get_running_loop()
        poll_seconds, beat_time = _FIRST_POLL_SECONDS, loop.time() + self._heartbeat_seconds
        while (answer := await self._resolve()) is None:
            await asyncio.sleep(poll_seconds)
            poll_seconds = min(poll_seconds * 1.5, _LONGEST_POLL_SECONDS)
            if loop.time() >= beat_time:
                beat_time = loop.time() + self._heartbeat_seconds
                yield HEARTBEAT
        async with aclosing(answer.events()) as events:
            async for event in events:
                yield event

    async def ended(self) -> tuple[Turn, Ending]:
        poll_seconds = _FIRST_POLL_SECONDS
        while (answer := await self._resolve()) is None:
            await asyncio.sleep(poll_seconds)
            poll_seconds = min(poll_seconds * 1.5, _LONGEST_POLL_SECONDS)
        return await answer.ended()
