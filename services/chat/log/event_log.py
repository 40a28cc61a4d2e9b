"""The log of events in Redis: what a generation told, for readers of other processes and for whoever takes it over.

One stream a generation; an entry is a batch of serialized events under the id `<epoch>-<sequence of its last event>`, so
that Redis itself refuses what a process writes that lost the generation, and what is written twice. Owns the writing, one
task a process: one script call in flight, carrying what all generations produced meanwhile. Invariants: readers are told
what is logged and, while Redis is away, what could not be; the log has no holes; nothing waits for Redis but this task.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.chat.log.entries import CONTROL, FENCE, KEY, WRITE, Logged, LogLine, logged, packed
from services.chat.log.tape import Tape
from services.runtime.breaker import Breaker
from services.runtime.duties import go_on
from services.runtime.redis_scripts import Scripts

log = structlog.get_logger(__name__)

FAILURES: Final = (RedisError, OSError, TimeoutError)

_LINES_AT_ONCE: Final = 500
_BYTES_AT_ONCE: Final = 4 * 1024 * 1024
_ENDED_SECONDS: Final = 60
_READ_SECONDS: Final = 2.0
_HELD_SECONDS: Final = 0.1
_LOST: Final = -1
_FIRST_EPOCH: Final = 1
# What a line's expiry says where it is not a time: leave it, delete the log.
_KEEP: Final = 0
_DELETE: Final = -1


class LostError(Exception):
    """A later epoch writes the log."""


@dataclass(frozen=True, slots=True)
class LogLimits:
    """`running_seconds`: how long a log stays whose generation does not end. `timeout_seconds` bounds a call."""

    timeout_seconds: float
    retry_seconds: float
    running_seconds: float


class EventLog:
    """Writes the log for all generations of this process.

    `writer` is a client on one connection, for the writes alone; `redis` is for all else. `may_tell` says whether this
    process may tell what it could not log: not when its leases may have been taken over.
    """

    def __init__(self, writer: Redis, redis: Redis, limits: LogLimits, *, may_tell: Callable[[], bool]) -> None:
        self._writer = Scripts(writer)
        self._scripts = Scripts(redis)
        self._redis = redis
        self._limits = limits
        self._may_tell = may_tell
        self._breaker = Breaker("event_log", retry_seconds=limits.retry_seconds)
        self._queue: deque[LogLine] = deque()
        self._behind: dict[LogLine, None] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._is_writing = False
        self._is_available = True

    @property
    def is_available(self) -> bool:
        """Whether the last write succeeded."""
        return self._is_available

    def queue(self, line: LogLine) -> None:
        """Has what is new on the line's tape logged, and then told. Costs no task; returns at once."""
        if not line.is_queued:
            line.is_queued = True
            self._queue.append(line)
            self._wake()

    def open(self, generation_id: str) -> None:
        """Has the log of a generation opened that is about to begin: the sign, for a take-over, that nothing was told yet.

        Returns at once; while Redis is away nothing comes of it.
        """
        self.queue(LogLine(generation_id, _FIRST_EPOCH, Tape()))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def write(self) -> None:
        """The writer: a standing duty."""
        while True:
            while not self._queue:
                await self._news()
                if not self._queue and not self._is_available:
                    await self._probe()
            self._is_writing = True
            lines = self._taken()
            if self._breaker.allows():
                await self._log(lines)
            elif not self._may_tell():
                self._put_back(lines)
                await asyncio.sleep(_HELD_SECONDS)
            else:
                self._tell_unlogged(lines)
            self._is_writing = False

    async def _probe(self) -> None:
        """Whether Redis is back, so that the next reply need not say that it is away."""
        if self._breaker.allows():
            try:
                await self._writer.call("return 1", [], [], self._limits.timeout_seconds)
            except FAILURES as error:
                go_on()
                self._breaker.failed(error)
            else:
                self._breaker.succeeded()
                self._is_available = True

    async def _news(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        # What could not be logged is tried again, also when nothing new comes.
        is_away = self._behind or not self._is_available
        timer = loop.call_later(self._limits.retry_seconds, self._try_again) if is_away else None
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _try_again(self) -> None:
        self._requeue_behind()
        self._wake()

    def _requeue_behind(self) -> None:
        behind, self._behind = self._behind, {}
        for line in behind:
            self.queue(line)

    def _taken(self) -> list[LogLine]:
        lines: list[LogLine] = []
        size = 0
        while self._queue and len(lines) < _LINES_AT_ONCE and size < _BYTES_AT_ONCE:
            line = self._queue.popleft()
            line.is_queued = False
            lines.append(line)
            if line.logged + 1 < len(line.tape.events):
                size += sum(map(len, line.tape.events[line.logged :]))
        return lines

    def _put_back(self, lines: Sequence[LogLine]) -> None:
        for line in reversed(lines):
            if not line.is_queued:
                line.is_queued = True
                self._queue.appendleft(line)

    async def _log(self, lines: Sequence[LogLine]) -> None:
        # Not those that were told while Redis was away and given up since.
        lines = [line for line in lines if line.tape.events or not line.tape.told]
        ends = [len(line.tape.events) for line in lines]
        arguments: list[Any] = []
        for line, end in zip(lines, ends, strict=True):
            arguments += self._arguments(line, end)
        try:
            keys = [line.key for line in lines]
            answers = await self._writer.call(WRITE, keys, arguments, self._limits.timeout_seconds)
        except FAILURES as error:
            go_on()
            self._breaker.failed(error)
            self._is_available = False
            for line in lines:
                line.is_unsure = True
            self._put_back(lines)
            return
        self._breaker.succeeded()
        self._is_available = True
        for line, end, answer in zip(lines, ends, answers, strict=True):
            self._take_answer(line, end, answer)
        if self._behind:
            self._requeue_behind()

    def _arguments(self, line: LogLine, end: int) -> tuple[Any, ...]:
        first = line.logged + 1
        expiry_ms = _KEEP
        if line.is_last and end == len(line.tape.events):
            expiry_ms = _ENDED_SECONDS * 1000 if line.expiry_ms is None else line.expiry_ms
        elif first == 1:
            expiry_ms = int(self._limits.running_seconds * 1000)
        is_end = "1" if line.is_last else "0"
        look = "1" if line.is_unsure else "0"
        return (line.epoch, first, end, expiry_ms, look, line.position, is_end, packed(line.tape.events[line.logged : end]))

    def _take_answer(self, line: LogLine, end: int, answer: int) -> None:
        if answer == _LOST:
            line.on_lost()
            return
        line.logged = answer
        line.is_unsure = False
        if answer >= end:
            line.is_unlogged = False
            self._tell(line, end)
        else:
            # The log holds less than we thought, or more: once more from there.
            self.queue(line)

    def _tell(self, line: LogLine, end: int) -> None:
        line.tape.tell(max(end, line.tape.told))
        if line.is_last and end == len(line.tape.events):
            line.tape.end()

    def _tell_unlogged(self, lines: Sequence[LogLine]) -> None:
        for line in lines:
            if not line.tape.events:
                continue
            line.is_unsure = True
            if not line.is_last:
                self._behind[line] = None
            self._tell(line, len(line.tape.events))
            if not line.is_unlogged:
                line.is_unlogged = True
                line.on_unlogged()

    def drop(self, line: LogLine) -> None:
        """Forgets a line that is not to be written any more. Idempotent."""
        self._behind.pop(line, None)
        if line.is_queued:
            line.is_queued = False
            self._queue.remove(line)

    async def flushed(self, *, within_seconds: float) -> bool:
        """Waits until everything is logged or told; whether that was so in time."""
        end_time = asyncio.get_running_loop().time() + within_seconds
        while self._queue or self._is_writing:
            if asyncio.get_running_loop().time() >= end_time:
                return False
            await asyncio.sleep(0.01)
        return True

    async def take_over(self, generation_id: str, epoch: int, *, within_seconds: float) -> Logged | None:
        """Shuts out every earlier epoch and returns what was logged, which may be nothing yet.

        None when Redis is away or has no log of it. Raises LostError when a later epoch writes it.
        """
        # A call is given up after twice its time.
        timeout_seconds = min(_READ_SECONDS, within_seconds / 2)
        try:
            entries = await self._scripts.call(FENCE, [KEY + generation_id], [epoch], timeout_seconds)
        except FAILURES as error:
            log.warning("event_log.not_read", generation_id=generation_id, error=type(error).__name__)
            return None
        if entries == _LOST:
            raise LostError
        if not entries:
            return None
        held = logged(entries)
        if held.has_ended:
            # An end that the database does not know of never was: a standby that took over may have lost it.
            await self.delete([generation_id])
        return held

    async def delete(self, generation_ids: Sequence[str]) -> None:
        """Deletes logs; they expire by themselves where Redis is away."""
        await self.delete_keys([KEY + generation_id for generation_id in generation_ids])

    async def delete_keys(self, keys: Sequence[str]) -> bool:
        """Deletes logs by their keys; whether Redis has confirmed it."""
        for batch in (keys[start : start + _LINES_AT_ONCE] for start in range(0, len(keys), _LINES_AT_ONCE)):
            try:
                async with asyncio.timeout(self._limits.timeout_seconds):
                    await self._redis.delete(*batch)
            except FAILURES as error:
                log.warning("event_log.not_deleted", keys=list(batch), error=type(error).__name__)
                return False
        return True

    async def announce(self, verb: str, generation_id: str = "") -> None:
        """Tells every process: `stop` or `cancel` a generation, or `sweep`. Lost while Redis is away: leases are enough."""
        try:
            async with asyncio.timeout(self._limits.timeout_seconds):
                await self._redis.publish(CONTROL, f"{verb} {generation_id}")
        except FAILURES as error:
            log.warning("event_log.not_announced", verb=verb, error=type(error).__name__)

    async def latest_sequence(self, generation_id: str) -> int:
        """Of the last event that is logged; 0 when that is not known."""
        try:
            async with asyncio.timeout(self._limits.timeout_seconds):
                latest = await self._redis.xrevrange(KEY + generation_id, count=1)
        except FAILURES:
            return 0
        return _sequence_of(latest[0][0]) if latest else 0


def _sequence_of(entry_id: Any) -> int:
    return int(entry_id.split(b"-")[1])
