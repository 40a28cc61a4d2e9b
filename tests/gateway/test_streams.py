"""Streams through a real edge: frames, ids, heartbeats, and that nothing waits for what comes after it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from google.protobuf.message import Message

from parley.chat.v1 import chat_pb2
from tests.gateway.backend import Script
from tests.gateway.edge import Edge

URL = "/api/v1/chat/stream"
NDJSON = {"accept": "application/x-ndjson"}
TRICKY = 'line\n\ndata: {"sequence":9}\n\nid: 7 "é" \u2028'


def text(sequence: int, words: str) -> chat_pb2.CompletionEvent:
    return chat_pb2.CompletionEvent(sequence=sequence, text_delta=chat_pb2.TextDelta(text=words))


async def events(_request: Any, _context: Any) -> AsyncIterator[Message]:
    yield chat_pb2.CompletionEvent(sequence=1, started=chat_pb2.Started(generation_id="g"))
    yield text(2, TRICKY)
    yield chat_pb2.CompletionEvent(heartbeat=chat_pb2.Heartbeat())
    yield chat_pb2.CompletionEvent(sequence=3, completed=chat_pb2.Completed())


async def test_sse_frames_have_ids_and_heartbeats_are_comments(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.streams["StreamCompletion"] = events
    response = await client.post(URL, json={"message": "Hi"}, headers=signed_in)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    frames = response.text.split("\n\n")
    assert frames[2] == ": heartbeat"
    assert frames[4] == ""
    for number, frame in zip((1, 2, 3), (frames[0], frames[1], frames[3]), strict=True):
        identifier, data = frame.split("\n")
        assert identifier == f"id: {number}"
        assert json.loads(data.removeprefix("data: "))["sequence"] == number
    assert json.loads(frames[1].split("\n")[1].removeprefix("data: "))["text_delta"]["text"] == TRICKY


async def test_ndjson_on_request_keeps_heartbeats(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.streams["StreamCompletion"] = events
    response = await client.post(URL, json={}, headers={**signed_in, **NDJSON})
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["cache-control"] == "no-cache"
    lines = [json.loads(line) for line in response.text.removesuffix("\n").split("\n")]
    assert [line["sequence"] for line in lines] == [1, 2, 0, 3]
    assert lines[2] == {"sequence": 0, "heartbeat": {}}


@pytest.mark.parametrize("headers", [{}, NDJSON], ids=["sse", "ndjson"])
@pytest.mark.parametrize("version", [1, 2], ids=["http1", "http2"])
async def test_each_event_arrives_before_the_next_is_sent(
    edge: Edge, script: Script, signed_in: dict[str, str], headers: dict[str, str], version: int
) -> None:
    seen: asyncio.Queue[int] = asyncio.Queue()

    async def one_by_one(_request: Any, _context: Any) -> AsyncIterator[Message]:
        for number in (1, 2, 3):
            yield text(number, "x" * number)
            # The stream goes on only when the client has told that it has this event.
            assert await asyncio.wait_for(seen.get(), timeout=5) == number

    script.streams["StreamCompletion"] = one_by_one
    numbers = []
    async with edge.client(http2=version == 2) as client:
        stream = client.stream("POST", URL, json={}, headers={**signed_in, **headers})
        async with asyncio.timeout(10), stream as response:
            async for line in response.aiter_lines():
                if "{" in line:
                    numbers.append(json.loads(line.removeprefix("data: "))["sequence"])
                    seen.put_nowait(numbers[-1])
    assert numbers == [1, 2, 3]


async def test_many_events_at_once_lose_none(client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]) -> None:
    async def burst(_request: Any, _context: Any) -> AsyncIterator[Message]:
        for number in range(1, 3001):
            yield text(number, "word " * (number % 40))

    script.streams["StreamCompletion"] = burst
    response = await client.post(URL, json={}, headers=signed_in)
    frames = response.text.removesuffix("\n\n").split("\n\n")
    assert [frame.split("\n")[0] for frame in frames] == [f"id: {number}" for number in range(1, 3001)]
    assert [json.loads(frame.split("data: ", 1)[1])["sequence"] for frame in frames] == list(range(1, 3001))


async def test_an_event_larger_than_the_buffers_passes_whole(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    async def large(_request: Any, _context: Any) -> AsyncIterator[Message]:
        yield text(1, "a" * 3_000_000)
        yield text(2, "end")

    script.streams["StreamCompletion"] = large
    response = await client.post(URL, json={}, headers=signed_in)
    first, second, rest = response.text.split("\n\n")
    assert first.startswith("id: 1\ndata: ")
    assert len(json.loads(first.split("data: ", 1)[1])["text_delta"]["text"]) == 3_000_000
    assert second.startswith("id: 2\n")
    assert rest == ""


async def test_a_client_that_leaves_cancels_the_call(edge: Edge, script: Script, signed_in: dict[str, str]) -> None:
    cancelled = asyncio.Event()

    async def endless(_request: Any, _context: Any) -> AsyncIterator[Message]:
        try:
            yield text(1, "a")
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    script.streams["StreamCompletion"] = endless
    async with edge.client() as client, client.stream("POST", URL, json={}, headers=signed_in) as response:
        await anext(response.aiter_bytes())
    await asyncio.wait_for(cancelled.wait(), timeout=5)


async def test_two_hundred_streams_at_once_lose_nothing(edge: Edge, script: Script, signed_in: dict[str, str]) -> None:
    everybody = asyncio.Barrier(200)

    async def together(_request: Any, _context: Any) -> AsyncIterator[Message]:
        await everybody.wait()
        for number in range(1, 21):
            yield text(number, "word ")

    script.streams["StreamCompletion"] = together

    async def follow(client: httpx2.AsyncClient) -> list[str]:
        response = await client.post(URL, json={}, headers=signed_in)
        assert response.status_code == 200, response.text
        return [line for line in response.text.split("\n") if line.startswith("id: ")]

    async with edge.client(connections=200) as client:
        all_ids = await asyncio.gather(*(follow(client) for _ in range(200)))
    assert all_ids == [[f"id: {number}" for number in range(1, 21)]] * 200
