"""Following generations that other processes write.

Owns one pub/sub connection of the process and a tape for each generation that is followed, whoever many read it. Invariants:
a tape has no hole: what a message skips is read from the log; what Redis does not have is taken from the database once the
generation has ended; nobody waits for ever, since the database is asked about every generation that is silent.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import structlog
from redis.asyncio import Redis

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.events import deleted_event, saved_events
from services.chat.generation_store import GenerationStore
from services.chat.lease_store import LeaseStore
from services.chat.log.entries import CHANNEL, CONTROL, KEY, logged, unpacked
from services.chat.log.event_log import FAILURES
from services.chat.log.tape import Tape
from services.chat.records import Turn
from services.runtime.duties import beside, go_on
from services.runtime.errors import ServiceError, Unavailable

log = structlog.get_logger(__name__)

POLL_SECONDS: Final = 1.0
_READ_AT_ONCE: Final = 20
_READ_SECONDS: Final = 5.0
_REREAD_SECONDS: Final = 0.5
_PING_SECONDS: Final = 5.0


class Mirror:
    """A generation of another process as it is told here."""

    __slots__ = ("epoch", "generation_id", "polled", "read_time", "tape", "user_id")

    def __init__(self, turn: Turn) -> None:
        self.generation_id = turn.generation.id
        self.user_id = turn.generation.user_id
        self.tape = Tape()
        self.epoch = 0
        self.polled = -1
        self.read_time = 0.0

    def hear(self, events: list[bytes], *, first: int, is_end: bool) -> None:
        """Tells what is new of these events; the first must not lie beyond a hole."""
        tape = self.tape
        new = events[len(tape.events) + 1 - first :]
        if is_end and not new:
            # It was closed without its log: more was told of it than whoever closed it knew.
            new = events[-1:]
        tape.events += new
        if len(tape.events) > tape.told:
            tape.tell(len(tape.events))
        if is_end:
            tape.end()


class EventFeed:
    """The generations that this process follows. `on_control` hears what is announced to every process."""

    def __init__(
        self,
        redis: Redis,
        store: GenerationStore,
        leases: LeaseStore,
        *,
        retry_seconds: float,
        on_control: Callable[[str, str], None],
    ) -> None:
        self._redis = redis
        self._store = store
        self._leases = leases
        self._retry_seconds = retry_seconds
        self._on_control = on_control
        self._mirrors: dict[str, Mirror] = {}
        self._stale: dict[str, None] = {}
        self._subscribed: set[str] = set()
        self._has_changed = asyncio.Event()
        self._has_stale = asyncio.Event()
        self._is_closed = False

    def mirror(self, turn: Turn) -> Tape:
        """The tape of a generation that another process writes, or that has just ended. Raises Unavailable at a stop."""
        if self._is_closed:
            raise stopping()
        generation_id = turn.generation.id
        mirror = self._mirrors.get(generation_id)
        if mirror is None:
            mirror = self._mirrors[generation_id] = Mirror(turn)
            mirror.tape.on_idle = lambda: self._drop(mirror)
            self._has_changed.set()
        return mirror.tape

    def _drop(self, mirror: Mirror) -> None:
        if self._mirrors.get(mirror.generation_id) is mirror and not mirror.tape.readers:
            del self._mirrors[mirror.generation_id]
            self._has_changed.set()

    def release(self, generation_id: str) -> None:
        """The generation is written by this process from now on: its readers go there."""
        mirror = self._mirrors.pop(generation_id, None)
        if mirror is not None:
            self._has_changed.set()
            mirror.tape.move()

    def close(self) -> None:
        """Ends the streams of whoever follows something: the process stops."""
        self._is_closed = True
        for mirror in self._mirrors.values():
            mirror.tape.refuse(lambda _: stopping())

    async def listen(self) -> None:
        """The connection to Redis: a standing duty."""
        is_lost = False
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(CONTROL)
                    self._subscribed = set()
                    self._has_changed.set()
                    async with beside(self._subscribe(pubsub), self._read(), expected=FAILURES):
                        if is_lost:
                            log.info("event_feed.restored")
                        is_lost = False
                        await self._hear(pubsub)
            except FAILURES as error:
                go_on()
                if not is_lost:
                    log.warning("event_feed.lost", error=type(error).__name__)
                is_lost = True
            await asyncio.sleep(self._retry_seconds)

    async def _subscribe(self, pubsub: Any) -> None:
        while True:
            await self._has_changed.wait()
            self._has_changed.clear()
            wanted = set(self._mirrors)
            more, less = wanted - self._subscribed, self._subscribed - wanted
            self._subscribed = wanted
            if more:
                await pubsub.subscribe(*(CHANNEL + generation_id for generation_id in more))
            if less:
                await pubsub.unsubscribe(*(CHANNEL + generation_id for generation_id in less))

    async def _hear(self, pubsub: Any) -> None:
        is_asked = False
        while True:
            message = await pubsub.get_message(timeout=_PING_SECONDS)
            if message is not None:
                is_asked = False
                self._take(message)
            elif is_asked:
                raise TimeoutError
            else:
                is_asked = True
                await pubsub.ping()

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind not in ("message", "subscribe"):
            return
        channel = message["channel"].decode()
        if channel == CONTROL:
            if kind == "message":
                verb, _, generation_id = message["data"].decode().partition(" ")
                self._on_control(verb, generation_id)
            return
        mirror = self._mirrors.get(channel.removeprefix(CHANNEL))
        if mirror is None:
            return
        if kind == "subscribe":
            # From here on nothing is missed; what was told before stands in the log.
            self._want_read(mirror)
        else:
            self._take_events(mirror, message["data"])

    def _take_events(self, mirror: Mirror, data: bytes) -> None:
        head, _, packed = data.partition(b"\n")
        epoch, first, is_end = map(int, head.split())
        if epoch < mirror.epoch or mirror.tape.has_ended:
            return
        mirror.epoch = epoch
        if first > len(mirror.tape.events) + 1:
            if asyncio.get_running_loop().time() - mirror.read_time > _REREAD_SECONDS:
                self._want_read(mirror)
            return
        mirror.hear(unpacked(packed), first=first, is_end=bool(is_end))

    def _want_read(self, mirror: Mirror) -> None:
        self._stale[mirror.generation_id] = None
        self._has_stale.set()

    async def _read(self) -> None:
        while True:
            await self._has_stale.wait()
            chosen = list(self._stale)[:_READ_AT_ONCE]
            for generation_id in chosen:
                del self._stale[generation_id]
            if not self._stale:
                self._has_stale.clear()
            mirrors = [self._mirrors[each] for each in chosen if each in self._mirrors]
            if mirrors:
                await self._read_logs(mirrors)

    async def _read_logs(self, mirrors: list[Mirror]) -> None:
        async with asyncio.timeout(_READ_SECONDS), self._redis.pipeline(transaction=False) as pipeline:
            for mirror in mirrors:
                pipeline.xrange(KEY + mirror.generation_id)
            found = await pipeline.execute()
        for mirror, entries in zip(mirrors, found, strict=True):
            mirror.read_time = asyncio.get_running_loop().time()
            if entries and not mirror.tape.has_ended:
                told = logged([(each[0], _flat(each[1])) for each in entries])
                mirror.hear(told.events, first=1, is_end=told.has_ended)

    async def poll(self) -> None:
        """Asks the database about every generation that was silent since the last time: it may have ended, or be gone."""
        silent = {key: one for key, one in self._mirrors.items() if one.polled == one.tape.told and not one.tape.has_ended}
        for mirror in self._mirrors.values():
            mirror.polled = mirror.tape.told
        if not silent:
            return
        statuses = await self._leases.read_statuses(silent)
        for generation_id, mirror in silent.items():
            if statuses.get(generation_id) != "running":
                await self._complete(mirror)

    async def _complete(self, mirror: Mirror) -> None:
        """Tells the rest of an ended generation from the database."""
        found = await self._store.read_events(mirror.generation_id, user_id=mirror.user_id)
        told = len(mirror.tape.events)
        if mirror.tape.has_ended:
            return
        if found is None:
            mirror.hear([deleted_event(told + 1)], first=told + 1, is_end=True)
        else:
            mirror.hear(saved_events(*found), first=1, is_end=True)


def _flat(fields: dict[bytes, bytes]) -> list[bytes]:
    return [each for pair in fields.items() for each in pair]


def stopping() -> ServiceError:
    """What is answered while the process stops."""
    return Unavailable("The service is stopping. Try again.", reasons.ERROR_REASON_SERVICE_STOPPING, retry_delay_seconds=1)
