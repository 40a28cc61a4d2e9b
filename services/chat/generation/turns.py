"""Turns: what a call gets, whether it began the turn or came back to it.

Owns the choice between a reply that this process writes, one that another process writes, and one that has ended. Invariant:
the same request id leads to the same turn by every way, and the same generation to the same events.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.events import MOST_SEQUENCE, deleted_event, saved_events, started_event
from services.chat.generation.generations import Generations
from services.chat.generation_store import GenerationStore
from services.chat.lease_store import LeaseStore
from services.chat.log.event_feed import EventFeed
from services.chat.log.event_log import EventLog
from services.chat.log.reply import Ending
from services.chat.log.tape import Readers, Tape
from services.chat.options import ReplyOptions
from services.chat.records import Turn
from services.chat.refusals import generation_not_found
from services.chat.turn_draft import TurnDraft
from services.chat.turn_store import TurnStore
from services.runtime.calls import detached
from services.runtime.errors import reason_name

_RESCUES: Final = 3
Rescue = Callable[[str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """A turn as a call asks for it; `arrival` is when the call came, on the loop's clock."""

    draft: TurnDraft
    options: ReplyOptions
    arrival: float


@dataclass(frozen=True, slots=True)
class TurnStores:
    """The statements of a turn's life."""

    turns: TurnStore
    generations: GenerationStore
    leases: LeaseStore


class Turns:
    """Begins turns and finds them again. `rescue` takes over what is dead in a conversation."""

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        stores: TurnStores,
        generations: Generations,
        readers: Readers,
        feed: EventFeed,
        log: EventLog,
        *,
        rescue: Rescue,
    ) -> None:
        self._stores = stores
        self._generations = generations
        self._readers = readers
        self._feed = feed
        self._log = log
        self._rescue = rescue
        self._beginning: set[asyncio.Task[Answer]] = set()

    async def begin(self, request: TurnRequest) -> "Answer":
        """The answer to a request: of a new turn, or of the one that its request id names. Raises ServiceError.

        Once asked for, the turn is begun even when the caller leaves in between: what is stored also runs.
        """
        task = asyncio.create_task(self._begin(request), context=detached())
        self._beginning.add(task)
        task.add_done_callback(self._begun)
        return await asyncio.shield(task)

    def _begun(self, task: "asyncio.Task[Answer]") -> None:
        self._beginning.discard(task)
        if not task.cancelled():
            # Looked at here, since the caller may have left.
            task.exception()

    async def _begin(self, request: TurnRequest) -> "Answer":
        for _ in range(_RESCUES):
            with self._generations.place() as refusal:
                begun = await self._stores.turns.begin_turn(request.draft, refusal=refusal)
                if begun.is_new:
                    self._generations.start(begun.turn, begun.known, request.options, arrival=request.arrival)
                    return Answer(self, begun.turn, request)
            generation = begun.turn.generation
            if generation.status != "running" or not generation.is_expired:
                break
            # Once it is closed, this call begins the next attempt; where it is resumed, it is followed.
            await self._rescue(generation.conversation_id)
        return Answer(self, begun.turn, request)

    async def find(self, generation_id: str, *, user_id: str) -> "Answer":
        """A generation of the user. Raises NotFound (GENERATION_NOT_FOUND)."""
        reply = self._generations.find(generation_id)
        if reply is not None and reply.turn.generation.user_id == user_id:
            return Answer(self, reply.turn, None)
        turn = await self._stores.generations.read_turn(generation_id, user_id=user_id)
        if turn is None:
            raise generation_not_found(generation_id)
        return Answer(self, turn, None)

    async def read(self, generation_id: str, *, user_id: str) -> tuple[Turn, int]:
        """A generation of the user and the sequence of its latest event. Raises NotFound."""
        turn = await self._stores.generations.read_turn(generation_id, user_id=user_id)
        if turn is None:
            raise generation_not_found(generation_id)
        if turn.generation.status != "running":
            return turn, turn.generation.last_sequence
        reply = self._generations.find(generation_id)
        return turn, reply.tape.told if reply is not None else await self._log.latest_sequence(generation_id)

    async def cancel(self, generation_id: str, *, user_id: str) -> tuple[Turn, int]:
        """Stops a generation of the user, wherever it runs; returns it once it has ended. Idempotent. Raises NotFound."""
        turn = await self._stores.leases.request_cancel(generation_id, user_id=user_id)
        if turn is None:
            raise generation_not_found(generation_id)
        if turn.generation.status == "running":
            if self._generations.find(generation_id) is not None:
                self._generations.cancel(generation_id)
            else:
                await self._log.announce("cancel", generation_id)
            await Answer(self, turn, None).ended()
        return await self.read(generation_id, user_id=user_id)

    def is_here(self, turn: Turn) -> bool:
        """Whether this process writes the reply, or still has readers on it."""
        return self._generations.find(turn.generation.id) is not None

    async def tape(self, turn: Turn) -> Tape:
        """What to read of a generation: here, from another process, or as saved."""
        reply = self._generations.find(turn.generation.id)
        if reply is not None:
            return reply.tape
        if turn.generation.status == "running":
            return self._feed.mirror(turn)
        found = await self._stores.generations.read_events(turn.generation.id, user_id=turn.generation.user_id)
        if found is None:
            return Tape.of_ended([started_event(turn, turn.generation.degraded, is_resumable=False), deleted_event(2)])
        return Tape.of_ended(saved_events(*found))

    def follow(self, turn: Turn, *, after: int) -> AsyncGenerator[bytes, None]:
        """The events of a generation after a sequence."""
        return self._readers.follow(lambda: self.tape(turn), after=after)

    async def ended(self, turn: Turn) -> tuple[Turn, Ending]:
        """Waits for the end of a generation, wherever that comes."""
        generation = turn.generation
        while True:
            reply = self._generations.find(generation.id)
            if reply is not None and (ending := await reply.ended()) is not None:
                return turn, ending
            seen = await self._stores.generations.read_turn(generation.id, user_id=generation.user_id)
            if seen is None:
                return turn, Ending(None, None)
            if seen.generation.status != "running":
                return seen, Ending(seen.reply, seen.generation.failure, seen.generation.status == "cancelled")
            if seen.generation.is_expired:
                await self._rescue(generation.conversation_id)
            async with aclosing(self.follow(seen, after=MOST_SEQUENCE)) as nothing:
                async for _ in nothing:
                    pass


class Answer:
    """What a call gets of a turn: its events, or just the end."""

    def __init__(self, turns: Turns, turn: Turn, request: TurnRequest | None) -> None:
        self._turns = turns
        self._request = request
        self._is_elsewhere = turn.generation.status == "running" and not turns.is_here(turn)
        self.turn = turn

    def events(self, *, after: int = 0) -> AsyncGenerator[bytes, None]:
        """Every event after a sequence, serialized; heartbeats in silence."""
        return self._turns.follow(self.turn, after=after)

    async def is_over(self, *, after: int) -> bool:
        """Whether there is no event after a sequence, and there will be none."""
        tape = await self._turns.tape(self.turn)
        return tape.has_ended and after >= tape.told and not tape.owes_end(after)

    async def ended(self) -> tuple[Turn, Ending]:
        """The turn and how it ended. A caller that stops waiting changes nothing.

        When it waited for a process that died, for which a request can be repeated, that is done: the next attempt.
        """
        turn, ending = await self._turns.ended(self.turn)
        if self._request is None or not self._is_elsewhere or not _is_interrupted(ending):
            return turn, ending
        # The store lets one of all who ask begin the next attempt; the others find that.
        again = await self._turns.begin(replace(self._request, arrival=asyncio.get_running_loop().time()))
        return await again.ended()


def _is_interrupted(ending: Ending) -> bool:
    failure = ending.failure
    return failure is not None and failure.reason == reason_name(reasons.ERROR_REASON_GENERATION_INTERRUPTED)
