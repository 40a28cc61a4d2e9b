"""Word of changes from process to process, by Redis: whose tasks changed, and nothing else.

Invariant: it is only a hint. What is lost, with Redis or on the way, costs the watchers a second, since they also look for
themselves; nothing waits for Redis longer than one timeout.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NoReturn

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.runtime.breaker import Breaker
from services.runtime.duties import go_on

log = structlog.get_logger(__name__)

CHANNEL: Final = "parley:chat:tasks:1"
_FAILURES: Final = (RedisError, OSError, TimeoutError)
_USERS_A_MESSAGE: Final = 500
_SILENCE_SECONDS: Final = 30.0


class TaskSignals:
    """Tells and hears whose tasks changed. `listen` is a duty of the process; it holds one connection."""

    def __init__(self, redis: "Redis", *, timeout_seconds: float, retry_seconds: float) -> None:
        self._redis = redis
        self._breaker = Breaker("redis_task_signals", retry_seconds=retry_seconds)
        self._timeout_seconds = timeout_seconds
        self._retry_seconds = retry_seconds

    async def tell(self, user_ids: Sequence[str]) -> None:
        """Tells the other processes. Never raises."""
        if not user_ids or not self._breaker.allows():
            return
        try:
            async with asyncio.timeout(self._timeout_seconds):
                for start in range(0, len(user_ids), _USERS_A_MESSAGE):
                    await self._redis.publish(CHANNEL, ",".join(user_ids[start : start + _USERS_A_MESSAGE]))
        except _FAILURES as error:
            go_on()
            self._breaker.failed(error)
        else:
            self._breaker.succeeded()

    async def listen(self, on_change: Callable[[Iterable[str]], None]) -> NoReturn:
        """Hears them for ever; without Redis it tries again every `retry_seconds`."""
        while True:
            try:
                await self._heard(on_change)
            except _FAILURES as error:
                go_on()
                log.warning("task_signals.lost", error=type(error).__name__)
            await asyncio.sleep(self._retry_seconds)

    async def _heard(self, on_change: Callable[[Iterable[str]], None]) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:
            await subscription.subscribe(CHANNEL)
            while True:
                # The bound on silence notices nothing by itself; `ping` does, where the other side is gone.
                message = await subscription.get_message(timeout=_SILENCE_SECONDS)
                if message is None:
                    await subscription.ping()
                elif isinstance(data := message["data"], bytes):
                    on_change(data.decode().split(","))
