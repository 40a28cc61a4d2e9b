"""The parts the suite runs: each can be started until it is ready, waited for and stopped.

Invariant: when `start` fails or is cancelled, nothing of the part is left running; `stop` may be called at any time.
"""

import asyncio
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from suite.errors import SuiteError
from suite.output import Log, relay
from suite.processes import BAD_SETTINGS_STATUS, Program, Rung, describe_exit, end, spawn

READY_SECONDS = 30.0
POLL_SECONDS = 0.03
LAST_OUTPUT_SECONDS = 2.0


class Part(Protocol):
    """Something that runs until it is stopped."""

    @property
    def name(self) -> str:
        """What the terminal calls it."""

    async def start(self) -> None:
        """Return when it is ready; SuiteError with its last lines when it does not become so."""

    async def wait(self) -> str:
        """Return how it ended, once it has."""

    async def stop(self, hurry: asyncio.Event) -> None:
        """End it in good order; after `hurry` in less. Idempotent."""


@dataclass
class ProgramPart:
    """A program that writes its log to standard output; `is_ready` says when it is, `before_stop` prepares its end."""

    name: str
    program: Program
    log: Log
    is_ready: Callable[[], Awaitable[bool]]
    ladder: Sequence[Rung]
    before_stop: Callable[[asyncio.Event], Awaitable[None]] | None = None
    _process: Process | None = field(default=None, init=False)
    _output: asyncio.Task[None] | None = field(default=None, init=False)

    async def start(self) -> None:
        """See Part."""
        self._process = await spawn(self.program, output=PIPE)
        if self._process.stdout is None:
            raise AssertionError("a pipe was asked for")
        self._output = asyncio.create_task(relay(self._process.stdout, self.log.write), name=f"{self.name} output")
        try:
            await self._until_ready(self._process)
        except BaseException:
            await self._end(self._process, hurry=None)
            raise

    async def wait(self) -> str:
        """See Part."""
        if self._process is None:
            return "not started"
        status = await self._process.wait()
        await self._finish_output()
        return describe_exit(status)

    async def stop(self, hurry: asyncio.Event) -> None:
        """See Part."""
        if self._process is None:
            return
        if self.before_stop is not None and self._process.returncode is None:
            await self.before_stop(hurry)
        await self._end(self._process, hurry=hurry)
        self.log.close()

    async def _until_ready(self, process: Process) -> None:
        give_up = time.monotonic() + READY_SECONDS
        while not await self.is_ready():
            if process.returncode is not None:
                await self._finish_output()
                raise self._did_not_start(process.returncode)
            if time.monotonic() > give_up:
                raise SuiteError(
                    f"{self.name} was not ready after {READY_SECONDS:.0f} s; see {self.log.path}",
                    last_lines=list(self.log.last_lines),
                )
            await asyncio.sleep(POLL_SECONDS)

    def _did_not_start(self, status: int) -> SuiteError:
        lines = list(self.log.last_lines)
        if status == BAD_SETTINGS_STATUS and lines:
            return SuiteError(f"{self.name}: {lines[-1]}", exit_code=BAD_SETTINGS_STATUS)
        return SuiteError(f"{self.name} did not start ({describe_exit(status)}); see {self.log.path}", last_lines=lines)

    async def _end(self, process: Process, *, hurry: asyncio.Event | None) -> None:
        await end(process, self.ladder, hurry=hurry)
        await self._finish_output()

    async def _finish_output(self) -> None:
        """Whatever it started itself may hold the pipe open, so the wait is bounded."""
        if self._output is None:
            return
        _, late = await asyncio.wait({self._output}, timeout=LAST_OUTPUT_SECONDS)
        for task in late:
            task.cancel()
