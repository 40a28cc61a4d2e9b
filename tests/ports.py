"""Ports for servers that tests start as processes: chosen first, listened on a moment later.

They lie below those that the system gives to whoever asks for any port, so that no connection and no other server gets one
meanwhile; each worker of a test run has its own, and begins somewhere among them, since other runs may be under way.
"""

import os
import random
import socket
from collections.abc import Iterator
from typing import Final

# Linux gives from 32768 on, macOS from 49152.
_FIRST: Final = 12_000
_LAST: Final = 32_000


def free_ports(count: int) -> list[int]:
    """Ports that are free now and were not given out lately; so is the next of each, for a second process of a service."""
    return [next(_PORTS) for _ in range(count)]


def free_port() -> int:
    """One of them."""
    return next(_PORTS)


def _ports() -> Iterator[int]:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    pairs = (_LAST - _FIRST) // 2 // workers
    first = _FIRST + 2 * pairs * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    place, tries = random.randrange(pairs), 0  # noqa: S311 - nothing secret
    while tries < pairs:
        place, tries = (place + 1) % pairs, tries + 1
        port = first + 2 * place
        if _is_free(port) and _is_free(port + 1):
            tries = 0
            yield port
    raise RuntimeError(f"no port is free from {first} to {first + 2 * pairs}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port of a server that has just ended may be listened on.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


_PORTS: Final = _ports()
