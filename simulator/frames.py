"""From an answer's events to bytes in time: frames, pace, and the faults of a connection.

Owns when events leave and in which socket writes, and the transport faults (cut, stall, malformed, end), which hit one
reader and never the run behind it. Invariant: frames are neither dropped nor reordered; what is due at the same moment
leaves in one write.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from enum import Enum, auto

from simulator.plan import Fault, Pace

BATCH_LIMIT = 64


class FrameKind(Enum):
    """What a frame is to pace and faults."""

    OPENING = auto()
    TOKEN = auto()
    STEP = auto()
    TERMINAL = auto()


@dataclass(frozen=True, slots=True)
class Frame:
    """One server-sent event, encoded when it happened."""

    kind: FrameKind
    payload: bytes


class ConnectionCutError(Exception):
    """The reader's connection is to be broken off here."""


class Gate:
    """A door that holds scripted answers until it is released."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        self.waiting = 0

    async def wait(self) -> None:
        """Wait for the next release."""
        opened = self._opened
        self.waiting += 1
        try:
            await opened.wait()
        finally:
            self.waiting -= 1

    def release(self) -> int:
        """Let everybody who waits now go on; returns how many. Later ones wait for the next release."""
        self._opened.set()
        self._opened = asyncio.Event()
        return self.waiting


@dataclass(frozen=True, slots=True)
class Hold:
    """Stop after so many tokens until the gate is released."""

    gate: Gate
    after_tokens: int


async def paced(frames: Iterable[Frame], pace: Pace, hold: Hold | None) -> AsyncIterator[list[Frame]]:
    """The frames in batches, each as soon as its tokens are due.

    Due times are counted from the start, so that a late token does not delay those after it.
    """
    loop = asyncio.get_running_loop()
    start, tokens = loop.time() + pace.first_token_ms / 1000, 0
    batch: list[Frame] = []
    for frame in frames:
        if hold and _is_due(frame, tokens, hold.after_tokens):
            if batch:
                yield batch
            batch = []
            await hold.gate.wait()
            hold = None
        if frame.kind is FrameKind.TOKEN:
            wait_seconds = start + tokens * pace.interval_ms / 1000 - loop.time()
            tokens += 1
            if wait_seconds > 0:
                if batch:
                    yield batch
                batch = []
                await asyncio.sleep(wait_seconds)
        batch.append(frame)
        if len(batch) >= BATCH_LIMIT:
            yield batch
            batch = []
            await asyncio.sleep(0)
    if batch:
        yield batch


async def misbehaving(batches: AsyncIterator[list[Frame]], fault: Fault | None) -> AsyncIterator[bytes]:
    """The bytes for one reader, with its connection's fault. Raises ConnectionCutError where the connection is to break."""
    tokens = 0
    async for batch in batches:
        sent: list[bytes] = []
        for frame in batch:
            if fault and _is_due(frame, tokens, fault.after_tokens):
                yield b"".join(sent) + (_MALFORMED if fault.kind == "malformed" else b"")
                await break_off(fault)
                return
            tokens += frame.kind is FrameKind.TOKEN
            sent.append(frame.payload)
        yield b"".join(sent)


def _is_due(frame: Frame, tokens: int, after_tokens: int) -> bool:
    """Whether what was planned after so many tokens comes before this frame; at the latest before the terminal one."""
    if frame.kind is FrameKind.OPENING:
        return False
    return tokens >= after_tokens or frame.kind is FrameKind.TERMINAL


async def break_off(fault: Fault) -> None:
    """Do what a transport fault does to a connection: break it, leave it silent for ever, or just end."""
    if fault.kind == "cut":
        raise ConnectionCutError
    if fault.kind == "stall":
        await asyncio.Event().wait()


_MALFORMED = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"brok\n\n'
