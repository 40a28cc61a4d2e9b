"""Calling scripts of Redis by their digests, within a time."""

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError


class Scripts:
    """The scripts of one client. Raises what redis-py raises, OSError, and TimeoutError."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._digests: dict[str, str] = {}

    async def call(self, script: str, keys: Sequence[str], arguments: Sequence[Any], timeout_seconds: float) -> Any:
        """What the script answers. Given up when `timeout_seconds` have passed twice in a row.

        A timer that fires late, on a busy loop, says nothing about Redis: its answer may be there already.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as patience:
            timer = loop.call_later(timeout_seconds, lambda: patience.reschedule(loop.time() + timeout_seconds))
            try:
                return await self._run(script, keys, arguments)
            finally:
                timer.cancel()

    async def _run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        digest = self._digests.get(script)
        if digest is not None:
            try:
                return await self._redis.evalsha(digest, len(keys), *keys, *arguments)
            except NoScriptError:
                # Redis has started anew.
                pass
        self._digests[script] = str(await self._redis.script_load(script))
        return await self._redis.evalsha(self._digests[script], len(keys), *keys, *arguments)
