"""One reply that is being written, and everybody who reads it.

Owns the events of a generation while it runs, each held once however many read it. Invariants: sequences count 1, 2, 3 …;
the first event is `started`, the last is the only terminal one; a reader is a cursor, so a slow one costs no memory and
slows nobody. It refuses to keep events for ever: after `release` a reader that is behind is cut.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.records import Failure, Message, Timings, Turn
from services.chat.responses import (
    HEARTBEAT,
    Event,
    cancelled_event,
    completed_event,
    failed_event,
    started_event,
    text_event,
    usage_event,
)
from services.runtime.errors import ResourceExhausted


@dataclass(frozen=True, slots=True)
class Ending:
    """How a reply ended. Without a failure and without a saved reply: its conversation was deleted."""

    reply: Message | None
    failure: Failure | None


class Reply:
    """A reply being written. `arrival` is when its call came, on the loop's clock; `turn` is what it answers."""

    def __init__(self, turn: Turn, *, arrival: float, heartbeat_seconds: float, on_idle: Callable[[], None]) -> None:
        self.turn = turn
        self.degraded: Sequence[str] = ()
        self.is_finishing = False
        self._loop = asyncio.get_running_loop()
        self._arrival = arrival
        self._first_text_time: float | None = None
        self._heartbeat_seconds = heartbeat_seconds
        self._on_idle = on_idle
        self._texts: list[str] = []
        self._length = 0
        self._saved_length = 0
        self._events: list[Event] = []
        self._last_sequence = 0
        self._is_released = False
        self._readers: set[_Reader] = set()
        self._ending: asyncio.Future[Ending] = self._loop.create_future()

    @property
    def text(self) -> str:
        """What was written so far."""
        return "".join(self._texts)

    def unsaved_text(self) -> str | None:
        """What was written so far; None when all of it is saved."""
        return None if self._length == self._saved_length else self.text

    def note_saved(self, text: str) -> None:
        """Notes that so much of the reply is saved."""
        self._saved_length = len(text)

    @property
    def length(self) -> int:
        """Characters written so far."""
        return self._length

    @property
    def has_readers(self) -> bool:
        """Whether a stream is open on it."""
        return bool(self._readers)

    @property
    def has_ended(self) -> bool:
        """Whether the terminal event is published."""
        return self._ending.done()

    @property
    def is_released(self) -> bool:
        """Whether the events were given up; the database has the reply."""
        return self._is_released

    def timings(self) -> Timings:
        """How long it took until now."""
        first = 0.0 if self._first_text_time is None else self._first_text_time - self._arrival
        return Timings(int(first * 1000), int((self._loop.time() - self._arrival) * 1000))

    def start(self, degraded: Sequence[str]) -> None:
        """Publishes `started`."""
        self.degraded = degraded
        self._publish(started_event(self.turn, degraded))

    def write(self, text: str) -> None:
        """Publishes more text; not empty."""
        if self._first_text_time is None:
            self._first_text_time = self._loop.time()
        self._texts.append(text)
        self._length += len(text)
        self._publish(text_event(self._last_sequence + 1, text))

    def end(self, ending: Ending) -> None:
        """Publishes what is left to say and the terminal event. Called once."""
        if self._last_sequence == 0:
            self.start(self.degraded)
        if ending.reply is not None and ending.reply.usage is not None:
            self._publish(usage_event(self._last_sequence + 1, ending.reply.usage))
        last = self._last_sequence + 1
        self._ending.set_result(ending)
        if ending.failure is not None:
            self._publish(failed_event(last, ending.failure, ending.reply))
        elif ending.reply is None:
            self._publish(cancelled_event(last, None))
        else:
            self._publish(completed_event(last, ending.reply))

    def release(self) -> None:
        """Gives the events up, after the end. Readers that are behind are cut when they come for the next."""
        self._events = []
        self._texts = []
        self._is_released = True

    def _publish(self, event: Event) -> None:
        self._events.append(event)
        self._last_sequence = event.sequence
        for reader in self._readers:
            reader.wake()

    async def ended(self) -> Ending:
        """Waits for the end. A caller that stops waiting changes nothing."""
        return await asyncio.shield(self._ending)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Every event from the first on, as it comes, with heartbeats in silence.

        Raises ResourceExhausted (READER_TOO_SLOW) when the events that the reader needs were given up.
        """
        reader, cursor = _Reader(self._loop, self._heartbeat_seconds), 0
        self._readers.add(reader)
        try:
            while True:
                while cursor < len(self._events):
                    yield self._events[cursor]
                    cursor += 1
                if self._is_released and cursor < self._last_sequence:
                    raise _too_slow(cursor)
                if self._ending.done():
                    return
                if not await reader.news():
                    yield HEARTBEAT
        finally:
            reader.close()
            self._readers.discard(reader)
            if self._ending.done() and not self._readers:
                self._on_idle()


class _Reader:
    """A stream's place to wait. One timer a heartbeat, not one an event."""

    __slots__ = ("_heartbeat_seconds", "_last_time", "_loop", "_timer", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop, heartbeat_seconds: float) -> None:
        self._loop = loop
        self._heartbeat_seconds = heartbeat_seconds
        self._last_time = loop.time()
        self._waiter: asyncio.Future[bool] | None = None
        self._timer = loop.call_later(heartbeat_seconds, self._beat)

    async def news(self) -> bool:
        """Waits for an event: True; or for the time of a heartbeat: False."""
        self._last_time = self._loop.time()
        self._waiter = self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """An event came."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    def close(self) -> None:
        """Nobody waits here any more."""
        self._timer.cancel()

    def _beat(self) -> None:
        now = self._loop.time()
        due = self._last_time + self._heartbeat_seconds
        if due <= now:
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(False)
            due = now + self._heartbeat_seconds
        self._timer = self._loop.call_at(due, self._beat)


def _too_slow(last_sequence: int) -> ResourceExhausted:
    return ResourceExhausted(
        "The stream was read too slowly and was cut. The reply is saved: repeat the call with the same request id.",
        reasons.ERROR_REASON_READER_TOO_SLOW,
        metadata={"last_sequence": str(last_sequence)},
        retry_delay_seconds=1,
    )
