"""The count that all limiters share, in Redis. One script call in flight, carrying every call that came meanwhile.

Invariant: a call is counted in all of its windows or in none, also when Redis answers too late to be heard: then it was
counted, and its caller is told None.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.limiter.verdict import Standing, Verdict
from gateway.limiter.windows import Window
from services.runtime.breaker import Breaker
from services.runtime.duties import go_on
from services.runtime.redis_scripts import Scripts

FAILURES: Final = (RedisError, OSError, TimeoutError)
_SCRIPT: Final = (Path(__file__).parent / "count.lua").read_text()
_CALLS_AT_ONCE: Final = 500
# Beyond it Redis is slower than the calls come: they are told so at once.
_MOST_WAITING: Final = 20_000
_MICROSECONDS: Final = 1_000_000
_NUMBERS_A_WINDOW: Final = 3


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    windows: Sequence[Window]
    verdict: asyncio.Future[Verdict | None]

    def lists(self) -> list[str]:
        return [f"limit:{self.name}:{window.seconds}" for window in self.windows]

    def arguments(self) -> list[int]:
        pairs = ((window.seconds * _MICROSECONDS, window.calls) for window in self.windows)
        return [len(self.windows), *(number for pair in pairs for number in pair)]


class SharedCount:
    """Counts while `run`, a standing duty, runs."""

    def __init__(self, redis: Redis, *, timeout_seconds: float, retry_seconds: float) -> None:
        self._scripts = Scripts(redis)
        self._timeout_seconds = timeout_seconds
        self._breaker = Breaker("redis", retry_seconds=retry_seconds)
        self._waiting: deque[_Call] = deque()
        self._came = asyncio.Event()

    async def count(self, name: str, windows: Sequence[Window]) -> Verdict | None:
        """Counts a call of `name` unless one of the windows is full; None while Redis cannot be asked."""
        if len(self._waiting) >= _MOST_WAITING:
            return None
        call = _Call(name, windows, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        self._came.set()
        return await call.verdict

    async def run(self) -> None:
        """Takes what has come to Redis, for ever."""
        while True:
            await self._came.wait()
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _CALLS_AT_ONCE))]
            if not self._waiting:
                self._came.clear()
            # Whoever has given up is not counted.
            batch = [call for call in batch if not call.verdict.done()]
            verdicts: Sequence[Verdict | None] = [None] * len(batch)
            try:
                verdicts = await self._verdicts(batch)
            finally:
                _resolve(batch, verdicts)

    async def _verdicts(self, batch: Sequence[_Call]) -> Sequence[Verdict | None]:
        if not batch or not self._breaker.allows():
            return [None] * len(batch)
        keys = [key for call in batch for key in call.lists()]
        arguments = [number for call in batch for number in call.arguments()]
        try:
            answer = await self._scripts.call(_SCRIPT, keys, arguments, self._timeout_seconds)
        except FAILURES as error:
            go_on()
            self._breaker.failed(error)
            return [None] * len(batch)
        self._breaker.succeeded()
        numbers = iter(answer)
        return [Verdict([_standing(window, numbers) for window in call.windows]) for call in batch]


def _standing(window: Window, numbers: Iterator[int]) -> Standing:
    is_full, left, wait = (next(numbers) for _ in range(_NUMBERS_A_WINDOW))
    return Standing(window, left, wait / _MICROSECONDS, bool(is_full))


def _resolve(batch: Sequence[_Call], verdicts: Sequence[Verdict | None]) -> None:
    for call, verdict in zip(batch, verdicts, strict=True):
        if not call.verdict.done():
            call.verdict.set_result(verdict)
