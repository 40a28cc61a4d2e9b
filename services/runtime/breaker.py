"""Whether it is worth asking something that may be down.

Owns what is known of its state. Invariant: while it is down, one caller in each `retry_seconds` finds that out anew and
all others are told at once, so that a dead part costs nobody else its timeout. Says once that it was lost, and once
that it is back.
"""

import time

import structlog

log = structlog.get_logger(__name__)


class Breaker:
    """Trips at the first failure; `part` names what it stands before in the log."""

    def __init__(self, part: str, *, retry_seconds: float) -> None:
        self._part = part
        self._retry_seconds = retry_seconds
        self._retry_time: float | None = None

    def allows(self) -> bool:
        """Whether to ask now. While tripped: yes to one caller in each `retry_seconds`, who must report the outcome."""
        if self._retry_time is None:
            return True
        now = time.monotonic()
        if now < self._retry_time:
            return False
        self._retry_time = now + self._retry_seconds
        return True

    def failed(self, error: BaseException) -> None:
        """It did not answer."""
        if self._retry_time is None:
            log.warning("breaker.tripped", part=self._part, error=type(error).__name__)
        self._retry_time = time.monotonic() + self._retry_seconds

    def succeeded(self) -> None:
        """It answered."""
        if self._retry_time is not None:
            log.info("breaker.reset", part=self._part)
        self._retry_time = None
