"""MCP servers in whole turns: the model calls their tools, readers see every step, a broken server costs nothing else."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from parley.chat.v1 import chat_pb2, conversation_pb2, mcp_server_pb2, mcp_server_pb2_grpc
from simulator.script import ScriptedAnswer, ScriptedCall
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.chat.conftest import Start
from tests.chat.mcp_peers import SECRET, Seen, running_mcp, stranger, tools_server
from tests.chat.service import ChatProcess, User, text_of
from tests.chat.test_mcp_tools import answers_nothing
from tests.ports import free_port

EVERYTHING = "mcp-server-everything"
Option = chat_pb2.McpServerOption


@pytest.fixture
async def chat(start_chat: Start) -> AsyncIterator[ChatProcess]:
    async with start_chat(mcp_allow_private_addresses=True, mcp_connect_timeout_seconds=2) as process:
        yield process


@pytest.fixture
async def seen() -> Seen:
    return Seen()


@pytest.fixture
async def url(seen: Seen) -> AsyncIterator[str]:
    async with running_mcp(tools_server(seen), seen) as url:
        yield url


def calling(name: str, **arguments: Any) -> ScriptedAnswer:
    return ScriptedAnswer(function_calls=[ScriptedCall(name=name, arguments=arguments, call_id="call_1")])


def calls_of(events: list[chat_pb2.CompletionEvent]) -> list[tuple[str, str, str, str]]:
    """Each event of a call: its kind, tool, label and status."""
    found: list[tuple[str, str, str, str]] = []
    for one in events:
        kind = one.WhichOneof("event")
        if kind in {"tool_call_started", "tool_call_finished"}:
            call: conversation_pb2.ToolCall = getattr(one, kind)
            found.append((kind, call.tool, call.server_label, call.status))
    return found


def degraded_of(events: list[chat_pb2.CompletionEvent]) -> list[str]:
    return [part for one in events for part in (*one.started.degraded, *one.degraded.parts)]


async def functions(simulator: Running) -> list[list[str]]:
    """The names of the functions of MCP servers that the model was offered, request by request."""
    asked = await simulator.control.requests("responses")
    return [[one["name"] for one in request.body.get("tools", []) if "__" in one.get("name", "")] for request in asked]


async def test_the_model_calls_a_tool_and_goes_on_with_its_result(
    chat: ChatProcess, simulator: Running, url: str, seen: Seen
) -> None:
    await simulator.control.script(calling("notes__add", a=2, b=3), ScriptedAnswer(text="It is five."))
    events = await chat.user().stream("What is 2 and 3?", mcp_servers=[Option(label="notes", url=url)])
    assert calls_of(events) == [
        ("tool_call_started", "add", "notes", "running"),
        ("tool_call_finished", "add", "notes", "succeeded"),
    ]
    assert text_of(events) == "It is five."
    assert seen.calls == [("add", {"a": 2, "b": 3})]
    (part,) = [one.tool_call for one in events[-1].completed.message.parts if one.HasField("tool_call")]
    assert (part.tool, part.server_label, part.result, json.loads(part.arguments)) == ("add", "notes", "5", {"a": 2, "b": 3})
    asked = await simulator.control.requests("responses")
    assert [item["output"] for item in asked[1].body["input"] if item.get("type") == "function_call_output"] == ["5"]


async def test_a_tool_that_needs_approval_does_not_run(chat: ChatProcess, simulator: Running, url: str, seen: Seen) -> None:
    await simulator.control.script(calling("notes__add", a=2, b=3), ScriptedAnswer(text="May I?"))
    events = await chat.user().stream("Add.", mcp_servers=[Option(label="notes", url=url, approval="always")])
    assert calls_of(events)[-1] == ("tool_call_finished", "add", "notes", "approval_required")
    assert seen.calls == []


async def test_a_kept_server_serves_every_turn_and_its_secrets_stay_where_they_are(
    chat: ChatProcess, simulator: Running, url: str, seen: Seen, database: ServiceDatabase
) -> None:
    user = chat.user()
    stub = mcp_server_pb2_grpc.McpServerServiceStub(chat.channel)
    kept = mcp_server_pb2.CreateMcpServerRequest(label="notes", url=url, headers={"authorization": f"Bearer {SECRET}"})
    once = Option(label="once", url=url, headers={"x-key": f"{SECRET}-once"})
    await simulator.control.script(
        calling("notes__add", a=1, b=1), ScriptedAnswer(text="2"), calling("once__add", a=1, b=2), ScriptedAnswer(text="3")
    )
    with capture_logs() as lines:
        await stub.CreateMcpServer(kept, metadata=user.metadata, timeout=10)
        await user.stream("one and one")
        events = await user.stream("one and two", mcp_servers=[once])
    assert calls_of(events)[-1] == ("tool_call_finished", "add", "once", "succeeded")
    assert {headers.get("authorization") for headers in seen.headers} == {f"Bearer {SECRET}", None}
    assert {headers.get("x-key") for headers in seen.headers} == {f"{SECRET}-once", None}
    assert SECRET not in json.dumps(lines, default=str)
    assert SECRET not in str(events)
    assert SECRET not in str([request.body for request in await simulator.control.requests()])
    await _is_in_no_row(database, SECRET)


async def _is_in_no_row(database: ServiceDatabase, secret: str) -> None:
    async with await psycopg.AsyncConnection.connect(database.migration_url) as connection:
        tables = (
            "select table_name from information_schema.tables where table_schema = 'public' and table_type = 'BASE TABLE'"
        )
        names = [name for (name,) in await (await connection.execute(tables)).fetchall()]
        assert {"mcp_servers", "generations", "messages", "tool_calls"} <= set(names)
        for name in names:
            everything = psycopg.sql.SQL("select t::text from {} t").format(psycopg.sql.Identifier(name))
            rows = str(await (await connection.execute(everything)).fetchall())
            assert secret not in rows, name
            assert secret.encode().hex() not in rows, name


async def test_a_broken_server_costs_the_turn_its_tools_only(chat: ChatProcess, simulator: Running, url: str) -> None:
    await simulator.control.script(ScriptedAnswer(text="All the same."))
    async with stranger(answers_nothing) as (strange, _):
        servers = [Option(label="strange", url=strange), Option(label="notes", url=url)]
        events = await chat.user().stream("Hello", mcp_servers=servers)
    assert text_of(events) == "All the same."
    assert degraded_of(events) == ["strange"]
    (offered,) = await functions(simulator)
    assert {name.partition("__")[0] for name in offered} == {"notes"}


async def test_without_servers_nothing_is_offered_and_nothing_degraded(user: User, simulator: Running) -> None:
    await simulator.control.script(ScriptedAnswer(text="Hello."))
    events = await user.stream("Hello")
    assert degraded_of(events) == []
    assert await functions(simulator) == [[]]


@pytest.fixture
async def everything() -> AsyncIterator[str]:
    """The reference server of the protocol's authors: `npm install -g @modelcontextprotocol/server-everything`."""
    program = shutil.which(EVERYTHING)
    if program is None:
        pytest.skip(f"{EVERYTHING} is not on the PATH")
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        program,
        "streamableHttp",
        env={**os.environ, "PORT": str(port)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.1)
                else:
                    writer.close()
                    break
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        await process.wait()


async def test_a_third_partys_server_is_called_by_the_model(chat: ChatProcess, simulator: Running, everything: str) -> None:
    await simulator.control.script(
        calling("every__echo", message="hello there"),
        calling("every__get-sum", a=20, b=22),
        calling("every__get-tiny-image"),
        calling("every__echo", message=5),
        ScriptedAnswer(text="Done."),
    )
    user = chat.user()
    events = await user.stream("Try it all.", mcp_servers=[Option(label="every", url=everything)])
    assert text_of(events) == "Done."
    assert degraded_of(events) == []
    ended = [one.tool_call_finished for one in events if one.WhichOneof("event") == "tool_call_finished"]
    assert [(call.tool, call.status) for call in ended] == [
        ("echo", "succeeded"),
        ("get-sum", "succeeded"),
        ("get-tiny-image", "succeeded"),
        ("echo", "failed"),
    ]
    assert "hello there" in ended[0].result
    assert "42" in ended[1].result
    assert "[image: image/png" in ended[2].result
    assert "Wrong arguments: message" in ended[3].error
    parts = [one.tool_call for one in events[-1].completed.message.parts if one.HasField("tool_call")]
    assert [part.result for part in parts] == [call.result for call in ended]


async def test_a_call_that_a_cancel_cuts_is_not_told_to_have_done_nothing(
    chat: ChatProcess, simulator: Running, url: str
) -> None:
    user = chat.user()
    await simulator.control.script(calling("notes__slow"))
    asked = chat_pb2.CompletionRequest(message="Go", mcp_servers=[Option(label="notes", url=url)])
    events = aiter(user.chat.StreamCompletion(asked, metadata=user.metadata, timeout=20))
    generation_id = (await anext(events)).started.generation_id
    async for event in events:
        if event.HasField("tool_call_started"):
            break
    cancelling = chat_pb2.CancelGenerationRequest(generation_id=generation_id)
    await user.chat.CancelGeneration(cancelling, metadata=user.metadata, timeout=10)
    (last,) = [event async for event in events]
    (call,) = [part.tool_call for part in last.cancelled.partial_message.parts]
    assert call.status == "failed"
    assert "whether it took effect is unknown" in call.error
