"""How often and how long a round is tried again.

Owns the counting of one round. Invariant: no wait begins that ends after the deadline.
"""

import asyncio

import structlog

from services.runtime.errors import ServiceError
from services.runtime.openai import OpenAISettings, Refusal, backoff_seconds, is_stated_limit, retry_wait_seconds

MAX_BLIND_RESUMPTIONS = 5
MAX_RESUMPTION_WAIT_SECONDS = 5.0
log = structlog.get_logger(__name__)


class Patience:
    """The tries of one round. `deadline` is on the loop's clock."""

    def __init__(self, settings: OpenAISettings, *, model: str, deadline: float) -> None:
        self._settings = settings
        self._model = model
        self._deadline = deadline
        self._retries = 0
        self._resumptions = 0

    async def before_retry(self, error: ServiceError) -> None:
        """Waits before what failed before its first piece is tried again; raises `error` where it is not to be.

        A limit whose end the provider states is waited for as often as the deadline allows; other failures are counted.
        """
        wait_seconds = retry_wait_seconds(error, retries=self._retries, settings=self._settings)
        if wait_seconds is None:
            raise error
        if not is_stated_limit(error):
            self._retries += 1
        await self._wait(wait_seconds, error)
        log.warning("model.call_retried", model=self._model, wait_seconds=round(wait_seconds, 3))

    async def before_resumption(self, error: ServiceError) -> None:
        """Waits before a run at the provider is read on; raises `error` after too many times without news of it."""
        self._resumptions += 1
        if self._resumptions > MAX_BLIND_RESUMPTIONS:
            raise error
        wait_seconds = min(backoff_seconds(self._resumptions - 1, self._settings), MAX_RESUMPTION_WAIT_SECONDS)
        stated = error.__cause__.retry_after_seconds if isinstance(error.__cause__, Refusal) else None
        await self._wait(max(wait_seconds, stated or 0), error)
        log.warning("model.run_resumed", model=self._model, reason=type(error).__name__)

    def take_heart(self) -> None:
        """The run is alive."""
        self._resumptions = 0

    async def _wait(self, seconds: float, error: ServiceError) -> None:
        if asyncio.get_running_loop().time() + seconds >= self._deadline:
            raise error
        await asyncio.sleep(seconds)
