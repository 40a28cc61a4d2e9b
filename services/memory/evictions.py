"""The sweep: text that was forgotten while Redis was away goes when it is back.

Owns a loop for as long as it is entered. Invariant: an eviction is owed in the database until Redis has confirmed it,
also across restarts; any number of processes may sweep at once. It cannot hurry Redis: until then the text is there for
the rest of its half hour, and unreachable.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Final, Self

import structlog

from services.memory.conversation_memory import ConversationMemory
from services.memory.store import STORE_ERRORS

log = structlog.get_logger(__name__)

_BATCH: Final = 500


class EvictionSweep:
    """Settles owed evictions every `interval_seconds`."""

    def __init__(self, memory: ConversationMemory, *, interval_seconds: float) -> None:
        self._memory = memory
        self._interval_seconds = interval_seconds
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                while await self._memory.settle_owed(_BATCH):
                    pass
            except STORE_ERRORS as error:
                log.warning("evictions.sweep_failed", error=type(error).__name__)
            await asyncio.sleep(self._interval_seconds)
