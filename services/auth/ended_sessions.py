"""Which sessions ended lately: learned from the database, used by this service's verifier, told to every other service.

One poll a quarter of a second finds what any auth process ended. It looks back further than an ending transaction may
last, so that a late commit is not missed. A session is remembered until its last access token has expired. While the
database does not answer nothing is told, so that silence means what it says.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable, Sequence
from itertools import islice

import structlog

from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.session_store import SessionStore
from services.auth.statements import ENDING_SECONDS
from services.runtime.database import DATABASE_FAILURES
from services.runtime.errors import ResourceExhausted, ServiceError, Unavailable

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.25
# Beyond an ending's own time: what a poll may wait for a connection of the pool, and for a new one.
_LOOK_BACK_SECONDS = ENDING_SECONDS + 20
# As long as other services go on without having heard of auth. What matters most is checked in the database anyway.
_CURRENT_SECONDS = 60.0
_IDS_A_MESSAGE = 1_000
# Half a minute of polls that a follower did not read.
_MOST_BATCHES_WAITING = 120
_MOST_FOLLOWERS = 500
_MOST_REMEMBERED = 500_000

Batch = Sequence[str]


class _Follower:
    """What one follower has yet to be told; None is the last thing, `error` says why."""

    def __init__(self) -> None:
        self.batches: asyncio.Queue[Batch | None] = asyncio.Queue(_MOST_BATCHES_WAITING)
        self.error: ServiceError = _stopping()

    def cut(self, error: ServiceError) -> None:
        """Drops what waits, which frees the room for the end."""
        while not self.batches.empty():
            self.batches.get_nowait()
        self.error = error
        self.batches.put_nowait(None)


class EndedSessions:
    """The sessions whose access tokens are refused though they have not expired.

    `remember_seconds` is how long an access token may live at most, a slow clock included.
    """

    def __init__(self, store: SessionStore, *, remember_seconds: float) -> None:
        self._store = store
        self._remember_seconds = remember_seconds
        self._forget_times: OrderedDict[str, float] = OrderedDict()
        self._polled_at: float | None = None
        self._followers: set[_Follower] = set()
        self._is_closed = False

    def is_ended(self, session_id: str) -> bool:
        """Whether this session is known to have ended."""
        return session_id in self._forget_times

    def is_current(self) -> bool:
        """Whether the database answered lately."""
        return self._polled_at is not None and time.monotonic() - self._polled_at <= _CURRENT_SECONDS

    @property
    def follower_count(self) -> int:
        """How many streams are followed."""
        return len(self._followers)

    def note(self, session_ids: Iterable[str]) -> None:
        """What this process ended is known here at once, and told at once."""
        if new := self._remember(session_ids):
            self._tell(new)

    async def poll(self) -> None:
        """Learns what ended since the last poll and tells every follower, be it that nothing did."""
        begin = time.monotonic()
        seconds = self._remember_seconds
        if self._polled_at is not None:
            seconds = min(seconds, begin - self._polled_at + _LOOK_BACK_SECONDS)
        new = self._remember(await self._store.ended_within(seconds))
        self._polled_at = begin
        self._forget()
        self._tell(new)

    async def follow_database(self) -> None:
        """Polls for ever; goes on when the database comes back."""
        was_lost = False
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self.poll()
            except DATABASE_FAILURES as error:
                if not was_lost:
                    log.warning("auth.ended_sessions_poll_failed", error=type(error).__name__)
                was_lost = True
            else:
                was_lost = False

    async def follow(self) -> AsyncGenerator[Batch, None]:
        """First everything that is remembered, then a batch after every poll, empty or not. Ends only by an error.

        Raises ResourceExhausted (READER_TOO_SLOW) for a follower that lets too many batches wait, and Unavailable
        (SERVICE_STOPPING) when the service stops.
        """
        self._check_room()
        follower = _Follower()
        known = iter(list(self._forget_times))
        self._followers.add(follower)
        try:
            yield tuple(islice(known, _IDS_A_MESSAGE))
            while batch := tuple(islice(known, _IDS_A_MESSAGE)):
                yield batch
            while (told := await follower.batches.get()) is not None:
                yield told
            raise follower.error
        finally:
            self._followers.discard(follower)

    def close(self) -> None:
        """Ends every follower's stream, so that they follow another process and this one can stop."""
        self._is_closed = True
        for follower in self._followers:
            follower.cut(_stopping())
        self._followers.clear()

    def _check_room(self) -> None:
        if self._is_closed:
            raise _stopping()
        if len(self._followers) >= _MOST_FOLLOWERS:
            raise Unavailable(
                "This process has as many followers as it takes: try another.",
                reasons.ERROR_REASON_SERVICE_BUSY,
                metadata={"work": "ended_sessions_feed"},
                retry_delay_seconds=1,
            )

    def _remember(self, session_ids: Iterable[str]) -> Batch:
        new = [session_id for session_id in session_ids if session_id not in self._forget_times]
        forget_time = time.monotonic() + self._remember_seconds
        self._forget_times.update(dict.fromkeys(new, forget_time))
        return new

    def _forget(self) -> None:
        now = time.monotonic()
        while self._forget_times and next(iter(self._forget_times.values())) <= now:
            self._forget_times.popitem(last=False)
        if (surplus := len(self._forget_times) - _MOST_REMEMBERED) > 0:
            # The oldest go: their access tokens have the least time left.
            log.error("auth.ended_sessions_overflowed", surplus=surplus)
            for _ in range(surplus):
                self._forget_times.popitem(last=False)

    def _tell(self, batch: Batch) -> None:
        for follower in list(self._followers):
            try:
                follower.batches.put_nowait(batch)
            except asyncio.QueueFull:
                self._followers.discard(follower)
                log.warning("auth.follower_cut")
                follower.cut(_too_slow())


def _too_slow() -> ResourceExhausted:
    return ResourceExhausted(
        "You read too slowly and were cut. Follow again.", reasons.ERROR_REASON_READER_TOO_SLOW, retry_delay_seconds=1
    )


def _stopping() -> Unavailable:
    return Unavailable(
        "The service is stopping: another replica answers.",
        reasons.ERROR_REASON_SERVICE_STOPPING,
        retry_delay_seconds=1,
    )
