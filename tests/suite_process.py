"""Starting `python -m suite` in a test, on ports of its own."""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from pathlib import Path

from tests.ports import free_ports

ROOT = Path(__file__).parents[1]
PORTS = (
    *("EDGE", "EDGE_ADMIN", "SIMULATOR", "LIMITER", "LIMITER_METRICS"),
    *("AUTH", "CHAT", "MEMORY", "AUTH_METRICS", "CHAT_METRICS", "MEMORY_METRICS", "CHAT_MCP"),
    *("SMS", "SMS_METRICS"),
)


# One address is everybody here, and users are in a hurry. The limiter is asked all the same.
UNLIMITED = {f"LIMIT_{name}": "off" for name in ("GENERAL", "MODEL", "SIGN_IN", "REGISTRATION", "PUBLIC", "EXCHANGE")}


def suite_environment(data: Path, **more: str) -> dict[str, str]:
    """An environment in which the suite disturbs nobody: ports of its own, no settings of this machine's."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    ports = {f"PARLEY_{name}_PORT": str(port) for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)}
    return {**kept, **ports, "PARLEY_DATA": str(data), "PYTHONPATH": str(ROOT), **UNLIMITED, **more}


async def start_command(environment: Mapping[str, str], folder: Path, *arguments: str) -> Process:
    """`python -m suite`, or another program of ours, with its output in pipes."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *(arguments or ("-m", "suite")),
        env=dict(environment),
        cwd=folder,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )


async def outcome(process: Process) -> tuple[int, str, str]:
    """Exit code, output and errors of a program that ends by itself."""
    output, errors = await asyncio.wait_for(process.communicate(), 30)
    if process.returncode is None:
        raise AssertionError("it has ended")
    return process.returncode, output.decode(), errors.decode()
