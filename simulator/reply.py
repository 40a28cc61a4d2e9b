"""A reply on the socket: written while the client listens, abandoned when it leaves.

Owns the ASGI side of a reply. Invariant: every reply ends (completed, broken on purpose, or dropped with the client or
the server), and how it ended is told to the one who asked for it. A broken connection is made by returning before the
body is complete: uvicorn then closes the socket after what was written has left.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from simulator.frames import ConnectionCutError
from simulator.script import Outcome

Writer: TypeAlias = Callable[[Send], Coroutine[Any, Any, None]]


class Reply(Response):
    """An ASGI response around a writer. `live` holds the writing task while it runs, so that a server can end it."""

    def __init__(self, write: Writer, *, live: set[asyncio.Task[None]], ended: Callable[[Outcome], None]) -> None:
        super().__init__()
        self._write = write
        self._live = live
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (ASGI's signature)
        """Write until the writer or the client has ended it."""
        writing = asyncio.create_task(self._write(send))
        leaving = asyncio.create_task(_left(receive))
        self._live.add(writing)
        outcome: Outcome = "disconnected"
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            outcome = _outcome(writing)
        finally:
            self._live.discard(writing)
            self._ended(outcome)
            for task in (writing, leaving):
                task.cancel()
            await asyncio.wait({writing, leaving})
        if not writing.cancelled() and (error := writing.exception()) and not isinstance(error, ConnectionCutError):
            raise error


def _outcome(writing: asyncio.Task[None]) -> Outcome:
    if not writing.done() or writing.cancelled():
        return "disconnected"
    return "broken" if writing.exception() else "completed"


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def common_headers(started_seconds: float) -> dict[str, str]:
    """The headers that every reply of the API carries. `started_seconds` is of time.monotonic()."""
    return {
        "x-request-id": f"req_{uuid.uuid4().hex}",
        "openai-version": "2020-10-01",
        "openai-processing-ms": str(int((time.monotonic() - started_seconds) * 1000)),
    }


async def start_reply(send: Send, status: int, headers: dict[str, str]) -> None:
    """Send the status line and the headers."""
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})


async def send_body(send: Send, body: bytes, *, more: bool) -> None:
    """Send a piece of the body; the last one has `more=False`."""
    await send({"type": "http.response.body", "body": body, "more_body": more})
