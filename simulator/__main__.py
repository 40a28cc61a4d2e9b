"""`python -m simulator`: one simulator as a process, until SIGTERM or SIGINT."""

import asyncio
import os
import signal
import socket
import sys

import uvloop
from pydantic import ValidationError

from simulator.app import Simulator
from simulator.embedders import Embedder, EmbedderError, LocalEmbedder
from simulator.plan import Pace
from simulator.server import Server, listen, url_of
from simulator.settings import Settings


async def serve(settings: Settings, listening: socket.socket, embedder: Embedder | None) -> None:
    """Serve until a signal asks to stop."""
    pace = Pace(first_token_ms=settings.first_token_ms, interval_ms=settings.interval_ms)
    server = Server(Simulator(control=settings.control, pace=pace, embedder=embedder))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    await server.serve(sockets=[listening])


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


def main() -> int:
    """Exit status: 0 after a signal, 1 where the address cannot be had, 2 for bad settings."""
    try:
        settings = Settings()
    except ValidationError as error:
        for broken in error.errors(include_url=False):
            name = "_".join(map(str, broken["loc"])).upper()
            print(f"simulator: SIMULATOR_{name}: {broken['msg']}", file=sys.stderr)
        return 2
    try:
        embedder = LocalEmbedder.load(settings.embedding_model) if settings.embedding_model else None
    except EmbedderError as error:
        print(f"simulator: SIMULATOR_EMBEDDING_MODEL: {error}", file=sys.stderr)
        return 2
    try:
        listening = listen(settings.host, settings.port)
    except OSError as error:
        print(f"simulator: cannot listen on {settings.host}:{settings.port}: {_reason(error)}", file=sys.stderr)
        return 1
    door = " with its control door open" if settings.control else ""
    print(f"SIMULATOR{door}: rule-based replies, no model, OpenAI-compatible at {url_of(listening)}/v1", flush=True)
    uvloop.run(serve(settings, listening, embedder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
