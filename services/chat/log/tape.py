"""The events of one generation as this process tells them, and whoever reads them here.

Owns the readers of a process. Invariants: a reader is a cursor, so a slow one costs no memory and slows nobody; it gets each
event once, in order, also across tapes (a reply of this process that another one took over, and the other way round); a
stream that takes nothing for too long is cut. One timer serves all readers: an idle one costs no task and no timer.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.events import HEARTBEAT, MOST_SEQUENCE, is_last_of_unknown
from services.runtime.calls import current_cutter
from services.runtime.errors import ResourceExhausted, ServiceError

_LONGEST_TICK_SECONDS: Final = 1.0


class Tape:
    """Events from the first on, of which readers may have the first `told`. Sequences are places, counted from 1.

    A tape ends in one of three ways: `has_ended` (the terminal event is told), `has_moved` (the rest is told elsewhere),
    or with a `refusal` for whoever comes for more.
    """

    __slots__ = ("events", "has_ended", "has_moved", "on_idle", "readers", "refusal", "told")

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.told = 0
        self.has_ended = False
        self.has_moved = False
        self.refusal: Callable[[int], ServiceError] | None = None
        self.readers: set[Reader] = set()
        self.on_idle: Callable[[], None] | None = None

    @classmethod
    def of_ended(cls, events: list[bytes]) -> "Tape":
        """A tape with everything on it."""
        tape = cls()
        tape.events, tape.told, tape.has_ended = events, len(events), True
        return tape

    def tell(self, upto: int) -> None:
        """Lets the readers have the events up to this sequence."""
        self.told = upto
        for reader in self.readers:
            if reader.cursor < upto:
                reader.wake()

    def end(self) -> None:
        """What is told now includes the terminal event."""
        self.has_ended = True
        self._wake_all()

    def move(self) -> None:
        """The rest is told elsewhere."""
        self.has_moved = True
        self._wake_all()

    def owes_end(self, cursor: int) -> bool:
        """Whether who comes with this cursor is to be told the terminal event, though there are no more events than that.

        So it is where nobody knows how much was told. The number of that event says who has it.
        """
        if not self.has_ended or not self.told <= cursor < MOST_SEQUENCE:
            return False
        return bool(self.events) and is_last_of_unknown(self.events[-1])

    def release(self) -> None:
        """Gives the events up; readers that are behind are refused when they come for the next."""
        self.refuse(too_slow)
        self.events = []

    def refuse(self, refusal: Callable[[int], ServiceError]) -> None:
        """Refuses whoever is not at the end; `refusal` is given the reader's place."""
        self.refusal = refusal
        self._wake_all()

    def _wake_all(self) -> None:
        for reader in self.readers:
            reader.wake()


class Reader:
    """A stream's place in a generation, and its place to wait."""

    __slots__ = ("_cutter", "_loop", "_seen", "_seen_time", "_waiter", "cursor")

    def __init__(self, cursor: int) -> None:
        self.cursor = cursor
        self._loop = asyncio.get_running_loop()
        self._cutter = current_cutter()
        self._seen = cursor
        self._seen_time = self._loop.time()
        self._waiter: asyncio.Future[bool] | None = None

    async def news(self) -> bool:
        """Waits for an event: True; or for the time of a heartbeat: False."""
        self._waiter = self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Something came."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    def tick(self, now: float, heartbeat_seconds: float, stall_seconds: float) -> None:
        """Looks after the reader: the time of a heartbeat, or of the end of all patience."""
        silent_seconds = now - self._seen_time
        if self._seen != self.cursor:
            self._seen, self._seen_time = self.cursor, now
        elif self._waiter is not None:
            if silent_seconds >= heartbeat_seconds and not self._waiter.done():
                self._seen_time = now
                self._waiter.set_result(False)
        elif silent_seconds >= stall_seconds and self._cutter is not None:
            # Its stream has not taken what it was given.
            self._cutter.cut(too_slow(self.cursor - 1))


class Readers:
    """Every reader of this process, under one timer.

    `heartbeat_seconds` is the longest silence of a stream, `stall_seconds` how long a stream may take nothing of what it
    is sent.
    """

    def __init__(self, *, heartbeat_seconds: float, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._tick_seconds = min(_LONGEST_TICK_SECONDS, heartbeat_seconds / 10, stall_seconds / 4)
        # What a tick finds may be as old as the tick is long.
        self._heartbeat_seconds = heartbeat_seconds - self._tick_seconds
        self._readers: set[Reader] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def follow(self, find: Callable[[], Awaitable[Tape]], *, after: int) -> AsyncGenerator[bytes, None]:
        """The events after a sequence to the terminal one, as they come, with heartbeats in silence.

        `find` gives the tape to read, and the next one when that has moved. Raises what `find` and the tape refuse with:
        ResourceExhausted (READER_TOO_SLOW) where the events that the reader needs were given up.
        """
        reader = Reader(after)
        self._add(reader)
        try:
            while True:
                tape, first = await find(), reader.cursor
                tape.readers.add(reader)
                try:
                    while True:
                        while reader.cursor < tape.told and tape.events:
                            reader.cursor += 1
                            yield tape.events[reader.cursor - 1]
                        if tape.has_ended and reader.cursor >= tape.told:
                            if tape.owes_end(first):
                                yield tape.events[-1]
                            return
                        if tape.refusal is not None:
                            raise tape.refusal(reader.cursor)
                        if tape.has_moved:
                            break
                        if not await reader.news():
                            yield HEARTBEAT
                finally:
                    tape.readers.discard(reader)
                    if not tape.readers and tape.on_idle is not None:
                        tape.on_idle()
        finally:
            self._readers.discard(reader)

    def _add(self, reader: Reader) -> None:
        self._readers.add(reader)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for reader in self._readers:
            reader.tick(now, self._heartbeat_seconds, self._stall_seconds)
        self._timer = loop.call_later(self._tick_seconds, self._tick) if self._readers else None


def too_slow(last_sequence: int) -> ResourceExhausted:
    """What a reader is told that is cut; `last_sequence` is of the last event that it was sent."""
    return ResourceExhausted(
        "The stream was read too slowly and was cut. Follow the generation from the last sequence that you have.",
        reasons.ERROR_REASON_READER_TOO_SLOW,
        metadata={"last_sequence": str(last_sequence)},
        retry_delay_seconds=1,
    )
