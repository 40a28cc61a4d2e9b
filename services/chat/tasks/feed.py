"""Everybody who watches their tasks in this process.

Owns one reading of the database for all of them: once a second, and at once when somebody here or at another process says
that something changed. Invariants: a watcher gets each change after its place once, in order; one that does not keep up is
cut and told where it was; a watch costs no task, and nothing while nothing happens but its heartbeat.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, NoReturn

import structlog

from services.chat.tasks.change_store import TaskChangeStore
from services.chat.tasks.records import TaskChange
from services.chat.tasks.refusals import stopping, too_many_watchers, too_slow
from services.chat.tasks.signals import TaskSignals
from services.runtime.database import DATABASE_FAILURES
from services.runtime.duties import beside, repeat
from services.runtime.errors import ServiceError

log = structlog.get_logger(__name__)

_READ_AT_ONCE: Final = 500
_NEW_AT_ONCE: Final = 5000
_MOST_PENDING: Final = 500
_MOST_WATCHERS: Final = 10_000
_MOST_UNTOLD: Final = 10_000
_POLL_SECONDS: Final = 1.0
# However much changes: so often the database is read at most.
_LEAST_SECONDS: Final = 0.02
_PRUNE_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class WatchBegin:
    """The place after which the changes follow; `is_reset`: some before it are missing."""

    sequence: int
    is_reset: bool


class WatchBeat:
    """Nothing happened for a while."""


BEAT: Final = WatchBeat()
Watched = WatchBegin | TaskChange | WatchBeat


@dataclass(eq=False, slots=True)
class _Watcher:
    """One stream: what it has not taken yet, and why it is to end, if it is."""

    pending: deque[TaskChange] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    is_slow: bool = False


@dataclass(slots=True)
class _Followed:
    """A user with watchers here; `sequence` is the last change that they were given, None before the first look."""

    watchers: set[_Watcher] = field(default_factory=set)
    sequence: int | None = None


class TaskFeed:
    """The watchers of this process."""

    def __init__(self, store: TaskChangeStore, signals: TaskSignals, *, heartbeat_seconds: float) -> None:
        self._store = store
        self._signals = signals
        self._heartbeat_seconds = heartbeat_seconds
        self._followed: dict[str, _Followed] = {}
        self._count = 0
        self._is_closed = False
        self._news = asyncio.Event()
        self._changed: set[str] = set()
        self._untold: set[str] = set()

    @property
    def watchers(self) -> int:
        """How many there are."""
        return self._count

    def note(self, user_id: str) -> None:
        """A task of the user was changed by this process. What does not fit is found by looking, a second later."""
        if len(self._untold) < _MOST_UNTOLD:
            self._untold.add(user_id)
        self._hear([user_id])
        self._news.set()

    def _hear(self, user_ids: Iterable[str]) -> None:
        watched = [user_id for user_id in user_ids if user_id in self._followed]
        if watched:
            self._changed.update(watched)
            self._news.set()

    def close(self) -> None:
        """Ends every watch, so that its client goes to another process and this one can stop."""
        self._is_closed = True
        for followed in self._followed.values():
            for watcher in followed.watchers:
                watcher.news.set()

    async def watch(self, user_id: str, after_sequence: int | None) -> AsyncGenerator[Watched, None]:
        """A WatchBegin, then the changes of a user as they come, with a WatchBeat in silence. Never ends by itself.

        Raises ResourceExhausted (READER_TOO_SLOW), Unavailable (SERVICE_STOPPING, SERVICE_BUSY).
        """
        watcher = self._joined(user_id)
        try:
            since = await self._store.read_since(after_sequence, user_id=user_id)
            followed = self._followed[user_id]
            # Joined before this look: what it does not see is given to the watcher.
            followed.sequence = since.last_sequence if followed.sequence is None else followed.sequence
            # The other watchers may have been given more than this look saw.
            given = max(since.last_sequence, followed.sequence)
            place = after_sequence if after_sequence is not None and since.is_whole else since.last_sequence
            yield WatchBegin(place, is_reset=not since.is_whole)
            while place < given:
                for change in await self._missed(user_id, place):
                    yield change
                    place = change.sequence
            async with aclosing(self._live(watcher, place)) as live:
                async for watched in live:
                    yield watched
        finally:
            self._leave(user_id, watcher)

    async def _missed(self, user_id: str, place: int) -> Sequence[TaskChange]:
        changes = await self._store.read_changes(user_id=user_id, after_sequence=place, limit=_READ_AT_ONCE)
        if not changes or changes[0].sequence != place + 1:
            # Forgotten while this reader took its time.
            raise too_slow(place)
        return changes

    async def _live(self, watcher: _Watcher, place: int) -> AsyncGenerator[Watched, None]:
        while True:
            while watcher.pending and not watcher.is_slow:
                change = watcher.pending.popleft()
                if change.sequence > place:
                    place = change.sequence
                    yield change
            if watcher.is_slow:
                raise too_slow(place)
            if self._is_closed:
                raise stopping()
            watcher.news.clear()
            try:
                async with asyncio.timeout(self._heartbeat_seconds):
                    await watcher.news.wait()
            except TimeoutError:
                yield BEAT

    def _joined(self, user_id: str) -> _Watcher:
        if self._is_closed:
            raise stopping()
        if self._count >= _MOST_WATCHERS:
            raise too_many_watchers()
        watcher = _Watcher()
        self._followed.setdefault(user_id, _Followed()).watchers.add(watcher)
        self._count += 1
        return watcher

    def _leave(self, user_id: str, watcher: _Watcher) -> None:
        self._count -= 1
        followed = self._followed[user_id]
        followed.watchers.discard(watcher)
        if not followed.watchers:
            del self._followed[user_id]

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Keeps the watchers informed, and old changes forgotten, inside the block."""
        prune = repeat("task_changes_pruning", self._store.forget_old, interval_seconds=_PRUNE_SECONDS)
        async with beside(self._follow(), self._signals.listen(self._hear), prune):
            yield

    async def _follow(self) -> NoReturn:
        loop = asyncio.get_running_loop()
        look_time = loop.time()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, look_time - loop.time())):
                    await self._news.wait()
            self._news.clear()
            if loop.time() >= look_time:
                self._changed.update(self._followed)
                look_time = loop.time() + _POLL_SECONDS
            try:
                await self._look()
            except (ServiceError, *DATABASE_FAILURES) as error:
                log.warning("duty.postponed", duty="task_feed", error=type(error).__name__)
            untold, self._untold = self._untold, set()
            await self._signals.tell(list(untold))
            await asyncio.sleep(_LEAST_SECONDS)

    async def _look(self) -> None:
        """Reads what is new for those who are said to have changed, and gives it to their watchers."""
        changed, self._changed = self._changed, set()
        found = ((user_id, self._followed.get(user_id)) for user_id in changed)
        wanted = {user_id: one.sequence for user_id, one in found if one is not None and one.sequence is not None}
        if not wanted:
            return
        new = await self._store.read_new(wanted, limit=_NEW_AT_ONCE)
        for user_id, change in new:
            self._give(user_id, change)
        if len(new) == _NEW_AT_ONCE:
            self._changed.update(changed)
            self._news.set()

    def _give(self, user_id: str, change: TaskChange) -> None:
        followed = self._followed.get(user_id)
        if followed is None or followed.sequence is None or change.sequence <= followed.sequence:
            return
        followed.sequence = change.sequence
        for watcher in followed.watchers:
            if len(watcher.pending) >= _MOST_PENDING:
                watcher.is_slow = True
                watcher.pending.clear()
            elif not watcher.is_slow:
                watcher.pending.append(change)
            watcher.news.set()
