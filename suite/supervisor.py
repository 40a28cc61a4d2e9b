"""Keeps the parts alive while the suite runs, and ends them in order when it ends, however it ends.

A part that ends during start-up ends the suite; later it is started again, less and less often when it keeps ending.
Parts are stopped level by level, the highest first, so that nobody loses what it still needs.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from suite.errors import SuiteError
from suite.output import Terminal
from suite.parts import Part

FIRST_DELAY_SECONDS = 0.5
GREATEST_DELAY_SECONDS = 30.0
CANCEL_AGAIN_SECONDS = 1.0
STEADY_SECONDS = 60.0  # after that long, an end is a first one again


class Backoff:
    """Delays before a restart: doubling, and short again for a part that had run steadily."""

    def __init__(self) -> None:
        self._delay = 0.0
        self._last = float("-inf")

    def next_seconds(self, now: float) -> float:
        """The delay for an end at `now`."""
        is_steady = now - self._last > STEADY_SECONDS + self._delay
        self._delay = FIRST_DELAY_SECONDS if is_steady else min(self._delay * 2, GREATEST_DELAY_SECONDS)
        self._last = now
        return self._delay


class Supervisor:
    """Owns the parts and one watching task for each."""

    def __init__(self, terminal: Terminal) -> None:
        self.stop_requested = asyncio.Event()
        self.hurry = asyncio.Event()
        self._terminal = terminal
        self._levels: dict[int, list[Part]] = {}
        self._watches: list[asyncio.Task[None]] = []
        self._is_starting = True
        self._loss: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def request_stop(self) -> None:
        """Stop in order; the second time, hurry."""
        if not self.stop_requested.is_set():
            self._terminal.say("Stopping in order; Ctrl-C once more hurries.")
            self.stop_requested.set()
        else:
            self.hurry.set()

    def stop_at_signals(self) -> None:
        """Request a stop at SIGINT and SIGTERM, and at SIGHUP where that was not ignored from the beginning."""
        signals = [signal.SIGINT, signal.SIGTERM]
        # nohup has it ignored, and whoever used it wants the suite to outlive the terminal.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signals.append(signal.SIGHUP)
        loop = asyncio.get_running_loop()
        for number in signals:
            loop.add_signal_handler(number, self.request_stop)

    async def bring_up(self, part: Part, *, level: int) -> None:
        """Start a part, return when it is ready, keep it from then on."""
        self._levels.setdefault(level, []).append(part)
        await part.start()
        self._watches.append(asyncio.create_task(self._keep(part), name=f"watch {part.name}"))

    async def run(self, start_up: Callable[[], Awaitable[None]]) -> None:
        """Start everything, run until a stop is requested, stop everything. SuiteError when start-up fails."""
        try:
            await self._start(start_up)
            self._is_starting = False
            await self._until_stop()
        finally:
            await self._stop()

    async def _start(self, start_up: Callable[[], Awaitable[None]]) -> None:
        starting = asyncio.ensure_future(start_up())
        stopping = asyncio.ensure_future(self.stop_requested.wait())
        try:
            anything: set[asyncio.Future[Any]] = {starting, stopping, self._loss}
            await asyncio.wait(anything, return_when=asyncio.FIRST_COMPLETED)
            if self._loss.done():
                self._loss.result()
            if starting.done():
                starting.result()
        finally:
            stopping.cancel()
            starting.cancel()
            # Whatever it says once it is cancelled, the reason for that is the story to tell.
            await asyncio.gather(starting, return_exceptions=True)

    async def _until_stop(self) -> None:
        """A watch never ends by itself; should a fault end one, the suite ends with it."""
        stopping = asyncio.ensure_future(self.stop_requested.wait())
        try:
            done, _ = await asyncio.wait({stopping, *self._watches}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        for watch in done - {stopping}:
            watch.result()

    async def _keep(self, part: Part) -> None:
        backoff = Backoff()
        while True:
            how = await part.wait()
            if self._is_starting:
                self._lose(SuiteError(f"{part.name} ended while the suite was starting ({how})"))
                return
            while not await self._start_again(part, how, backoff):
                how = "did not become ready"

    async def _start_again(self, part: Part, how: str, backoff: Backoff) -> bool:
        delay = backoff.next_seconds(asyncio.get_running_loop().time())
        self._terminal.say(f"{part.name} ended ({how}); starting it again in {delay:.1f} s")
        await asyncio.sleep(delay)
        try:
            await part.start()
        except SuiteError as error:
            self._terminal.say(str(error))
            return False
        self._terminal.say(f"{part.name} runs again")
        return True

    def _lose(self, error: SuiteError) -> None:
        if not self._loss.done():
            self._loss.set_exception(error)

    async def _end_watches(self) -> None:
        """A cancellation that meets the end of a wait may be lost: whoever goes on is cancelled again."""
        while going := {watch for watch in self._watches if not watch.done()}:
            for watch in going:
                watch.cancel()
            await asyncio.wait(going, timeout=CANCEL_AGAIN_SECONDS)
        await asyncio.gather(*self._watches, return_exceptions=True)

    async def _stop(self) -> None:
        await self._end_watches()
        self._loss.cancel()
        faults: list[BaseException] = []
        for level in sorted(self._levels, reverse=True):
            stops = (part.stop(self.hurry) for part in self._levels[level])
            ended = await asyncio.gather(*stops, return_exceptions=True)
            faults += [fault for fault in ended if fault is not None]
        if faults:
            raise BaseExceptionGroup("parts that could not be stopped", faults)
