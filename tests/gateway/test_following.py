"""Following over REST: a generation and the tasks, from a place on, with a browser's means."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx2
import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2

from parley.chat.v1 import chat_pb2, chat_pb2_grpc, task_pb2
from tests.gateway.backend import Script, error
from tests.gateway.edge import Edge, error_of
from tests.gateway.test_streams import NDJSON, events

ID = "01990000-0000-7000-8000-00000000000a"
EVENTS = f"/api/v1/chat/generations/{ID}/events"
WATCH = "/api/v1/tasks:watch"
REWRITES = [
    f"/api/v1/chat/conversations/{ID}/messages/{ID}:edit",
    f"/api/v1/chat/conversations/{ID}/messages/{ID}:regenerate",
]


def ids_of(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.startswith(("id: ", ": "))]


async def finished(_request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Message]:
    await context.send_initial_metadata((("x-parley-finished", "1"),))
    if context.done():  # never: what follows makes it a stream
        yield chat_pb2.CompletionEvent()


async def test_a_generation_is_followed_from_a_place_on(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.streams["SubscribeGeneration"] = events
    headers = {**signed_in, "last-event-id": "4"}
    response = await client.get(f"{EVENTS}?after_sequence=3", headers=headers)
    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream")
    assert ids_of(response.text) == ["id: 1", "id: 2", ": heartbeat", "id: 3"]
    call = script.only_call("SubscribeGeneration")
    assert (call.request.generation_id, call.request.after_sequence) == (ID, 3)
    assert call.metadata["last-event-id"] == "4"


@pytest.mark.parametrize("accept", [{}, NDJSON, {"accept": "text/event-stream"}], ids=["any", "ndjson", "sse"])
@pytest.mark.parametrize("version", [1, 2], ids=["http1", "http2"])
async def test_a_stream_that_has_nothing_more_to_tell_is_no_content(
    edge: Edge, script: Script, signed_in: dict[str, str], accept: dict[str, str], version: int
) -> None:
    script.streams["SubscribeGeneration"] = finished
    async with edge.client(http2=version == 2) as client:
        for _ in range(2):  # the second on the same connection, which must be whole
            response = await client.get(EVENTS, headers={**signed_in, **accept})
            assert (response.status_code, response.content) == (204, b"")
            headers = set(response.headers)
            assert not headers & {"x-parley-finished", "content-type", "content-length", "transfer-encoding", "grpc-status"}
            assert response.headers["x-request-id"]


async def test_a_native_client_gets_the_word_and_an_empty_stream(
    channel: grpc.aio.Channel, script: Script, signed_in: dict[str, str]
) -> None:
    script.streams["SubscribeGeneration"] = finished
    stub: Any = chat_pb2_grpc.ChatServiceStub(channel)
    call = stub.SubscribeGeneration(
        chat_pb2.SubscribeGenerationRequest(generation_id=ID), metadata=tuple(signed_in.items()), timeout=10
    )
    assert [event async for event in call] == []
    assert await call.code() is grpc.StatusCode.OK
    assert ("x-parley-finished", "1") in list(await call.initial_metadata())


async def test_an_outsider_cannot_finish_a_stream(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.streams["SubscribeGeneration"] = events
    response = await client.get(EVENTS, headers={**signed_in, "x-parley-finished": "1"})
    assert response.status_code == 200
    assert "x-parley-finished" not in script.only_call("SubscribeGeneration").metadata


async def changes(_request: Any, _context: Any) -> AsyncIterator[Message]:
    yield task_pb2.TaskEvent(sequence=7, started=task_pb2.WatchStarted())
    yield task_pb2.TaskEvent(heartbeat=task_pb2.TaskHeartbeat())
    yield task_pb2.TaskEvent(sequence=8, created=task_pb2.Task(id=ID, title="milk"))
    yield task_pb2.TaskEvent(sequence=9, deleted_task_id=ID)


async def test_tasks_are_watched_with_ids_and_heartbeats(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.streams["WatchTasks"] = changes
    response = await client.get(WATCH, headers={**signed_in, "last-event-id": "6"})
    assert ids_of(response.text) == ["id: 7", ": heartbeat", "id: 8", "id: 9"]
    assert script.only_call("WatchTasks").metadata["last-event-id"] == "6"
    assert not script.only_call("WatchTasks").request.HasField("after_sequence")
    lines = (await client.get(f"{WATCH}?after_sequence=0", headers={**signed_in, **NDJSON})).text.splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == [7, 0, 8, 9]
    assert script.calls["WatchTasks"][1].request.HasField("after_sequence")


async def test_a_watch_tells_each_change_as_it_comes(edge: Edge, script: Script, signed_in: dict[str, str]) -> None:
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def one_by_one(_request: Any, _context: Any) -> AsyncIterator[Message]:
        for number in (1, 2):
            yield task_pb2.TaskEvent(sequence=number, deleted_task_id=ID)
            assert await asyncio.wait_for(seen.get(), timeout=5) == f"id: {number}"

    script.streams["WatchTasks"] = one_by_one
    async with edge.client() as client, asyncio.timeout(10), client.stream("GET", WATCH, headers=signed_in) as response:
        async for line in response.aiter_lines():
            if line.startswith("id: "):
                seen.put_nowait(line)


@pytest.mark.parametrize("path", REWRITES)
async def test_a_rewritten_turn_is_a_stream(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str], path: str
) -> None:
    rpc = "EditMessage" if path.endswith("edit") else "RegenerateReply"
    script.streams[rpc] = events
    response = await client.post(path, json={"options": {"use_tasks": True}}, headers={**signed_in, "idempotency-key": "k"})
    assert ids_of(response.text) == ["id: 1", "id: 2", ": heartbeat", "id: 3"]
    call = script.only_call(rpc)
    assert (call.request.conversation_id, call.request.message_id) == (ID, ID)
    assert call.request.options.use_tasks is True
    assert call.metadata["idempotency-key"] == "k"


async def test_what_goes_wrong_before_the_first_event_is_a_status(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.refuses("SubscribeGeneration", error(code_pb2.NOT_FOUND, "There is none.", "GENERATION_NOT_FOUND"))
    response = await client.get(EVENTS, headers=signed_in)
    assert error_of(response) == (404, code_pb2.NOT_FOUND, "GENERATION_NOT_FOUND")
