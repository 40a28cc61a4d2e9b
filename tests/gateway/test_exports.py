"""Memory's REST faces through a real edge, its export above all: lines of JSON as they come, and an end."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx2
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import code_pb2

from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from tests.gateway.backend import Context, Script, error
from tests.gateway.edge import Edge, error_of

URL = "/api/v1/memories:export"
MEMORY_ID = "01990000-0000-7000-8000-00000000000a"
NDJSON = "application/x-ndjson"
TRICKY = 'line\n\ndata: {"sequence":9}\r\n"é" \u2028 <b>'


def fact(number: int, text: str = "Likes otters.") -> memory_pb2.MemoryRecord:
    record = memory_pb2.MemoryRecord(fact=memory_pb2.FactRecord(id=f"{number}", text=text, importance=number))
    record.fact.valid_from_time.FromJsonString("2026-11-22T10:00:00.000001Z")
    return record


def end(facts: int) -> memory_pb2.MemoryRecord:
    return memory_pb2.MemoryRecord(end=memory_pb2.ExportEnd(fact_count=facts))


async def export(_request: Any, _context: Context) -> AsyncIterator[Message]:
    yield fact(1)
    yield fact(2, TRICKY)
    yield end(2)


@pytest.mark.parametrize("accept", ["*/*", NDJSON, "text/event-stream", "application/json"])
async def test_an_export_is_lines_of_json_whatever_is_asked_for(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str], accept: str
) -> None:
    script.streams["ExportMemories"] = export
    response = await client.get(URL, headers={**signed_in, "accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"] == NDJSON
    assert response.headers["cache-control"] == "no-store"
    assert not [name for name in response.headers if name.startswith("grpc-")]
    lines = response.text.removesuffix("\n").split("\n")
    read = [json_format.Parse(line, memory_pb2.MemoryRecord()) for line in lines]
    assert read == [fact(1), fact(2, TRICKY), end(2)]


async def test_the_lines_are_what_an_import_takes(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.streams["ExportMemories"] = export
    script.answers("ImportMemories", memory_pb2.ImportMemoriesResponse(imported_facts=2))
    exported = await client.get(URL, headers=signed_in)
    records = [json.loads(line) for line in exported.text.splitlines() if line.startswith("{")]
    imported = await client.post("/api/v1/memories:import", json={"records": records}, headers=signed_in)
    assert imported.json() == {"imported_facts": 2, "imported_messages": 0}
    assert list(script.only_call("ImportMemories").request.records) == [fact(1), fact(2, TRICKY), end(2)]


@pytest.mark.parametrize("version", [1, 2], ids=["http1", "http2"])
async def test_each_line_arrives_before_the_next_is_sent(
    edge: Edge, script: Script, signed_in: dict[str, str], version: int
) -> None:
    seen: asyncio.Queue[int] = asyncio.Queue()

    async def one_by_one(_request: Any, _context: Context) -> AsyncIterator[Message]:
        for number in (1, 2, 3):
            yield fact(number)
            assert await asyncio.wait_for(seen.get(), timeout=5) == number

    script.streams["ExportMemories"] = one_by_one
    numbers = []
    async with edge.client(http2=version == 2) as client:
        stream = client.stream("GET", URL, headers=signed_in)
        async with asyncio.timeout(10), stream as response:
            async for line in response.aiter_lines():
                numbers.append(json.loads(line)["fact"]["importance"])
                seen.put_nowait(numbers[-1])
    assert numbers == [1, 2, 3]


async def test_a_long_export_loses_no_line(client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]) -> None:
    async def long(_request: Any, _context: Context) -> AsyncIterator[Message]:
        for number in range(5000):
            yield fact(number, "word " * (number % 200))
        yield end(5000)

    script.streams["ExportMemories"] = long
    records = [json.loads(line) for line in (await client.get(URL, headers=signed_in)).text.splitlines()]
    assert [record["fact"]["importance"] for record in records[:-1]] == list(range(5000))
    assert records[-1] == {"end": {"message_count": 0, "fact_count": 5000}}


@pytest.mark.parametrize("version", [1, 2], ids=["http1", "http2"])
async def test_an_export_that_failed_on_its_way_has_no_end(
    edge: Edge, script: Script, signed_in: dict[str, str], version: int
) -> None:
    async def fail(_request: Any, context: Context) -> AsyncIterator[Message]:
        yield fact(1)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the database went away")

    script.streams["ExportMemories"] = fail
    async with edge.client(http2=version == 2) as client:
        response = await client.get(URL, headers=signed_in)
    # Nothing else tells: the status had gone out before, and the trailers of gRPC have no place here.
    assert response.status_code == 200
    assert [list(json.loads(line)) for line in response.text.splitlines()] == [["fact"]]


async def test_over_grpc_such_an_export_ends_with_its_status(
    channel: grpc.aio.Channel, script: Script, signed_in: dict[str, str]
) -> None:
    async def fail(_request: Any, context: Context) -> AsyncIterator[Message]:
        yield fact(1)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the database went away")

    script.streams["ExportMemories"] = fail
    stub = memory_pb2_grpc.MemoryServiceStub(channel)
    call = stub.ExportMemories(memory_pb2.ExportMemoriesRequest(), metadata=tuple(signed_in.items()), timeout=5)
    assert await call.read() == fact(1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_export_that_failed_at_once_is_an_error_like_any(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.refuses("ExportMemories", error(code_pb2.UNAVAILABLE, "Later.", "DEPENDENCY_UNAVAILABLE"))
    response = await client.get(URL, headers=signed_in)
    assert error_of(response) == (503, code_pb2.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
    assert error_of(await client.get(URL)) == (401, code_pb2.UNAUTHENTICATED, "IDENTITY_MISSING")


async def test_deletion_takes_its_filters_from_the_query(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.answers("DeleteMemories", memory_pb2.DeleteMemoriesResponse(deleted_facts=2))
    query = f"before_time=2026-11-22T11%3A00%3A00%2B01%3A00&kind=fact&conversation_id={MEMORY_ID}"
    response = await client.delete(f"/api/v1/memories?{query}", headers=signed_in)
    assert response.json() == {"deleted_facts": 2, "deleted_messages": 0}
    request = script.only_call("DeleteMemories").request
    assert (request.kind, request.conversation_id) == ("fact", MEMORY_ID)
    assert request.before_time.ToJsonString() == "2026-11-22T10:00:00Z"


@pytest.mark.parametrize("query", ["before_time=yesterday", "before_time=1763800000", "befor_time=2026-11-22T10:00:00Z"])
async def test_a_filter_that_cannot_be_read_deletes_nothing(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str], query: str
) -> None:
    response = await client.delete(f"/api/v1/memories?{query}", headers=signed_in)
    assert error_of(response) == (400, code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert "DeleteMemories" not in script.calls


async def test_a_change_takes_mask_and_path(client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]) -> None:
    script.answers("UpdateMemory", memory_pb2.Memory(id=MEMORY_ID))
    body = {"text": "Lives in Porto.", "valid_from_time": "2026-11-22T10:00:00Z", "update_mask": "text,attribute"}
    response = await client.patch(f"/api/v1/memories/{MEMORY_ID}", json=body, headers=signed_in)
    assert response.status_code == 200
    request = script.only_call("UpdateMemory").request
    assert (request.memory_id, request.text) == (MEMORY_ID, "Lives in Porto.")
    assert list(request.update_mask.paths) == ["text", "attribute"]
    assert request.valid_from_time.seconds == 1795341600


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ("GET /api/v1/memories/search", "POST"),
        ("DELETE /api/v1/memories/search", "POST"),
        ("DELETE /api/v1/memories/summary", "GET"),
        ("PATCH /api/v1/memories/summary", "GET"),
        ("POST /api/v1/memories:export", "GET"),
        ("GET /api/v1/memories:import", "POST"),
        ("PUT /api/v1/memories/abc", "DELETE, GET, PATCH"),
        ("PATCH /api/v1/memories", "DELETE, GET, POST"),
    ],
)
async def test_a_literal_path_is_no_memory_whatever_the_method(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str], asked: str, allowed: str
) -> None:
    response = await client.request(*asked.split(), headers=signed_in)
    assert error_of(response) == (405, code_pb2.UNIMPLEMENTED, "METHOD_NOT_ALLOWED")
    assert response.headers["allow"] == allowed
    assert set(script.calls) <= {"GetJwks"}


async def test_the_document_tells_exports_from_events(client: httpx2.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    exported = paths[URL]["get"]["responses"]
    assert set(exported["200"]["content"]) == {NDJSON}
    assert exported["200"]["content"][NDJSON]["schema"] == {"$ref": "#/components/schemas/MemoryRecord"}
    assert "204" not in exported
    assert set(paths["/api/v1/tasks:watch"]["get"]["responses"]["200"]["content"]) == {"text/event-stream", NDJSON}
    assert "REQUEST_TOO_LARGE" in paths["/api/v1/memories:import"]["post"]["description"]
    places = {each["name"]: each["in"] for each in paths["/api/v1/memories"]["delete"]["parameters"]}
    assert places == {"conversation_id": "query", "kind": "query", "before_time": "query"}
