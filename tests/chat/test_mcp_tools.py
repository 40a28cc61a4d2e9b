"""The tools of a user's MCP servers: called for real, and strangers that cost a turn nothing but themselves."""

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from services.chat.mcp.addresses import Addresses
from services.chat.mcp.records import ServerChanges, ServerDraft
from services.chat.mcp.store import McpServerStore
from services.chat.mcp.tools import McpTools
from services.chat.mcp_settings import McpSettings
from services.chat.options import McpServerChoice, ReplyOptions
from services.chat.tools.tool import Heard, Invocation, Tool, Toolbox, ToolError
from services.runtime.database import Database, open_database
from services.runtime.ids import new_id
from services.runtime.sealing import Seal
from suite.databases import ServiceDatabase
from tests.chat.mcp_peers import SECRET, Request, Seen, answer, running_mcp, send_json, serving, shake_hands, stranger, tool
from tests.chat.mcp_peers import tools_server as real_server
from tests.work import PATIENCE_SECONDS

CONNECT_SECONDS = 2.0


class Stand:
    """McpTools on a real database, for one user."""

    def __init__(self, database: Database, **settings: Any) -> None:
        values = {"mcp_allow_private_addresses": True, "mcp_connect_timeout_seconds": CONNECT_SECONDS, **settings}
        told = McpSettings.model_validate({"mcp_listen_address": "127.0.0.1:0", **values})
        self.user_id = new_id()
        self.addresses = Addresses(
            allow_private=told.mcp_allow_private_addresses, timeout_seconds=told.mcp_connect_timeout_seconds
        )
        self.store = McpServerStore(database, Seal([b"k" * 32]))
        self.tools = McpTools(self.store, self.addresses, told)

    def open(self, *servers: McpServerChoice) -> AbstractAsyncContextManager[Toolbox]:
        return self.tools.open(self.user_id, options(*servers))

    async def keep(self, url: str, label: str = "notes", **fields: Any) -> str:
        values: dict[str, Any] = {"headers": {}, "allowed_tools": [], "approval": "never", "is_enabled": True, **fields}
        draft = ServerDraft(label=label, url=url, **values)
        kept = await self.store.keep_server(draft, user_id=self.user_id, request_id=None, request=b"")
        return kept.id

    async def close(self) -> None:
        await self.tools.close()
        self.addresses.close()


def options(*servers: McpServerChoice) -> ReplyOptions:
    return ReplyOptions(
        instructions="", reasoning_effort=None, max_output_tokens=None, temperature=None, user_digest="", mcp_servers=servers
    )


def choice(url: str, label: str = "notes", **fields: Any) -> McpServerChoice:
    return McpServerChoice(**{"label": label, "url": url, "headers": {}, "allowed_tools": (), "approval": "never", **fields})


def invocation() -> Invocation:
    return Invocation(new_id(), new_id(), new_id(), "call_1", Heard(new_id(), "", frozenset(), ()))


async def run(found: Tool, **arguments: Any) -> str:
    async with asyncio.timeout(10):
        return await found.run(arguments, invocation())


def by_name(box: Toolbox) -> dict[str, Tool]:
    assert len({one.spec.name for one in box.tools}) == len(box.tools)
    return {one.spec.name: one for one in box.tools}


@pytest.fixture
async def pool(database: ServiceDatabase) -> AsyncIterator[Database]:
    opened = open_database(database.url, pool_size=4)
    yield opened
    await opened.close()


@pytest.fixture
async def stand(pool: Database) -> AsyncIterator[Stand]:
    stand = Stand(pool)
    yield stand
    await stand.close()


@pytest.fixture
async def seen() -> Seen:
    return Seen()


@pytest.fixture(params=[False, True], ids=["with-sessions", "stateless"])
async def url(request: pytest.FixtureRequest, seen: Seen) -> AsyncIterator[str]:
    async with running_mcp(real_server(seen), seen, stateless=request.param) as url:
        yield url


async def test_tools_are_named_after_their_server_and_run(stand: Stand, url: str, seen: Seen) -> None:
    async with stand.open(choice(url, headers={"x-key": SECRET})) as box:
        tools = by_name(box)
        assert set(tools) == {f"notes__{name}" for name in ("add", "fail", "huge", "long", "mixed", "structured", "slow")}
        added = tools["notes__add"]
        assert (added.tool, added.server_label, added.needs_approval, added.is_exactly_once) == (
            "add",
            "notes",
            False,
            False,
        )
        assert added.spec.description == "Adds two numbers"
        assert added.spec.parameters["required"] == ["a", "b"]
        assert await run(added, a=2, b=3) == "5"
    assert seen.calls == [("add", {"a": 2, "b": 3})]
    assert all(headers["x-key"] == SECRET for headers in seen.headers)
    assert not box.hosted
    assert not box.degraded


async def test_every_kind_of_answer_becomes_text(stand: Stand, url: str) -> None:
    async with stand.open(choice(url)) as box:
        tools = by_name(box)
        mixed = await run(tools["notes__mixed"])
        assert mixed == (
            "two things:\n[image: image/png, 1 KiB, not shown]\n[resource: report, https://notes.example/1 (of May)]"
        )
        assert '"count": 3' in await run(tools["notes__structured"])
        assert "1" + "0" * 30 in await run(tools["notes__huge"])
        long = await run(tools["notes__long"], length=150_000)
        assert len(long) == 100_000
        assert long.endswith("(cut: the tool answered more than fits)")
        with pytest.raises(ToolError, match="the notes are closed"):
            await run(tools["notes__fail"])


async def test_what_the_user_keeps_is_offered_unless_the_request_says_otherwise(stand: Stand, url: str, seen: Seen) -> None:
    await stand.keep(url, label="Notes", headers={"x-key": SECRET})
    await stand.keep(url, label="off", is_enabled=False)
    async with stand.open() as box:
        assert {one.server_label for one in box.tools} == {"Notes"}
        await run(by_name(box)["Notes__add"], a=1, b=1)
    assert seen.headers[-1]["x-key"] == SECRET
    async with stand.open(choice(url, "notes", allowed_tools=["add"], approval="always")) as box:
        assert [(one.spec.name, one.needs_approval) for one in box.tools] == [("notes__add", True)]


async def test_another_users_servers_are_not_offered(stand: Stand, url: str) -> None:
    await stand.keep(url)
    async with stand.tools.open(new_id(), options()) as box:
        assert list(box.tools) == []


async def test_a_second_turn_asks_for_no_list_and_connects_when_a_tool_is_called(stand: Stand, url: str, seen: Seen) -> None:
    async with stand.open(choice(url)):
        pass
    await stand.tools.close()
    asked = len(seen.headers)
    async with stand.open(choice(url)) as box:
        assert len(box.tools) == 7
        assert len(seen.headers) == asked
        assert await run(by_name(box)["notes__add"], a=2, b=2) == "4"


async def test_the_provider_is_given_what_it_can_reach(pool: Database) -> None:
    stand, seen = Stand(pool, mcp_mode="hosted"), Seen()
    async with running_mcp(real_server(seen), seen) as url:
        public = choice("https://1.1.1.1/mcp", "public", headers={"x-key": SECRET}, approval="always")
        async with stand.open(public, choice(url, "near")) as box:
            (hosted,) = box.hosted
            assert (hosted.label, hosted.headers, hosted.approval) == ("public", {"x-key": SECRET}, "always")
            assert SECRET not in repr(hosted)
            assert {one.server_label for one in box.tools} == {"near"}
    await stand.close()


async def test_headers_whose_key_is_gone_cost_their_server_only(stand: Stand, pool: Database, url: str) -> None:
    await McpServerStore(pool, Seal([b"another key of thirty-two bytes!"])).keep_server(
        ServerDraft("lost", url, {"x-key": SECRET}, [], "never", is_enabled=True),
        user_id=stand.user_id,
        request_id=None,
        request=b"",
    )
    await stand.keep(url)
    async with stand.open() as box:
        assert {one.server_label for one in box.tools} == {"notes"}
        assert box.degraded == ["lost"]


async def test_headers_copied_to_another_row_are_of_no_use(stand: Stand, pool: Database, url: str) -> None:
    first = await stand.keep(url, "first", headers={"x-key": SECRET})
    second = await stand.keep(url, "second", headers={"x-key": "of the second"})
    async with pool.transaction(user_id=stand.user_id) as connection:
        await connection.exec_driver_sql(
            "update mcp_servers set sealed_headers = (select sealed_headers from mcp_servers where id = %s::uuid)"
            " where id = %s::uuid",
            (first, second),
        )
    offered = await stand.store.offered_servers(user_id=stand.user_id)
    assert [one.label for one in offered.servers] == ["first"]
    assert offered.sealed_labels == ["second"]


async def test_a_change_of_the_label_keeps_the_headers(stand: Stand, url: str) -> None:
    server_id = await stand.keep(url, headers={"x-key": SECRET})
    await stand.store.change_server(server_id, ServerChanges(label="other"), user_id=stand.user_id)
    offered = await stand.store.offered_servers(user_id=stand.user_id)
    assert [(one.label, one.headers) for one in offered.servers] == [("other", {"x-key": SECRET})]


# --- Strangers ---


async def answers_nothing(_request: Request, _writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def refuses(_request: Request, writer: asyncio.StreamWriter) -> None:
    send_json(writer, {"error": SECRET}, status="401 Unauthorized")


async def speaks_nonsense(_request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")


async def answers_html(_request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>")


async def never_ends(request: Request, writer: asyncio.StreamWriter) -> None:
    if shake_hands(request, writer):
        return
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
    while True:
        writer.write(b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}\n\n')
        await writer.drain()
        await asyncio.sleep(0.001)


async def answers_hugely(request: Request, writer: asyncio.StreamWriter) -> None:
    if shake_hands(request, writer):
        return
    writer.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{"jsonrpc":"2.0","id":1,"result":"')
    for _ in range(400):
        writer.write(b"x" * 65_536)
        await writer.drain()


async def compresses(_request: Request, writer: asyncio.StreamWriter) -> None:
    send_json(writer, {}, headers="content-encoding: gzip\r\n")


async def lists_for_ever(request: Request, writer: asyncio.StreamWriter) -> None:
    if not shake_hands(request, writer):
        await asyncio.sleep(0.5)
        answer(writer, request, {"tools": [], "nextCursor": "again"})


async def lists_no_tools(request: Request, writer: asyncio.StreamWriter) -> None:
    if not shake_hands(request, writer):
        answer(writer, request, {"tools": "none"})


STRANGERS = (
    answers_nothing, refuses, speaks_nonsense, answers_html, never_ends, answers_hugely, compresses, lists_for_ever,
    lists_no_tools,
)  # fmt: skip


@pytest.mark.parametrize("handler", STRANGERS, ids=lambda handler: handler.__name__)
async def test_a_stranger_costs_the_turn_its_own_tools_only(stand: Stand, seen: Seen, handler: Any) -> None:
    async with stranger(handler) as (strange, _), running_mcp(real_server(seen), seen) as url:
        begin = time.monotonic()
        async with stand.open(choice(strange, "strange", headers={"x-key": SECRET}), choice(url)) as box:
            assert time.monotonic() - begin < PATIENCE_SECONDS
            assert {one.server_label for one in box.tools} == {"notes"}
            assert list(box.degraded) == ["strange"]
            assert await run(by_name(box)["notes__add"], a=1, b=2) == "3"


async def test_who_did_not_answer_is_not_waited_for_in_the_next_turn(stand: Stand) -> None:
    async with stranger(answers_nothing) as (strange, requests):
        for _ in range(2):
            async with stand.open(choice(strange)) as box:
                assert list(box.degraded) == ["notes"]
        assert len(requests) == 1


async def test_nobody_listens(stand: Stand) -> None:
    async with stand.open(choice("http://127.0.0.1:9/mcp")) as box:
        assert list(box.degraded) == ["notes"]


@pytest.mark.parametrize("status", ["307 Temporary Redirect", "302 Found"])
async def test_no_redirect_leads_elsewhere(stand: Stand, status: str) -> None:
    async with stranger(answers_nothing) as (inner, asked):

        async def redirects(_request: Request, writer: asyncio.StreamWriter) -> None:
            send_json(writer, {}, status=status, headers=f"location: {inner}\r\n")

        async with stranger(redirects) as (strange, _), stand.open(choice(strange, headers={"x-key": SECRET})) as box:
            assert list(box.degraded) == ["notes"]
        assert asked == []


async def test_private_addresses_are_not_called_unless_allowed(pool: Database, seen: Seen) -> None:
    stand = Stand(pool, mcp_allow_private_addresses=False)
    async with running_mcp(real_server(seen), seen) as url:
        port = url.split(":")[2]
        # As rows that were written while it was allowed.
        private = [url, f"https://127.0.0.1:{port}", f"https://localhost:{port}", f"https://[::ffff:127.0.0.1]:{port}"]
        async with stand.open(*(choice(one, f"s{index}") for index, one in enumerate(private))) as box:
            assert list(box.tools) == []
            assert list(box.degraded) == ["s0", "s1", "s2", "s3"]
    assert seen.headers == []
    await stand.close()


async def test_a_server_that_goes_away_fails_the_call_at_once_and_is_found_again(stand: Stand) -> None:
    calls = 0

    async def goes_away(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        if shake_hands(request, writer):
            return
        if request.body["method"] == "tools/list":
            answer(writer, request, {"tools": [tool("go")]})
            return
        calls += 1
        if calls > 1:
            answer(writer, request, {"content": [{"type": "text", "text": "back"}]})

    async with stranger(goes_away) as (url, _), stand.open(choice(url)) as box:
        (go,) = box.tools
        begin = time.monotonic()
        with pytest.raises(ToolError, match="The MCP server notes"):
            await run(go)
        assert time.monotonic() - begin < PATIENCE_SECONDS
        assert await run(go) == "back"


async def test_a_slow_tool_can_be_given_up_and_the_server_goes_on(stand: Stand, url: str) -> None:
    async with stand.open(choice(url)) as box:
        tools = by_name(box)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await tools["notes__slow"].run({}, invocation())
        assert await run(tools["notes__add"], a=1, b=1) == "2"


async def test_what_a_stranger_says_of_its_tools_is_bounded(stand: Stand) -> None:
    circle = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/x"}},
        "$defs": {"x": {"allOf": [{"$ref": "#/$defs/x"}]}},
    }
    offered = [
        tool("plain"),
        tool("with spaces.and/more"),
        tool("with spaces/and.more"),
        tool("long" * 30),
        tool("talks", description="z" * 5_000),
        tool("circle", inputSchema=circle),
        tool("wrong", inputSchema={"type": "object", "properties": {"a": {"type": "nothing"}}}),
        tool("huge", inputSchema={"type": "object", "properties": {"a": {"description": "z" * 20_000}}}),
        tool("", description="no name"),
        tool("plain", description="the same name again"),
        *(tool(f"more{index}") for index in range(200)),
    ]

    async def lists(request: Request, writer: asyncio.StreamWriter) -> None:
        if not shake_hands(request, writer):
            answer(writer, request, {"tools": offered})

    async with stranger(lists) as (url, _), stand.open(choice(url, "a" * 32)) as box:
        assert len(box.tools) <= 128
        assert all(one.spec.name.replace("_", "").replace("-", "").isalnum() for one in box.tools)
        assert all(0 < len(one.spec.name) <= 64 for one in box.tools)
        assert len(by_name(box)) == len(box.tools)
        tools = {one.tool: one for one in box.tools}
        assert not {"wrong", "huge", ""} & set(tools)
        assert {"plain", "with spaces.and/more", "with spaces/and.more", "long" * 30, "circle"} <= set(tools)
        assert len(tools["talks"].spec.description) == 1_000
        assert "$ref" not in str(tools["circle"].spec.parameters)


async def test_the_tools_of_a_turn_are_bounded_over_all_its_servers(stand: Stand) -> None:
    async def lists(request: Request, writer: asyncio.StreamWriter) -> None:
        if not shake_hands(request, writer):
            answer(writer, request, {"tools": [tool(f"t{index}", description="z" * 900) for index in range(100)]})

    async with stranger(lists) as (url, _), stand.open(choice(url, "one"), choice(url, "two")) as box:
        assert len(box.tools) == 128
    async with stranger(lists) as (url, _), stand.open(*(choice(url, f"s{index}") for index in range(8))) as box:
        assert len(box.tools) == 128


def listing(offered: list[dict[str, Any]]) -> Any:
    async def lists(request: Request, writer: asyncio.StreamWriter) -> None:
        if not shake_hands(request, writer):
            answer(writer, request, {"tools": offered})

    return lists


def many_parts(name: str) -> dict[str, Any]:
    """A tool whose schema is about as large as one may be, of as many parts as go into it."""
    return tool(name, inputSchema={"type": "object", "properties": {f"p{index}": {"type": "null"} for index in range(600)}})


async def test_a_listing_of_many_parts_holds_up_nobody(pool: Database) -> None:
    stand, longest = Stand(pool, mcp_connect_timeout_seconds=20), 0.0

    async def looks() -> None:
        nonlocal longest
        while True:
            begin = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - begin)

    async with stranger(listing([many_parts(f"t{index}") for index in range(40)])) as (url, _):
        looking = asyncio.create_task(looks())
        async with stand.open(choice(url)) as box:
            assert len(box.tools) > 10
        looking.cancel()
    await stand.close()
    # Of its own time, whatever else the machine does: 0.05 s; it was 13 s.
    assert longest < 5


async def test_what_is_remembered_of_a_listing_is_small(stand: Stand) -> None:
    async with stranger(listing([many_parts(f"t{index}") for index in range(20)])) as (url, _):
        # What everything loads when it is first used.
        async with stand.open(choice(url)):
            pass
        await stand.tools.close()
        gc.collect()
        before = sys.getallocatedblocks()
        async with stand.open(choice(url, headers={"x-key": "another"})) as box:
            assert len(box.tools) > 10
        del box
        await stand.tools.close()
        gc.collect()
        # Its 12,000 parts are one string a tool.
        assert sys.getallocatedblocks() - before < 5_000


async def test_what_is_remembered_of_all_listings_is_bounded(stand: Stand) -> None:
    """A listing is 2 MB here, and so many more than are kept are read that the first one is forgotten."""
    described = {"type": "object", "properties": {"a": {"description": "z" * 15_800}}}
    offered = [tool(f"t{index}", inputSchema=described) for index in range(125)]
    async with stranger(listing(offered)) as (url, requests):

        async def asks(key: int) -> int:
            before = len(requests)
            async with stand.open(choice(url, headers={"x-key": str(key)})) as box:
                assert len(box.tools) == 200_000 // 15_900
            await stand.tools.close()
            return len(requests) - before

        for key in range(20):
            assert await asks(key)
        assert not await asks(19)
        assert await asks(0)


async def test_an_app_that_faults_is_one_more_stranger(stand: Stand) -> None:
    async def faults(scope: Any, _receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    async with serving(faults) as url, stand.open(choice(f"{url}/mcp")) as box:
        assert list(box.degraded) == ["notes"]
