"""The leases of this process: kept while it lives, and taken over from processes that do not.

Owns both standing duties. Invariants: one statement renews all leases of the process; what it has lost it lets go of; a
dead process's generations are resumed or closed by whoever comes first, each by one.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import structlog

from services.chat.events import plain_events
from services.chat.generation.generations import Generations, sign_of
from services.chat.lease_store import LeaseStore, Taken
from services.chat.log.event_feed import EventFeed
from services.chat.log.event_log import EventLog, LostError
from services.chat.log.reply import Reply
from services.runtime.duties import beside, repeat
from services.runtime.errors import ServiceError

log = structlog.get_logger(__name__)

_TAKEN_AT_ONCE: Final = 20
# How much of the time that a lease which was just taken has to spare may go into reading the log.
_READING_SHARE: Final = 0.8


class LeaseClock:
    """Until when the leases of this process hold, by its own clock."""

    def __init__(self, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._renew_time = asyncio.get_running_loop().time()

    def renewed(self, sent_time: float) -> None:
        """They were renewed by a statement that was sent at this time, or there was none to renew."""
        self._renew_time = sent_time

    def is_good(self) -> bool:
        """Whether no other process can have taken anything over yet."""
        return asyncio.get_running_loop().time() < self._renew_time + self._lease_seconds


class Leases:
    """Renews and takes over."""

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        store: LeaseStore,
        generations: Generations,
        event_log: EventLog,
        feed: EventFeed,
        clock: LeaseClock,
        *,
        lease_seconds: float,
        renew_seconds: float,
    ) -> None:
        self._store = store
        self._generations = generations
        self._event_log = event_log
        self._feed = feed
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._renew_seconds = renew_seconds
        # Of a lease that was just taken: it must last until the next renewal.
        self._spare_seconds = lease_seconds - renew_seconds
        self._sweep_now = asyncio.Event()

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Keeps the leases of this process and takes over those of dead ones, inside the block."""
        renewal = repeat("lease_renewal", self._renew, interval_seconds=self._renew_seconds, jitter=0)
        # Often, so that a death is resolved well within one and a half leases; spread, so that the replicas do not meet.
        sweep = repeat("lease_sweep", self._sweep, interval_seconds=self._lease_seconds / 5, jitter=0.4)
        async with beside(renewal, sweep, self._sweep_when_told()):
            yield

    def sweep_soon(self) -> None:
        """Something was handed over."""
        self._sweep_now.set()

    async def _sweep_when_told(self) -> None:
        while True:
            await self._sweep_now.wait()
            self._sweep_now.clear()
            try:
                await self._sweep()
            except ServiceError as error:
                log.warning("duty.postponed", duty="lease_sweep", error=type(error).__name__)

    async def _renew(self) -> None:
        replies = self._generations.running()
        sent_time = asyncio.get_running_loop().time()
        if not replies:
            self._clock.renewed(sent_time)
            return
        signs = {key: sign_of(reply) for key, reply in replies.items()}
        renewed = await self._store.renew(signs)
        self._clock.renewed(sent_time)
        for key, is_cancel_requested in renewed.items():
            text = signs[key].text
            if text is not None:
                replies[key].note_saved(text)
            replies[key].note_saved_responses(signs[key].response_ids)
            if is_cancel_requested:
                self._generations.cancel(key)
        self._let_go(replies, set(replies) - set(renewed))

    def _let_go(self, replies: dict[str, Reply], lost: set[str]) -> None:
        """Lets go of what is not ours any more; what ended while its lease was being renewed is not lost."""
        for key in lost:
            # Nor is what this process has taken over again since.
            if not replies[key].is_finishing and self._generations.find(key) is replies[key]:
                # Deleted, or another's: the end that it comes to finds out which.
                self._generations.stop([key])

    async def _sweep(self) -> None:
        while (room := min(_TAKEN_AT_ONCE, self._generations.room)) > 0:
            taken, _ = await self._take(most=room)
            if taken < room:
                return

    async def rescue(self, conversation_id: str) -> bool:
        """Takes over what is dead in a conversation, and waits for its end where it is closed; whether that was so.

        Raises ServiceError.
        """
        _, replies = await self._take(most=1, conversation_id=conversation_id)
        return any([await reply.ended() is not None for reply in replies if not reply.is_resumed])

    async def _take(self, *, most: int, conversation_id: str | None = None) -> tuple[int, list[Reply]]:
        """How many were taken over, and those of them that this process goes on with."""
        sent_time = asyncio.get_running_loop().time()
        held = self._generations.running()
        taken = await self._store.take_over(most=most, held=held, conversation_id=conversation_id)
        # Together: where Redis hangs, one after the other would outlast their leases, which nobody renews before `adopt`.
        restored = await asyncio.gather(*(self._restored(one) for one in taken))
        if asyncio.get_running_loop().time() > sent_time + self._spare_seconds:
            # They would expire before they are renewed: whoever comes next takes them.
            log.warning("generations.taken_too_slowly", count=len(taken))
            return 0, []
        pairs = zip(taken, restored, strict=True)
        return len(taken), [self._adopted(one, reply) for one, reply in pairs if reply is not None]

    def _adopted(self, taken: Taken, reply: Reply) -> Reply:
        generation = taken.turn.generation
        log.warning("generation.taken_over", generation_id=generation.id, epoch=generation.epoch)
        self._generations.adopt(taken, reply)
        self._feed.release(generation.id)
        return reply

    async def _restored(self, taken: Taken) -> Reply | None:
        """The reply as it was told: from the log or, where that is not to be had, from what was saved of its text.

        None where another process has taken it over since.
        """
        generation = taken.turn.generation
        try:
            held = await self._event_log.take_over(
                generation.id, generation.epoch, within_seconds=self._spare_seconds * _READING_SHARE
            )
        except LostError:
            return None
        arrival = asyncio.get_running_loop().time() - taken.age_seconds
        reply = Reply(taken.turn, self._event_log, arrival=arrival)
        reply.response_ids.update(taken.response_ids)
        if held is not None and held.events:
            told = held.events[:-1] if held.has_ended else held.events
            reply.restore(told, position=held.position, is_logged=not held.has_ended)
        elif held is None or _has_told(taken):
            reply.knows_told = False
            if taken.turn.reply.text:
                reply.restore(plain_events(taken.turn), position="", is_logged=False)
        return reply


def _has_told(taken: Taken) -> bool:
    """Whether its row knows of something that was told, though the log is empty: Redis was away."""
    # The next attempt begins with the items of the one before.
    has_called = taken.items_response_id is not None and taken.turn.generation.attempt == 1
    return has_called or bool(taken.turn.reply.text or taken.response_ids)
