"""One child process: started so that it cannot outlive the suite, stopped by a ladder of signals.

A child is the leader of a session of its own, so that Ctrl-C reaches the suite alone and the suite decides the order.
Start children from the main thread: on Linux the parent-death signal fires when the thread that forked them ends.
"""

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from suite.errors import SuiteError
from suite.launch import launch_command

KILL_WAIT_SECONDS = 5.0
HURRIED_SECONDS = 1.0
BAD_SETTINGS_STATUS = 2  # by which every program of ours refuses its settings
EXIT_OUTPUT_BYTES = 2_000


@dataclass(frozen=True, slots=True)
class Rung:
    """A signal, and how long the child has to end after it."""

    signal: signal.Signals
    seconds: float


@dataclass(frozen=True, slots=True)
class Program:
    """What to run: arguments, the whole environment, the account it runs as (uid, gid) and the folder it runs in."""

    command: Sequence[str]
    environment: Mapping[str, str]
    account: tuple[int, int] | None = None
    folder: Path | None = None
    death_signal: signal.Signals = signal.SIGTERM


async def spawn(program: Program, *, output: int | IO[bytes] = DEVNULL) -> Process:
    """Start the program; its standard output and error both go to `output`."""
    command = launch_command(program.command, death_signal=program.death_signal, account=program.account)
    return await asyncio.create_subprocess_exec(
        *command,
        env=dict(program.environment),
        cwd=program.folder,
        stdin=DEVNULL,
        stdout=output,
        stderr=STDOUT,
        start_new_session=True,
    )


async def end(process: Process, ladder: Sequence[Rung], *, hurry: asyncio.Event | None = None) -> int:
    """Send one signal after the other until the process has ended, the last being SIGKILL; returns its exit status.

    Once `hurry` is set, each rung gets HURRIED_SECONDS at most.
    """
    for rung in ladder:
        _signal(process, rung.signal)
        if await _has_ended(process, rung.seconds, hurry):
            return await process.wait()
    _signal_session(process)
    return await asyncio.wait_for(process.wait(), KILL_WAIT_SECONDS)


async def _has_ended(process: Process, seconds: float, hurry: asyncio.Event | None) -> bool:
    ended = asyncio.ensure_future(process.wait())
    hurried = asyncio.ensure_future((hurry or asyncio.Event()).wait())
    try:
        await asyncio.wait({ended, hurried}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done() and hurried.done():
            await asyncio.wait({ended}, timeout=min(seconds, HURRIED_SECONDS))
        return ended.done()
    finally:
        ended.cancel()
        hurried.cancel()


async def run(program: Program, *, output: Path, what: str, timeout_seconds: float) -> None:
    """Run a program to its end, its output kept in a file; SuiteError with its last words on failure or delay."""
    with output.open("wb") as sink:
        process = await spawn(program, output=sink)
        try:
            status = await asyncio.wait_for(process.wait(), timeout_seconds)
        except TimeoutError:
            raise SuiteError(f"{what} took longer than {timeout_seconds:.0f} s; see {output}") from None
        finally:
            if process.returncode is None:
                await end(process, (Rung(signal.SIGTERM, 2.0),))
    if status != 0:
        story = f"{what} failed ({describe_exit(status)}): {last_line(output)}; see {output}"
        raise SuiteError(story, exit_code=BAD_SETTINGS_STATUS if status == BAD_SETTINGS_STATUS else 1)


def describe_exit(status: int | None) -> str:
    """`exit code 3`, `SIGKILL`, in the words of the person who reads it."""
    if status is None:
        return "still running"
    if status < 0:
        return signal.Signals(-status).name
    return f"exit code {status}"


def last_line(log: Path) -> str:
    """The last line that says something, from the end of a log that may be long."""
    with log.open("rb") as source:
        source.seek(max(0, log.stat().st_size - EXIT_OUTPUT_BYTES))
        lines = source.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _signal(process: Process, number: signal.Signals) -> None:
    if process.returncode is None:
        process.send_signal(number)


def _signal_session(process: Process) -> None:
    """SIGKILL the child and what it started itself."""
    if process.returncode is not None:
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
