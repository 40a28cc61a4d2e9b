"""Postgres and Redis as parts of the suite: servers that write their logs into files by themselves."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from suite.output import follow
from suite.postgres import EmbeddedPostgres
from suite.processes import describe_exit
from suite.redis import RedisServer, start_redis, stop_redis


class _LogFollower:
    """Relays a file that a server writes by itself, as long as the server runs."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._task: asyncio.Task[None] | None = None

    def start(self, path: Path) -> None:
        self.stop()
        self._task = asyncio.create_task(follow(path, self._write), name=f"follow {path.name}")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None


class PostgresPart:
    """The embedded Postgres; `admin_url` once it has started."""

    name = "postgres"

    def __init__(self, data: Path, *, log_file: Path, settings: Mapping[str, str], say: Callable[[str], None]) -> None:
        self._data = data
        self._log_file = log_file
        self._settings = settings
        self._server: EmbeddedPostgres | None = None
        self._follower = _LogFollower(say)

    @property
    def server(self) -> EmbeddedPostgres:
        """The server, which must have been started."""
        if self._server is None:
            raise AssertionError("start it first")
        return self._server

    async def start(self) -> None:
        """See Part."""
        self._server = await EmbeddedPostgres.start(self._data, settings=self._settings, log_file=self._log_file)
        self._follower.start(self._log_file)

    async def wait(self) -> str:
        """See Part."""
        return describe_exit(await self.server.wait())

    async def stop(self, hurry: asyncio.Event) -> None:
        """See Part."""
        self._follower.stop()
        if self._server is not None:
            await self._server.stop(hurry=hurry)


class RedisPart:
    """The Redis of this machine; `server` once it has started."""

    name = "redis"

    def __init__(self, data: Path, *, log_file: Path, say: Callable[[str], None]) -> None:
        self._data = data
        self._log_file = log_file
        self._server: RedisServer | None = None
        self._follower = _LogFollower(say)

    @property
    def server(self) -> RedisServer:
        """The server, which must have been started."""
        if self._server is None:
            raise AssertionError("start it first")
        return self._server

    async def start(self) -> None:
        """See Part."""
        self._server = await start_redis(self._data, log_file=self._log_file)
        self._follower.start(self._log_file)

    async def wait(self) -> str:
        """See Part."""
        return describe_exit(await self.server.wait())

    async def stop(self, hurry: asyncio.Event) -> None:
        """See Part."""
        self._follower.stop()
        if self._server is not None:
            await stop_redis(self._server, hurry=hurry)
