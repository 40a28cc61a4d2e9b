"""/mcp through the edge: MCP clients reach the suite's own server with the identity of every other call, and only so."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2
import pytest
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from gateway.settings import Address
from services.chat.mcp.server import McpServer
from services.chat.model.request import FunctionSpec
from services.chat.tools.tool import ToolError
from services.runtime.errors import to_service_error
from services.runtime.tls import TlsSettings
from tests.gateway.backend import Service, endpoints_of
from tests.gateway.conftest import ORIGIN, USER_ID, bearer
from tests.gateway.edge import Edge, error_of, running_edge
from tests.issuer import Issuer

CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "who", "arguments": {}}}
ACCEPT = {"accept": "application/json, text/event-stream"}


class Who:
    """Says who calls."""

    spec = FunctionSpec("who", "Says who calls.", {"type": "object", "properties": {"loud": {"type": "boolean"}}})

    async def run(self, arguments: Mapping[str, Any], *, user_id: str) -> str:
        await asyncio.sleep(0.01)
        return user_id.upper() if arguments.get("loud") else user_id


class Refuses:
    """Refuses."""

    spec = FunctionSpec("refuse", "Refuses.", {"type": "object", "properties": {}})

    async def run(self, _arguments: Mapping[str, Any], *, user_id: str) -> str:
        raise ToolError(f"not today, {user_id}")


class Faults:
    """Has a fault."""

    spec = FunctionSpec("fault", "Has a fault.", {"type": "object", "properties": {}})

    async def run(self, _arguments: Mapping[str, Any], *, user_id: str) -> str:
        raise KeyError(f"canary {user_id}")


@pytest.fixture(scope="module")
async def mcp_edge(services: dict[str, Service], issuer: Issuer) -> AsyncIterator[Edge]:
    server = McpServer([Who(), Refuses(), Faults()])
    async with server.serving(issuer.verifier("chat"), TlsSettings(), address="127.0.0.1:0") as listener:
        where = (Address("127.0.0.1", listener.port),)
        settings = {"mcp_endpoints": where, "cors_allowed_origins": (ORIGIN,), "jwks_refresh_seconds": 1}
        async with running_edge(endpoints_of(services), **settings) as edge:
            await edge.until_answers("/health", 200)
            await edge.until_verifies(bearer(issuer))
            yield edge


@contextlib.asynccontextmanager
async def connected(edge: Edge, headers: Mapping[str, str], *, mode: Any = "auto") -> AsyncIterator[Client]:
    async with httpx2.AsyncClient(headers=headers, verify=False, trust_env=False, timeout=20) as http:
        transport = streamable_http_client(f"{edge.url}/mcp", http_client=http)
        async with Client(transport, mode=mode, cache=None) as client:
            yield client


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_an_mcp_client_lists_and_calls_with_the_callers_identity(
    mcp_edge: Edge, signed_in: dict[str, str], mode: str
) -> None:
    async with connected(mcp_edge, signed_in, mode=mode) as client:
        listed = await client.list_tools()
        assert [one.name for one in listed.tools] == ["who", "refuse", "fault"]
        answered = await client.call_tool("who", {"loud": True})
        assert answered.content[0].text == USER_ID.upper()  # type: ignore[union-attr]  # it is text


async def test_each_request_has_its_own_caller(mcp_edge: Edge, issuer: Issuer) -> None:
    users = [f"01990000-0000-7000-8000-0000000001{number:02}" for number in range(20)]

    async def who(client: httpx2.AsyncClient, user_id: str) -> str:
        headers = {**ACCEPT, "authorization": f"Bearer {issuer.user_token(user_id)}"}
        response = await client.post("/mcp", json=CALL, headers=headers)
        return str(response.json()["result"]["content"][0]["text"])

    async with mcp_edge.client() as client:
        assert await asyncio.gather(*(who(client, user_id) for user_id in users)) == users


async def test_refusals_are_results_and_faults_tell_nothing(mcp_edge: Edge, signed_in: dict[str, str]) -> None:
    async with connected(mcp_edge, signed_in) as client:
        refused = await client.call_tool("refuse", {})
        assert (refused.is_error, refused.content[0].text) == (True, f"not today, {USER_ID}")  # type: ignore[union-attr]
        wrong = await client.call_tool("who", {"loud": "very"})
        assert wrong.is_error
        assert "Wrong arguments: loud" in wrong.content[0].text  # type: ignore[union-attr]
        huge = await client.call_tool("who", {"loud": 10**30})
        assert "number of more than 64 bits" in huge.content[0].text  # type: ignore[union-attr]
        fault = await client.call_tool("fault", {})
        assert fault.is_error
        assert "canary" not in str(fault)
        unknown = await client.call_tool("no such", {})
        assert unknown.is_error


async def test_without_an_identity_the_edge_refuses(mcp_edge: Edge) -> None:
    async with mcp_edge.client() as client:
        response = await client.post("/mcp", json=CALL, headers=ACCEPT)
        assert error_of(response) == (401, 16, "IDENTITY_MISSING")
        assert response.headers["www-authenticate"].startswith("Bearer")
        response = await client.post("/mcp", json=CALL, headers={**ACCEPT, "authorization": "Bearer made.up.token"})
        assert error_of(response) == (401, 16, "TOKEN_INVALID")


async def test_the_service_verifies_by_itself(mcp_edge: Edge, issuer: Issuer) -> None:
    async with McpServer([Who()]).serving(issuer.verifier("chat"), TlsSettings(), address="127.0.0.1:0") as listener:
        url = f"http://127.0.0.1:{listener.port}/mcp"
        for_another = issuer.on_behalf_token(USER_ID, service="chat", audience="memory")
        async with mcp_edge.client() as client:
            nobody = await client.post(url, json=CALL, headers=ACCEPT)
            assert error_of(nobody) == (401, 16, "IDENTITY_MISSING")
            assert nobody.headers["www-authenticate"] == 'Bearer realm="parley"'
            wrong = await client.post(url, json=CALL, headers={**ACCEPT, "authorization": f"Bearer {for_another}"})
            assert error_of(wrong) == (401, 16, "TOKEN_INVALID")
            service = {**ACCEPT, "authorization": f"Bearer {issuer.service_token('sms', audience='chat')}"}
            assert (await client.post(url, json=CALL, headers=service)).status_code == 401


async def test_an_ended_session_does_not_pass(mcp_edge: Edge, issuer: Issuer) -> None:
    token = issuer.user_token(USER_ID, session_id="ended-here")
    issuer.ended.add("ended-here")
    async with mcp_edge.client() as client:
        response = await client.post("/mcp", json=CALL, headers={**ACCEPT, "authorization": f"Bearer {token}"})
    issuer.ended.discard("ended-here")
    assert error_of(response) == (401, 16, "SESSION_ENDED")


async def test_methods_paths_hosts_and_sizes(mcp_edge: Edge, signed_in: dict[str, str]) -> None:
    async with mcp_edge.client() as client:
        for method in ("GET", "DELETE"):
            response = await client.request(method, "/mcp", headers={**signed_in, "accept": "text/event-stream"})
            assert error_of(response) == (405, 12, "METHOD_NOT_ALLOWED")
            assert response.headers["allow"] == "POST"
        put = await client.put("/mcp", headers=signed_in)
        assert error_of(put) == (405, 12, "METHOD_NOT_ALLOWED")
        assert put.headers["allow"] == "DELETE, GET, POST"
        assert error_of(await client.post("/mcp/deeper", json=CALL, headers=signed_in)) == (404, 5, "ROUTE_NOT_FOUND")
        assert error_of(await client.post("/mcpx", json=CALL, headers=signed_in)) == (404, 5, "ROUTE_NOT_FOUND")
        foreign = {**ACCEPT, **signed_in, "host": "assistant.example.com"}
        assert (await client.post("/mcp", json=CALL, headers=foreign)).status_code == 200
        large = await client.post("/mcp", content=b"x" * 3_000_000, headers={**ACCEPT, **signed_in})
        assert error_of(large) == (413, 3, "REQUEST_TOO_LARGE")
        form = await client.post("/mcp", content=b"a=b", headers={**ACCEPT, **signed_in, "content-type": "text/plain"})
        assert error_of(form) == (400, 3, "INVALID_REQUEST")
        broken = await client.post("/mcp", content=b"{", headers={**ACCEPT, **signed_in, "content-type": "application/json"})
        assert (broken.status_code, broken.json()["error"]["code"]) == (400, -32700)


async def test_a_request_id_is_kept_and_nothing_is_cached(mcp_edge: Edge, signed_in: dict[str, str]) -> None:
    async with mcp_edge.client() as client:
        headers = {**ACCEPT, **signed_in, "x-request-id": "from-the-client"}
        response = await client.post("/mcp", json=CALL, headers=headers)
    assert response.headers["x-request-id"] == "from-the-client"
    assert response.headers["cache-control"] == "no-cache"


async def test_a_page_of_an_allowed_origin_may_speak_mcp(mcp_edge: Edge, signed_in: dict[str, str]) -> None:
    asks = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,mcp-protocol-version",
    }
    async with mcp_edge.client() as client:
        preflight = await client.request("OPTIONS", "/mcp", headers=asks)
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert "mcp-protocol-version" in preflight.headers["access-control-allow-headers"]
        response = await client.post("/mcp", json=CALL, headers={**ACCEPT, **signed_in, "origin": ORIGIN})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, ORIGIN)


async def test_what_is_open_ends_in_a_drain_and_nothing_new_is_taken(issuer: Issuer) -> None:
    released, begun = asyncio.Event(), asyncio.Event()

    class Waits:
        spec = FunctionSpec("who", "", {"type": "object", "properties": {}})

        async def run(self, _arguments: Mapping[str, Any], *, user_id: str) -> str:
            begun.set()
            await released.wait()
            return user_id

    headers = {**ACCEPT, **bearer(issuer)}
    async with (
        McpServer([Waits()]).serving(issuer.verifier("chat"), TlsSettings(), address="127.0.0.1:0") as listener,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{listener.port}", verify=False, trust_env=False) as client,
    ):
        running = asyncio.create_task(client.post("/mcp", json=CALL, headers=headers))
        await begun.wait()
        listener.drain(within_seconds=5)
        await asyncio.sleep(0.1)
        with pytest.raises(httpx2.TransportError):
            await client.post("/mcp", json=CALL, headers=headers)
        released.set()
        assert (await running).json()["result"]["content"][0]["text"] == USER_ID


async def test_a_taken_port_is_named(issuer: Issuer) -> None:
    async with McpServer([Who()]).serving(issuer.verifier("chat"), TlsSettings(), address="127.0.0.1:0") as listener:
        with pytest.raises(OSError, match=f"cannot serve MCP on 127.0.0.1:{listener.port}"):
            async with McpServer([Who()]).serving(
                issuer.verifier("chat"), TlsSettings(), address=f"127.0.0.1:{listener.port}"
            ):
                pass


def test_what_a_fault_tells_is_a_fixed_text() -> None:
    assert "canary" not in to_service_error(KeyError("canary"), "1").message
