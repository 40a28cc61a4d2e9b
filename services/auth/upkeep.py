"""What auth does without being asked: the next signing key in time, and no rows that nobody needs.

Each process does it, a little off the beat of the others; keys are settled under a lock, the sweep passes over rows that
another process has in hand. While the database is away nothing is done, and the log says so.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from services.auth.session_store import SessionStore
from services.auth.signing_keys import SigningKeys
from services.auth.statements import DatabaseFailure

log = structlog.get_logger(__name__)

KEY_CHECK_SECONDS = 60.0
KEEP_ENDED_SECONDS = 86_400.0
"""Ended sessions stay for a day: longer than the feed tells of them."""
_BATCH = 500
_JITTER = 0.2


class Upkeep:
    """The standing duties of one auth process."""

    def __init__(self, store: SessionStore, keys: SigningKeys, *, sweep_interval_seconds: float) -> None:
        self._store = store
        self._keys = keys
        self._sweep_interval_seconds = sweep_interval_seconds

    async def keep_keys(self) -> None:
        """Looks after the signing keys for ever, once a minute."""
        await _repeat(self._keys.refresh, KEY_CHECK_SECONDS)

    async def keep_clean(self) -> None:
        """Sweeps for ever."""
        await _repeat(self.sweep, self._sweep_interval_seconds)

    async def sweep(self) -> None:
        """Deletes what ended or expired, in small transactions, until nothing is left."""
        removed = 0
        while swept := await self._store.sweep(keep_seconds=KEEP_ENDED_SECONDS, batch=_BATCH):
            removed += swept
        if removed:
            log.info("auth.sessions_swept", rows=removed)


async def _repeat(duty: Callable[[], Awaitable[None]], interval_seconds: float) -> None:
    while True:
        await asyncio.sleep(interval_seconds * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311 - a beat, no secret
        try:
            await duty()
        except DatabaseFailure as error:
            log.warning("auth.upkeep_postponed", error=type(error).__name__)
