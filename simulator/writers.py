"""How runs get onto the socket: streamed or whole, in the foreground or following a background run.

Owns what each transport fault means where nothing is streamed: `cut` sends half of the body, `malformed` a body that is
no JSON, `end` an empty one, `stall` nothing for ever.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

import orjson
from starlette.types import Send

from simulator.delivery import Delivery
from simulator.frames import ConnectionCutError, Frame, break_off, misbehaving, paced
from simulator.plan import Fault
from simulator.reply import Writer, common_headers, send_body, start_reply
from simulator.requests import JsonObject
from simulator.store import StoredResponse


class Run(Protocol):
    """A reply in the making: a response or a chat completion."""

    @property
    def refusal(self) -> JsonObject | None:
        """The error that a caller who does not stream gets instead."""

    def frames(self) -> Iterator[Frame]:
        """Every event, in order; runs once."""

    def snapshot(self) -> JsonObject:
        """The object as it is now."""


def foreground(run: Run, delivery: Delivery, *, stream: bool) -> Writer:
    """Run for this caller and for nobody else: where the caller leaves, the run ends."""
    started_seconds = time.monotonic()

    async def write(send: Send) -> None:
        chunks = misbehaving(paced(run.frames(), delivery.pace, delivery.hold), delivery.transport)
        if stream:
            await _write_stream(send, chunks)
        else:
            await _write_result(send, run, chunks, delivery.transport, started_seconds)

    return write


def background(stored: StoredResponse, delivery: Delivery, *, stream: bool) -> Writer:
    """Follow a run that goes on without this caller, or tell only that it has begun."""
    started_seconds = time.monotonic()
    begun = orjson.dumps(stored.run.snapshot())

    async def write(send: Send) -> None:
        if stream:
            await _write_stream(send, misbehaving(stored.follow(-1), delivery.transport))
        else:
            await _write_whole(send, 200, begun, delivery.transport, started_seconds)

    return write


def resumed(stored: StoredResponse, *, after: int, transport: Fault | None) -> Writer:
    """Follow a background run again, from the event after a sequence number."""

    async def write(send: Send) -> None:
        await _write_stream(send, misbehaving(stored.follow(after), transport))

    return write


def whole(body: bytes, delivery: Delivery) -> Writer:
    """Send a body that is ready, after the time of a first token."""
    started_seconds = time.monotonic()

    async def write(send: Send) -> None:
        await asyncio.sleep(delivery.pace.first_token_ms / 1000)
        await _write_whole(send, 200, body, delivery.transport, started_seconds)

    return write


async def _write_stream(send: Send, chunks: AsyncIterator[bytes]) -> None:
    headers = {**common_headers(time.monotonic()), "content-type": "text/event-stream; charset=utf-8"}
    await start_reply(send, 200, {**headers, "cache-control": "no-cache"})
    async for chunk in chunks:
        await send_body(send, chunk, more=True)
    await send_body(send, b"", more=False)


async def _write_result(
    send: Send, run: Run, chunks: AsyncIterator[bytes], fault: Fault | None, started_seconds: float
) -> None:
    """Let the run come to its end, or to its fault, then send its result."""
    try:
        async for _ in chunks:
            pass
    except ConnectionCutError:
        pass
    refusal = run.refusal
    body = orjson.dumps(run.snapshot() if refusal is None else refusal)
    await _write_whole(send, 200 if refusal is None else 500, body, fault, started_seconds)


async def _write_whole(send: Send, status: int, body: bytes, fault: Fault | None, started_seconds: float) -> None:
    kind = fault.kind if fault else None
    if fault and kind == "stall":
        await break_off(fault)
    half = body[: len(body) // 2]
    sent = half if kind == "malformed" else b"" if kind == "end" else body
    headers = {**common_headers(started_seconds), "content-type": "application/json"}
    await start_reply(send, status, {**headers, "content-length": str(len(sent))})
    if fault and kind == "cut":
        await send_body(send, half, more=True)
        await break_off(fault)
    await send_body(send, sent, more=False)
