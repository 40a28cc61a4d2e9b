"""The control door's client side, for tests of anything that talks to the simulator.

Owns the calls of /_control as typed methods. `verify_consumed` is the promise that makes scripts honest: an answer that
nobody asked for, or a request that an exhaustive script did not foresee, fails the test.
"""

import asyncio
from types import TracebackType
from typing import Any, Self

import httpx2

from simulator.plan import Fault, Pace
from simulator.script import (
    Endpoint,
    Match,
    RecordedRequest,
    ScriptedAnswer,
    ScriptedCall,
    ScriptedCitation,
    ScriptRequest,
    ScriptStatus,
)

__all__ = [
    "Control",
    "Fault",
    "Match",
    "Pace",
    "RecordedRequest",
    "ScriptStatus",
    "ScriptedAnswer",
    "ScriptedCall",
    "ScriptedCitation",
]

_TIMEOUT_SECONDS = 5.0
_POLL_SECONDS = 0.01


class ControlError(Exception):
    """The door refused: the message says what was wrong with the call."""


class Control:
    """The control door of one simulator. `url` is its root, with or without `/v1`."""

    def __init__(self, url: str) -> None:
        root = url.rstrip("/").removesuffix("/v1")
        self._client = httpx2.AsyncClient(base_url=root, timeout=_TIMEOUT_SECONDS, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def script(self, *answers: ScriptedAnswer, exhaustive: bool = False) -> None:
        """Queue answers. With `exhaustive`, a generation request without an answer is refused until the reset."""
        asked = ScriptRequest(answers=list(answers), exhaustive=exhaustive)
        await self._call("POST", "script", json=asked.model_dump(mode="json", exclude_unset=True))

    async def requests(self, endpoint: Endpoint | None = None, *, with_titles: bool = False) -> list[RecordedRequest]:
        """The requests received since the reset, oldest first; those of one endpoint, or all.

        Those for a conversation's title, which jobs make at any time after a turn, are left out unless asked for.
        """
        told = await self._call("GET", "requests")
        received = [RecordedRequest.model_validate(one) for one in told["requests"]]
        return [one for one in received if endpoint in (None, one.endpoint) and (with_titles or not one.asks_title)]

    async def status(self) -> ScriptStatus:
        """What is unconsumed, unexpected, running and held now."""
        return ScriptStatus.model_validate(await self._call("GET", "status"))

    async def wait(self, *, running: int | None = None, held: int | None = None) -> None:
        """Return once so many replies are running and held. Raises TimeoutError after five seconds."""
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            while True:
                status = await self.status()
                if running in (None, status.running) and held in (None, status.held):
                    return
                await asyncio.sleep(_POLL_SECONDS)

    async def release(self) -> int:
        """Let the held replies go on; returns how many they were."""
        return int((await self._call("POST", "release"))["released"])

    async def expire_containers(self) -> int:
        """Let every container of the code interpreter expire; returns how many there were."""
        return int((await self._call("POST", "expire-containers"))["expired"])

    async def reset(self) -> None:
        """Forget answers and requests; held replies go on. Idempotent."""
        await self._call("POST", "reset")

    async def verify_consumed(self) -> None:
        """Raises AssertionError where a scripted answer waits or a request came that the script did not foresee."""
        status = await self.status()
        if status.unconsumed:
            left = [answer.model_dump(mode="json", exclude_defaults=True) for answer in status.unconsumed]
            raise AssertionError(f"scripted answers were not consumed: {left}")
        if status.unexpected:
            raise AssertionError(f"requests came that the script has no answer for: numbers {status.unexpected}")

    async def _call(self, method: str, verb: str, *, json: dict[str, Any] | None = None) -> dict[str, Any]:
        reply = await self._client.request(method, f"/_control/{verb}", json=json)
        if not reply.is_success:
            raise ControlError(f"/_control/{verb} answered {reply.status_code}: {reply.text}")
        told: dict[str, Any] = reply.json()
        return told
