"""/mcp of a whole suite: an MCP client keeps the same to-do list as REST, as the same person, on whichever process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import orjson
from mcp.client.client import Client as McpClient
from mcp.client.streamable_http import streamable_http_client

from tests.e2e.harness import Client, Json, Suite


@asynccontextmanager
async def connected(suite: Suite, person: Client) -> AsyncIterator[McpClient]:
    async with httpx2.AsyncClient(headers=person.headers, timeout=30, trust_env=False) as http:
        transport = streamable_http_client(f"{suite.url}/mcp", http_client=http)
        async with McpClient(transport, cache=None) as client:
            yield client


async def said(client: McpClient, tool: str, **arguments: object) -> Json:
    result = await client.call_tool(tool, arguments)
    (block,) = result.content
    assert block.type == "text"
    assert not result.is_error, block.text
    told: Json = orjson.loads(block.text)
    return told


async def test_an_mcp_client_and_rest_share_the_list_of_one_person(suite: Suite) -> None:
    ana, ben = await Client(suite.url).register(), await Client(suite.url).register()
    async with connected(suite, ana) as mcp:
        tools = {tool.name for tool in (await mcp.list_tools()).tools}
        assert tools == {"add_task", "list_tasks", "complete_task", "update_task", "delete_task"}
        await said(mcp, "add_task", title="Buy groceries")
        await said(mcp, "add_task", title="Call Ben", due_time="2030-01-02T10:00:00+01:00")
        await said(mcp, "complete_task", title="groceries")
        await said(mcp, "update_task", title="Call Ben", new_title="Write to Ben")
        by_rest = (await ana.call("GET", "/api/v1/tasks"))["tasks"]
        assert [(task["title"], task["completed"]) for task in by_rest] == [("Write to Ben", False), ("Buy groceries", True)]
        await said(mcp, "delete_task", task_id=by_rest[0]["id"])
        # Stateless: other processes answer, and know the same.
        for _ in range(4):
            assert [task["title"] for task in (await said(mcp, "list_tasks"))["tasks"]] == ["Buy groceries"]
        refused = await mcp.call_tool("add_task", {"title": ""})
        assert refused.is_error
    async with connected(suite, ben) as mcp:
        assert (await said(mcp, "list_tasks"))["tasks"] == []
    await ana.close()
    await ben.close()


async def test_mcp_without_a_good_token_is_refused_like_everything_else(suite: Suite) -> None:
    nobody = Client(suite.url)
    call = orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    assert await nobody.refusal("POST", "/mcp", content=call) == (401, "IDENTITY_MISSING")
    ana = await Client(suite.url).register()
    headers = dict(ana.headers)
    await ana.call("POST", "/api/v1/auth/logout")
    assert await nobody.refusal("POST", "/mcp", headers=headers, content=call) == (401, "SESSION_ENDED")
    await nobody.close()
    await ana.close()


async def test_a_persons_mcp_servers_over_rest(suite: Suite) -> None:
    ana = await Client(suite.url).register()
    created = await ana.call(
        "POST", "/api/v1/mcp-servers", label="notes", url="https://1.1.1.1/mcp", headers={"x-key": "canary-7"}
    )
    assert (created["label"], created["header_names"], created["enabled"]) == ("notes", ["x-key"], True)
    path = f"/api/v1/mcp-servers/{created['id']}"
    assert (await ana.call("PATCH", path, enabled=False))["enabled"] is False
    listed = await ana.call("GET", "/api/v1/mcp-servers")
    assert "canary-7" not in str(listed)
    assert await ana.refusal("POST", "/api/v1/mcp-servers", label="near", url="http://127.0.0.1:1/") == (
        400,
        "INVALID_REQUEST",
    )
    await ana.call("DELETE", path)
    assert await ana.refusal("GET", path) == (404, "MCP_SERVER_NOT_FOUND")
    logs = b"".join(path.read_bytes() for path in (suite.data / "logs").iterdir())
    assert b"canary-7" not in logs
    await ana.close()
