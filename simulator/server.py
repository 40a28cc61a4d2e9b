"""The simulator as a server: on the loop of a test, or as a process of its own.

Owns the listening socket and the order of shutting down: no new connections, every open reply ended, background
runs stopped, within a second and whatever is streaming.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import uvicorn

from simulator.app import Simulator
from simulator.control import Control
from simulator.embedders import Embedder
from simulator.plan import Pace

UNPACED = Pace()

_BACKLOG = 2048
_TICK_SECONDS = 1.0
_KEEP_ALIVE_SECONDS = 75  # above what clients keep idle connections for, as the real API
_SHUTDOWN_SECONDS = 1


class Server(uvicorn.Server):
    """uvicorn, ended by `stop()` instead of by signals, at once instead of after the open streams."""

    def __init__(self, simulator: Simulator) -> None:
        logging.getLogger("uvicorn.error").addFilter(_not_about_cut_replies)
        super().__init__(
            uvicorn.Config(
                simulator.app,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            )
        )
        self._simulator = simulator
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Begin to shut down. Idempotent."""
        self.should_exit = True
        self._stopping.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: who runs the server decides what ends it."""
        yield

    async def main_loop(self) -> None:
        """Refresh the Date header every second until `stop()`."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _TICK_SECONDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End every reply first: uvicorn would wait for the open streams."""
        for server in self.servers:
            server.close()
        await self._simulator.close()
        await super().shutdown(sockets)


@dataclass(frozen=True, slots=True)
class Running:
    """A running simulator: `base_url` for a client of OpenAI, `control` for the test itself."""

    base_url: str
    control: Control


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes any free one. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named, which socket.create_server does not do: every
    # reply would wait 40 ms for a delayed acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def url_of(listening: socket.socket) -> str:
    """The root address of a bound socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.asynccontextmanager
async def running(
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    control: bool = True,
    pace: Pace = UNPACED,
    embedder: Embedder | None = None,
) -> AsyncIterator[Running]:
    """A simulator on the running loop for as long as the context lasts."""
    listening = listen(host, port)
    server = Server(Simulator(control=control, pace=pace, embedder=embedder))
    # A task and no TaskGroup: a pytest fixture is left in another task than the one that entered it.
    serving = asyncio.create_task(server.serve(sockets=[listening]), name="simulator")
    try:
        async with Control(url_of(listening)) as door:
            yield Running(f"{url_of(listening)}/v1", door)
    finally:
        server.stop()
        await serving


def _not_about_cut_replies(record: logging.LogRecord) -> bool:
    """Replies are left incomplete on purpose; uvicorn calls that an error each time."""
    return not str(record.msg).startswith("ASGI callable returned without")
