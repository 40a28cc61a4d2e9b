"""The standing duty that does what is owed.

Owns when and how much at once. Invariants: at most `concurrency` batches of a chore run in a process; what a process works
on is its own while it lives, and free soon after it died; a model that is away pauses its chores, ever longer, and is tried
with one piece alone before the rest follows: no storm when it is back; a piece that fails by its own fault is tried
`most_tries` times and then given up, with a word in the log. An error that nobody foresaw is such a fault too: what one
user said must not end the process, and the next that claims it.
"""

import asyncio
import contextlib
import random
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
from prometheus_client import Counter, Gauge, Histogram

from services.memory.upkeep.store import Owed, Task, UpkeepStore
from services.runtime.database import DATABASE_FAILURES, STATEMENT_FAULTS, is_statement_timeout
from services.runtime.duties import repeat
from services.runtime.errors import InvalidArgument, ServiceError, reason_name
from services.runtime.openai import Refusal

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
_FIRST_RETRY_SECONDS: Final = 10.0
# At most so long is waited because the provider says so.
_LONGEST_STATED_SECONDS: Final = 600.0
_GIVE_BACK_SECONDS: Final = 2.0
# Renewed a few times before it ends, so that one that is lost, or a process that was slow, costs nothing.
_LEASE_SECONDS: Final = 20.0
_RENEWALS_A_LEASE: Final = 4


class Unworkable(Exception):
    """A piece that fails by its own fault, whatever is done about the rest: `reason` is for the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# Of the piece alone: what else is done may well succeed. A statement that the database refuses is no database that is away.
_OWN_FAULTS: Final = (InvalidArgument, Unworkable, TimeoutError, *STATEMENT_FAULTS)


@dataclass(frozen=True, slots=True)
class Chore:
    """How one task is done. `work` does a batch, idempotently, within `timeout_seconds`.

    It raises a ServiceError where what it needs is away, and InvalidArgument or Unworkable where the pieces themselves are
    at fault; a batch is then done piece by piece. So it is after a statement that took too long and an error that nobody
    foresaw. What it returns without an error is settled.
    """

    task: Task
    work: Callable[[Sequence[Owed]], Awaitable[None]]
    batch: int = 1
    concurrency: int = 1
    timeout_seconds: float = 60.0
    most_tries: int = 5


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long a chore is left alone when what it needs is away: the first time, doubled each time up to the longest."""

    first_seconds: float = 1.0
    longest_seconds: float = 60.0

    def after(self, failures: int) -> float:
        """The pause after so many failures in a row."""
        pause = min(self.first_seconds * 2.0 ** min(failures - 1, 30), self.longest_seconds)
        return pause * random.uniform(0.8, 1.2)  # noqa: S311 - a beat


@dataclass(slots=True)
class _Lane:
    """The state that the workers of a chore share.

    `failures` since the last success, and the right to try while there are; `stated_seconds`: the wait that the last one
    asked for; `abandoned`: what was claimed when the database went away.
    """

    chore: Chore
    failures: int = 0
    stated_seconds: float = 0.0
    abandoned: list[Owed] = field(default_factory=list)
    probe: asyncio.Lock = field(default_factory=asyncio.Lock)
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Upkeep:
    """Does the chores of this process, for all users, as a standing duty."""

    def __init__(
        self,
        store: UpkeepStore,
        chores: Sequence[Chore],
        pauses: Pauses | None = None,
        *,
        lease_seconds: float = _LEASE_SECONDS,
    ) -> None:
        self._store = store
        self._lease_seconds = lease_seconds
        self._pauses = pauses or Pauses()
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
                        await asyncio.sleep(max(self._pauses.after(lane.failures), lane.stated_seconds))
                        await self._once(lane, most=1)
            elif not await self._once(lane, most=lane.chore.batch):
                await _news(lane)

    async def _once(self, lane: _Lane, *, most: int) -> bool:
        """Does one batch; whether there was one. Counts a failure of what it needs, and raises none."""
        chore = lane.chore
        try:
            await self._give_back(lane)
            owed = await self._store.claim(chore.task, most=most, lease_seconds=self._lease_seconds)
            if owed:
                await self._do_claimed(lane, owed)
        except (ServiceError, *DATABASE_FAILURES) as error:
            lane.failures += 1
            lane.stated_seconds = _stated_seconds(error)
            reason = reason_name(error.reason) if isinstance(error, ServiceError) else type(error).__name__
            log.warning("upkeep.postponed", task=chore.task, reason=reason, failures=lane.failures)
            return True
        lane.failures, lane.stated_seconds = 0, 0.0
        return bool(owed)

    async def _give_back(self, lane: _Lane) -> None:
        """Frees what this process left claimed, so that nobody waits for the end of its lease."""
        if lane.abandoned:
            abandoned, lane.abandoned = lane.abandoned, []
            try:
                await self._store.postpone(abandoned, delay_seconds=0, is_own_fault=False)
            except DATABASE_FAILURES:
                lane.abandoned += abandoned
                raise

    async def _do_claimed(self, lane: _Lane, owed: Sequence[Owed]) -> None:
        try:
            async with self._renewed(owed):
                await self._do(lane.chore, owed)
        except DATABASE_FAILURES:
            lane.abandoned += owed
            raise
        except asyncio.CancelledError:
            # The process ends in order: another one need not wait for the end of the lease.
            with contextlib.suppress(TimeoutError, *DATABASE_FAILURES):
                async with asyncio.timeout(_GIVE_BACK_SECONDS):
                    await self._store.postpone(owed, delay_seconds=0, is_own_fault=False)
            raise

    @contextlib.asynccontextmanager
    async def _renewed(self, owed: Sequence[Owed]) -> AsyncIterator[None]:
        """Keeps the claim while the block lasts."""
        renewing = asyncio.create_task(self._renew(owed))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait({renewing})
            if not renewing.cancelled():
                # Only what nobody foresaw comes out of it.
                renewing.result()

    async def _renew(self, owed: Sequence[Owed]) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / _RENEWALS_A_LEASE)
            try:
                await self._store.renew(owed, lease_seconds=self._lease_seconds)
            except DATABASE_FAILURES as error:
                # Whoever claims it then does the same again; both results are one.
                log.warning("upkeep.claim_not_renewed", task=owed[0].task, error=type(error).__name__)

    async def _do(self, chore: Chore, owed: Sequence[Owed]) -> None:
        try:
            await self._try(chore, owed)
        except _OWN_FAULTS as error:
            if len(owed) == 1:
                await self._blame(chore, owed[0], error)
            else:
                await self._do_one_by_one(chore, owed)
        except ServiceError:
            await self._postpone(chore, owed)
            raise
        else:
            await self._store.settle(owed)
            PIECES.labels(chore.task, "done").inc(len(owed))

    async def _try(self, chore: Chore, owed: Sequence[Owed]) -> None:
        """Raises what a chore may raise, see there; whatever else comes out of it as Unworkable, after telling of it."""
        try:
            with SECONDS.labels(chore.task).time():
                async with asyncio.timeout(chore.timeout_seconds):
                    await chore.work(owed)
        except DATABASE_FAILURES as error:
            if is_statement_timeout(error):
                # A database that is away, or too busy for anything, keeps the next claim from succeeding too.
                raise Unworkable("statement too slow") from error
            raise
        except (ServiceError, Unworkable, TimeoutError):
            raise
        except Exception as error:
            # The one wrap around what is done for a piece. It hides nothing: the fault is told of with its place, though not
            # in its words, which may quote the user's; it is counted like any failure, and the piece is given up in the end.
            log.error(  # noqa: TRY400 - see above
                "upkeep.faulted",
                task=chore.task,
                scope_ids=[one.scope_id for one in owed],
                error=type(error).__name__,
                traceback=_places(error),
            )
            raise Unworkable("unforeseen") from error

    async def _do_one_by_one(self, chore: Chore, owed: Sequence[Owed]) -> None:
        """Finds out which are at fault. The others are given back where that takes too long, or what they need goes away."""
        end = time.monotonic() + chore.timeout_seconds / 2
        for index, one in enumerate(owed):
            if time.monotonic() > end:
                await self._postpone(chore, owed[index:])
                return
            try:
                await self._do(chore, [one])
            except ServiceError:
                if owed[index + 1 :]:
                    await self._postpone(chore, owed[index + 1 :])
                raise

    async def _postpone(self, chore: Chore, owed: Sequence[Owed]) -> None:
        await self._store.postpone(owed, delay_seconds=0, is_own_fault=False)
        PIECES.labels(chore.task, "postponed").inc(len(owed))

    async def _blame(self, chore: Chore, owed: Owed, error: Exception) -> None:
        reason = _reason(error)
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


def _places(error: Exception) -> list[str]:
    """Where an error comes from, the innermost last, without a word of what was worked on."""
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]


def _stated_seconds(error: Exception) -> float:
    """The wait that the provider itself asked for; what we advise callers is another matter."""
    cause = error.__cause__
    stated = cause.retry_after_seconds if isinstance(cause, Refusal) else None
    return min(stated or 0.0, _LONGEST_STATED_SECONDS)


def _reason(error: Exception) -> str:
    if isinstance(error, InvalidArgument):
        return reason_name(error.reason)
    if isinstance(error, Unworkable):
        return error.reason
    return "too slow" if isinstance(error, TimeoutError) else type(error).__name__


async def _news(lane: _Lane) -> None:
    lane.news.clear()
    try:
        async with asyncio.timeout(_LOOK_SECONDS * random.uniform(0.8, 1.2)):  # noqa: S311 - a beat, no secret
            await lane.news.wait()
    except TimeoutError:
        pass
