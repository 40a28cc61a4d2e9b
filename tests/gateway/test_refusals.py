"""Every documented refusal has its status, its code, its reason and the one error shape."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx2
import pytest
from google.rpc import code_pb2, error_details_pb2

from gateway.settings import Address
from parley.auth.v1 import auth_pb2
from parley.chat.v1 import conversation_pb2, conversation_pb2_grpc
from tests.gateway.backend import Script, Service, endpoints_of, error
from tests.gateway.edge import Edge, error_of, running_edge
from tests.work import PATIENCE_SECONDS

SERVICE_CODES = [
    (code_pb2.INVALID_ARGUMENT, 400),
    (code_pb2.UNAUTHENTICATED, 401),
    (code_pb2.PERMISSION_DENIED, 403),
    (code_pb2.NOT_FOUND, 404),
    (code_pb2.ALREADY_EXISTS, 409),
    (code_pb2.ABORTED, 409),
    (code_pb2.RESOURCE_EXHAUSTED, 429),
    (code_pb2.CANCELLED, 499),
    (code_pb2.INTERNAL, 500),
    (code_pb2.UNAVAILABLE, 503),
    (code_pb2.DEADLINE_EXCEEDED, 504),
]


@pytest.mark.parametrize(("code", "status"), SERVICE_CODES)
async def test_service_errors_keep_their_details(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str], code: int, status: int
) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="message", description='has "quotes" and ünïcode')
    refusal = error(code, "100 % wrong: ünïcode", "SOME_REASON", error_details_pb2.BadRequest(field_violations=[violation]))
    for name, path in (("CreateCompletion", "completions"), ("StreamCompletion", "stream")):
        script.refuses(name, refusal)
        response = await client.post(f"/api/v1/chat/{path}", json={}, headers=signed_in)
        assert error_of(response) == (status, code, "SOME_REASON")
        body = response.json()
        assert body["message"] == "100 % wrong: ünïcode"
        assert body["details"][0]["metadata"] == {"part": "test"}
        (field,) = body["details"][1]["field_violations"]
        assert field["description"] == 'has "quotes" and ünïcode'


@pytest.mark.parametrize(("milliseconds", "header"), [(2500, "3"), (30_000, "30"), (1, "1"), (None, "1")])
async def test_retry_after_says_what_retry_info_says(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str], milliseconds: int | None, header: str
) -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(milliseconds or 0)
    for code in (code_pb2.RESOURCE_EXHAUSTED, code_pb2.UNAVAILABLE):
        script.refuses("StreamCompletion", error(code, "Wait.", "MODEL_RATE_LIMITED", *([retry] if milliseconds else [])))
        response = await client.post("/api/v1/chat/stream", json={}, headers=signed_in)
        assert response.headers["retry-after"] == header
        assert response.json()["message"] == "Wait."


async def test_errors_after_the_initial_metadata_are_the_same(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromSeconds(5)
    refusal = error(code_pb2.RESOURCE_EXHAUSTED, "Wait.", "MODEL_RATE_LIMITED", retry)
    script.refuses_late("CreateCompletion", refusal)
    headers = {**signed_in, "x-request-id": "of-the-client"}
    response = await client.post("/api/v1/chat/completions", json={}, headers=headers)
    assert error_of(response) == (429, code_pb2.RESOURCE_EXHAUSTED, "MODEL_RATE_LIMITED")
    assert response.headers["retry-after"] == "5"
    assert response.headers["x-request-id"] == "of-the-client"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, (504, code_pb2.DEADLINE_EXCEEDED, "DEADLINE_PASSED")),
        (grpc.StatusCode.UNAVAILABLE, (503, code_pb2.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")),
        (grpc.StatusCode.CANCELLED, (503, code_pb2.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, (500, code_pb2.INTERNAL, "INTERNAL_FAULT")),
        (grpc.StatusCode.INTERNAL, (500, code_pb2.INTERNAL, "INTERNAL_FAULT")),
        (grpc.StatusCode.UNIMPLEMENTED, (500, code_pb2.INTERNAL, "INTERNAL_FAULT")),
    ],
)
async def test_errors_that_grpc_itself_made_get_the_one_shape(
    client: httpx2.AsyncClient,
    script: Script,
    signed_in: dict[str, str],
    code: grpc.StatusCode,
    expected: tuple[int, int, str],
) -> None:
    async def refuse(_request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> auth_pb2.User:
        await context.abort(code, 'of its insides "@type":"type.googleapis.com/google.rpc.ErrorInfo" %1')

    async def refuse_stream(request: Any, context: Any) -> AsyncIterator[Any]:
        yield await refuse(request, context)

    script.unary["CreateCompletion"] = refuse
    script.streams["StreamCompletion"] = refuse_stream
    for path in ("completions", "stream"):
        headers = {**signed_in, "x-request-id": "of-the-client"}
        response = await client.post(f"/api/v1/chat/{path}", json={}, headers=headers)
        assert error_of(response) == expected
        assert "insides" not in response.text
        infos = [detail for detail in response.json()["details"] if detail["@type"].endswith("ErrorInfo")]
        assert [info["metadata"] for info in infos] == [{"request_id": "of-the-client"} if expected[0] == 500 else {}]
        assert response.headers.get("retry-after") == ("1" if expected[0] == 503 else None)


async def test_other_errors_have_no_retry_after(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.refuses("GetMe", error(code_pb2.NOT_FOUND, "No.", "USER_NOT_FOUND"))
    assert "retry-after" not in (await client.get("/api/v1/auth/me", headers=signed_in)).headers


@pytest.mark.parametrize("path", ["/nowhere", "/api/v1/chat/conversations/a/b/c", "/api/v2/auth/login", "/docs/../secret"])
async def test_unknown_path(client: httpx2.AsyncClient, path: str) -> None:
    assert error_of(await client.get(path)) == (404, code_pb2.NOT_FOUND, "ROUTE_NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/api/v1/auth/login", "POST"),
        ("DELETE", "/api/v1/chat/conversations", "GET, POST"),
        ("POST", "/api/v1/chat/conversations/c1", "DELETE, GET, PATCH"),
        ("POST", "/docs", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("OPTIONS", "/api/v1/auth/me", "GET"),
    ],
)
async def test_known_path_with_another_method(
    client: httpx2.AsyncClient, signed_in: dict[str, str], method: str, path: str, allow: str
) -> None:
    response = await client.request(method, path, headers=signed_in)
    assert error_of(response) == (405, code_pb2.UNIMPLEMENTED, "METHOD_NOT_ALLOWED")
    assert response.headers["allow"] == allow


@pytest.mark.parametrize(
    "body",
    [
        b'{"username": nope',
        b'{"username": "a"} trailing',
        b'{"username": 5}',
        b"[1]",
        b'"text"',
        b"a=b&c=d",
        b"\xff\xfe\x00",
    ],
)
async def test_junk_in_the_body(client: httpx2.AsyncClient, script: Script, body: bytes) -> None:
    script.answers("Login", auth_pb2.LoginResponse())
    response = await client.post("/api/v1/auth/login", content=body, headers={"content-type": "application/json"})
    assert error_of(response) == (400, code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert "Login" not in script.calls


@pytest.mark.parametrize("query", ["nonsense=1", "page_size=many", "page_size=1&nonsense=2"])
async def test_junk_in_the_query(client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str], query: str) -> None:
    response = await client.get(f"/api/v1/auth/sessions?{query}", headers=signed_in)
    assert error_of(response) == (400, code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert ("nonsense" if "nonsense" in query else "page_size") in response.json()["message"]
    assert "ListSessions" not in script.calls


async def test_path_and_body_that_contradict_each_other(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    body = {"conversation_id": "other", "title": "x"}
    response = await client.patch("/api/v1/chat/conversations/c1", json=body, headers=signed_in)
    assert error_of(response) == (400, code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert "UpdateConversation" not in script.calls


async def test_three_megabytes(client: httpx2.AsyncClient, script: Script) -> None:
    response = await client.post("/api/v1/auth/login", json={"username": "a" * 3_000_000})
    assert error_of(response) == (413, code_pb2.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")
    assert "Login" not in script.calls


async def test_three_megabytes_in_chunks_of_unknown_total(client: httpx2.AsyncClient, script: Script) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" " * 100_000

    response = await client.post("/api/v1/auth/login", content=chunks())
    assert error_of(response) == (413, code_pb2.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")
    assert "Login" not in script.calls


@pytest.mark.parametrize(
    "request_line_and_headers",
    [
        "GET /api/v1/auth/sessions/a%2Fb HTTP/1.1\r\nHost: a",
        "GET /api HTTP/1.1\r\nHost: a\r\nwith_underscore: 1",
        "GET /api HTTP/1.1",
        "GET /api HTTP/1.1\r\nHost: a\r\nbad header: 1",
        "NONSENSE",
        "GET /api HTTP/x\r\nHost: a",
        "POST /api/v1/auth/login HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked",
    ],
)
async def test_http_that_is_not_taken(edge: Edge, request_line_and_headers: str) -> None:
    status, headers, body = await edge.raw(f"{request_line_and_headers}\r\n\r\n".encode())
    assert (status, headers["content-type"]) == (400, "application/json")
    assert body["code"] == code_pb2.INVALID_ARGUMENT
    assert body["details"][0]["reason"] == "INVALID_REQUEST"
    assert body["details"][0]["metadata"] == {}


@pytest.fixture(scope="module")
async def impatient_edge(services: dict[str, Service]) -> AsyncIterator[Edge]:
    """An edge with short times, few hosts, and a memory service that is not there."""
    endpoints = endpoints_of(services)
    settings: dict[str, Any] = {
        "request_timeout_seconds": 1,
        "receive_timeout_seconds": 1,
        "allowed_hosts": ("127.0.0.1", "*.example.com"),
    }
    async with running_edge(endpoints, **settings) as edge:
        yield edge


async def test_answer_that_does_not_come(impatient_edge: Edge, script: Script) -> None:
    async def never(_request: Any, _context: Any) -> auth_pb2.LoginResponse:
        await asyncio.sleep(30)
        return auth_pb2.LoginResponse()

    script.unary["Login"] = never
    async with impatient_edge.client() as client:
        response = await client.post("/api/v1/auth/login", json={})
    assert error_of(response) == (504, code_pb2.DEADLINE_EXCEEDED, "DEADLINE_PASSED")
    assert len(script.calls["Login"]) == 1


async def test_request_that_does_not_come(impatient_edge: Edge) -> None:
    head = b"POST /api/v1/auth/login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{"
    status, _headers, body = await impatient_edge.raw(head)
    assert status == 408
    assert (body["code"], body["details"][0]["reason"]) == (code_pb2.DEADLINE_EXCEEDED, "DEADLINE_PASSED")


async def test_unknown_hosts(impatient_edge: Edge) -> None:
    async with impatient_edge.client() as client:
        for host in ("evil.test", "example.com.evil.test:8080"):
            response = await client.get("/docs", headers={"host": host})
            assert error_of(response) == (421, code_pb2.NOT_FOUND, "ROUTE_NOT_FOUND")
        for host in ("127.0.0.1", "api.example.com", "api.example.com:8080"):
            assert (await client.get("/docs", headers={"host": host})).status_code == 200
        # Probes of a cluster come by the address of a pod.
        assert (await client.get("/health", headers={"host": "10.0.0.7:8080"})).status_code == 200


async def test_a_frozen_service_is_not_asked(services: dict[str, Service], signed_in: dict[str, str]) -> None:
    asked = asyncio.Event()

    async def freeze(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Takes connections, as a stopped process does, and says nothing.
        await asked.wait()
        writer.close()

    async with await asyncio.start_server(freeze, "127.0.0.1", 0) as frozen:
        endpoints = endpoints_of(services)
        endpoints["chat"] = (Address("127.0.0.1", frozen.sockets[0].getsockname()[1]),)
        async with running_edge(endpoints) as edge, edge.client() as client, asyncio.timeout(PATIENCE_SECONDS):
            await edge.until_verifies(signed_in)
            response = await client.get("/api/v1/chat/conversations", headers=signed_in)
            assert error_of(response) == (503, code_pb2.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
            asked.set()


async def test_service_that_is_gone(services: dict[str, Service], script: Script, signed_in: dict[str, str]) -> None:
    gone = Service("chat", script)
    await gone.start()
    endpoints = endpoints_of(services)
    endpoints["chat"] = (Address("127.0.0.1", gone.port),)
    async with running_edge(endpoints) as edge, edge.client() as client:
        await edge.until_verifies(signed_in)
        await gone.stop()
        response = await client.post("/api/v1/chat/stream", json={}, headers=signed_in)
        assert error_of(response) == (503, code_pb2.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
        assert response.headers["retry-after"] == "1"
        assert response.json()["details"][1]["retry_delay"] == "1s"
        async with grpc.aio.insecure_channel(f"127.0.0.1:{edge.port}") as channel:
            stub = conversation_pb2_grpc.ConversationServiceStub(channel)
            request = conversation_pb2.ListConversationsRequest()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ListConversations(request, metadata=tuple(signed_in.items()), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
