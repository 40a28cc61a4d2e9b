"""Postgres and Redis as parts of the suite: servers that write their logs into files by themselves."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from suite.output import Log, follow
from suite.processes import describe_exit


class Server(Protocol):
    """A server that runs."""

    async def wait(self) -> int:
        """Return the exit status when the server has ended, for whatever reason."""

    async def stop(self, *, hurry: asyncio.Event | None = None) -> None:
        """End it with everything on disk. Idempotent."""


S = TypeVar("S", bound=Server)


class ServerPart(Generic[S]):
    """A server as a Part. What it appends to the file of `log` is shown while it runs; `server` once it has started."""

    def __init__(self, name: str, start_server: Callable[[], Awaitable[S]], log: Log) -> None:
        self.name = name
        self._start_server = start_server
        self._log = log
        self._server: S | None = None
        self._following: asyncio.Task[None] | None = None

    @property
    def server(self) -> S:
        """The server, which must have been started."""
        if self._server is None:
            raise AssertionError("start it first")
        return self._server

    async def start(self) -> None:
        """See Part."""
        self._server = await self._start_server()
        self._stop_following()
        self._following = asyncio.create_task(follow(self._log.path, self._log.show), name=f"follow {self.name}")

    async def wait(self) -> str:
        """See Part."""
        return describe_exit(await self.server.wait())

    async def stop(self, hurry: asyncio.Event) -> None:
        """See Part."""
        self._stop_following()
        if self._server is not None:
            await self._server.stop(hurry=hurry)

    def _stop_following(self) -> None:
        if self._following is not None:
            self._following.cancel()
            self._following = None
