"""What auth does without being asked: the next signing key in time, and no rows that nobody needs.

Each process does it, a little off the beat of the others; keys are settled under a lock, the sweep passes over rows that
another process has in hand. While the database is away nothing is done, and the log says so.
"""

from collections.abc import Awaitable, Callable, Mapping

import structlog

from services.auth.signing_keys import SigningKeys
from services.runtime.duties import repeat

log = structlog.get_logger(__name__)

KEY_CHECK_SECONDS = 60.0
KEEP_ENDED_SECONDS = 86_400.0
"""Ended sessions stay for a day: longer than the feed tells of them."""
BATCH = 500


class Upkeep:
    """The standing duties of one auth process."""

    def __init__(
        self, sweeps: Mapping[str, Callable[[], Awaitable[int]]], keys: SigningKeys, *, sweep_interval_seconds: float
    ) -> None:
        self._sweeps = sweeps
        self._keys = keys
        self._sweep_interval_seconds = sweep_interval_seconds

    async def keep_keys(self) -> None:
        """Looks after the signing keys for ever, once a minute."""
        await repeat("signing_keys", self._keys.refresh, interval_seconds=KEY_CHECK_SECONDS)

    async def keep_clean(self) -> None:
        """Sweeps for ever."""
        await repeat("sweep", self.sweep, interval_seconds=self._sweep_interval_seconds)

    async def sweep(self) -> None:
        """Deletes what ended, expired or is older than its retention, in small transactions, until nothing is left."""
        for name, sweep in self._sweeps.items():
            removed = 0
            while swept := await sweep():
                removed += swept
            if removed:
                log.info("auth.swept", rows=removed, what=name)
