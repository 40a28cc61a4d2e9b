"""How many searches run at a time: as many as the database serves at once; the others wait where giving up costs nothing.

Owns that a search which was begun is finished, though nobody waits for it any more. One that is cancelled amid a statement
loses its connection, and the next pays for a new one: under load that is what would make every search late.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog

log = structlog.get_logger(__name__)
Result = TypeVar("Result")


class Admission:
    """Lets `most` at a time begin, in the order in which they came."""

    def __init__(self, *, most: int) -> None:
        self._gate = asyncio.Semaphore(most)
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """What the work gives, or raises. Whoever is cancelled while it runs leaves it to its end, in its place."""
        await self._gate.acquire()
        task = asyncio.ensure_future(self._finished(work))
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def _finished(self, work: Callable[[], Awaitable[Result]]) -> Result:
        try:
            return await work()
        finally:
            self._gate.release()

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Whoever waits has it as well.
            log.debug("recall.failed", error=type(error).__name__)
