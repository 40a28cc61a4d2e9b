"""The standing duty that does what is owed.

Owns when and how much at once. Invariants: at most `concurrency` batches of a chore run in a process; a model that is away
pauses its chores, ever longer, and is tried with one piece alone before the rest follows: no storm when it is back; a
piece that fails by its own fault is tried `most_tries` times and then given up, with a word in the log.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
from prometheus_client import Counter, Gauge, Histogram

from services.memory.upkeep.store import Owed, Task, UpkeepStore
from services.runtime.database import DATABASE_FAILURES
from services.runtime.duties import repeat
from services.runtime.errors import InvalidArgument, ServiceError, reason_name

log = structlog.get_logger(__name__)

PIECES: Final = Counter("parley_memory_upkeep", "Pieces of upkeep, by what came of them", ["task", "outcome"])
SECONDS: Final = Histogram(
    "parley_memory_upkeep_seconds",
    "Time that a batch of upkeep took",
    ["task"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60),
)
WAITING: Final = Gauge("parley_memory_upkeep_waiting", "Pieces of upkeep that wait, due or not", ["task"])
LATE_SECONDS: Final = Gauge("parley_memory_upkeep_late_seconds", "How long the first piece of upkeep is overdue", ["task"])

_LOOK_SECONDS: Final = 2.0
_COUNT_SECONDS: Final = 30.0
_LONGEST_PAUSE_SECONDS: Final = 60.0
_FIRST_RETRY_SECONDS: Final = 10.0


class Unworkable(Exception):
    """A piece that fails by its own fault, whatever is done about the rest: `reason` is for the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Chore:
    """How one task is done. `work` does a batch, idempotently, within `timeout_seconds`.

    It raises a ServiceError where what it needs is away, and InvalidArgument or Unworkable where the pieces themselves are
    at fault; a batch is then done piece by piece. What it returns without an error is settled.
    """

    task: Task
    work: Callable[[Sequence[Owed]], Awaitable[None]]
    batch: int = 1
    concurrency: int = 1
    timeout_seconds: float = 60.0
    most_tries: int = 5


@dataclass(slots=True)
class _Lane:
    """The state that the workers of a chore share: failures since the last success, and the right to try while there are."""

    chore: Chore
    failures: int = 0
    probe: asyncio.Lock = field(default_factory=asyncio.Lock)
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Upkeep:
    """Does the chores of this process, for all users, as a standing duty."""

    def __init__(self, store: UpkeepStore, chores: Sequence[Chore]) -> None:
        self._store = store
        self._lanes = [_Lane(chore) for chore in chores]

    def look(self) -> None:
        """Makes the workers look for work now, instead of at their next look: something may be due."""
        for lane in self._lanes:
            lane.news.set()

    async def run(self) -> None:
        """Does what comes due, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(repeat("upkeep_count", self._count, interval_seconds=_COUNT_SECONDS))
            for lane in self._lanes:
                for _ in range(lane.chore.concurrency):
                    group.create_task(self._work(lane))

    async def _work(self, lane: _Lane) -> None:
        while True:
            if lane.failures:
                async with lane.probe:
                    while lane.failures:
                        await asyncio.sleep(_pause(lane.failures))
                        await self._once(lane, most=1)
            elif not await self._once(lane, most=lane.chore.batch):
                await _news(lane)

    async def _once(self, lane: _Lane, *, most: int) -> bool:
        """Does one batch; whether there was one. Counts a failure of what it needs, and raises none."""
        chore = lane.chore
        try:
            owed = await self._store.claim(chore.task, most=most, lease_seconds=2 * chore.timeout_seconds)
            if owed:
                await self._do(chore, owed)
        except (ServiceError, *DATABASE_FAILURES) as error:
            lane.failures += 1
            reason = reason_name(error.reason) if isinstance(error, ServiceError) else type(error).__name__
            log.warning("upkeep.postponed", task=chore.task, reason=reason, failures=lane.failures)
            return True
        lane.failures = 0
        return bool(owed)

    async def _do(self, chore: Chore, owed: Sequence[Owed]) -> None:
        try:
            with SECONDS.labels(chore.task).time():
                async with asyncio.timeout(chore.timeout_seconds):
                    await chore.work(owed)
        except (InvalidArgument, Unworkable, TimeoutError) as error:
            if len(owed) > 1:
                for one in owed:
                    await self._do(chore, [one])
            else:
                await self._blame(chore, owed[0], error)
        except ServiceError:
            await self._store.postpone(owed, delay_seconds=0, is_own_fault=False)
            PIECES.labels(chore.task, "postponed").inc(len(owed))
            raise
        else:
            await self._store.settle(owed)
            PIECES.labels(chore.task, "done").inc(len(owed))

    async def _blame(self, chore: Chore, owed: Owed, error: InvalidArgument | Unworkable | TimeoutError) -> None:
        reason = reason_name(error.reason) if isinstance(error, InvalidArgument) else getattr(error, "reason", "too slow")
        if owed.tries + 1 >= chore.most_tries:
            log.error("upkeep.given_up", task=chore.task, scope_id=owed.scope_id, reason=reason)
            PIECES.labels(chore.task, "given_up").inc()
            await self._store.settle([owed])
            return
        log.warning("upkeep.failed", task=chore.task, scope_id=owed.scope_id, reason=reason, tries=owed.tries + 1)
        PIECES.labels(chore.task, "failed").inc()
        delay = _FIRST_RETRY_SECONDS * 2.0**owed.tries
        await self._store.postpone([owed], delay_seconds=delay, is_own_fault=True)

    async def _count(self) -> None:
        waiting = {one.task: one for one in await self._store.waiting()}
        for lane in self._lanes:
            task = lane.chore.task
            found = waiting.get(task)
            WAITING.labels(task).set(found.count if found else 0)
            LATE_SECONDS.labels(task).set(max(0.0, found.late_seconds) if found else 0)


async def _news(lane: _Lane) -> None:
    lane.news.clear()
    try:
        async with asyncio.timeout(_LOOK_SECONDS * random.uniform(0.8, 1.2)):  # noqa: S311 - a beat, no secret
            await lane.news.wait()
    except TimeoutError:
        pass


def _pause(failures: int) -> float:
    return min(2.0 ** min(failures - 1, 10), _LONGEST_PAUSE_SECONDS) * random.uniform(0.8, 1.2)  # noqa: S311 - a beat
