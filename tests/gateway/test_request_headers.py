"""What of a request's headers reaches a service, and which headers the edge refuses before anybody else reads them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
import yaml
from google.protobuf.message import Message
from google.rpc import code_pb2

from gateway.config import as_yaml, bootstrap
from gateway.contract import DESCRIPTORS, read_descriptors
from gateway.local_replies import local_replies
from gateway.settings import EdgeSettings
from parley.auth.v1 import auth_pb2, auth_pb2_grpc
from parley.chat.v1 import chat_pb2
from tests.gateway.backend import Script
from tests.gateway.edge import Edge, error_of
from tests.gateway.test_grpc import frame, metadata, reason_of

ME = "/api/v1/auth/me"
LOGIN = "/api/v1/auth/login"
GET_ME = "/parley.auth.v1.AuthService/GetMe"
REFUSED = (400, code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("grpc-timeout", "bogus"),
        ("grpc-timeout", ""),
        ("grpc-timeout", "-1S"),
        ("grpc-timeout", "1n"),
        ("grpc-encoding", "bogus"),
        ("grpc-status", "3"),
        ("grpc-tags-bin", "!!"),
        ("foo-bin", "abc"),
    ],
)
async def test_grpc_headers_of_rest_clients_reach_no_service(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str], name: str, value: str
) -> None:
    script.answers("GetMe", auth_pb2.User())
    response = await client.get(ME, headers={**signed_in, name: value, "te": "gzip"})
    assert response.status_code == 200
    received = script.only_call("GetMe").metadata
    assert not [key for key in received if key.endswith("-bin") or (key.startswith("grpc-") and value == received[key])]


async def test_a_stream_of_a_rest_client_has_no_grpc_deadline(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    async def slow(_request: Any, _context: Any) -> AsyncIterator[Message]:
        yield chat_pb2.CompletionEvent(sequence=1)
        await asyncio.sleep(0.3)
        yield chat_pb2.CompletionEvent(sequence=2)

    script.streams["StreamCompletion"] = slow
    headers = {**signed_in, "grpc-timeout": "100m"}
    response = await client.post("/api/v1/chat/stream", json={}, headers=headers)
    assert [line for line in response.text.split("\n") if line.startswith("id: ")] == ["id: 1", "id: 2"]


async def test_native_grpc_keeps_its_deadline_and_its_binary_metadata(
    channel: grpc.aio.Channel, script: Script, signed_in: dict[str, str]
) -> None:
    remaining: list[float] = []

    async def note(_request: Any, context: Any) -> auth_pb2.User:
        remaining.append(context.time_remaining())
        return auth_pb2.User()

    script.unary["GetMe"] = note
    sent: list[tuple[str, str | bytes]] = [*signed_in.items(), ("x-bin", b"\xff\x00")]
    await auth_pb2_grpc.AuthServiceStub(channel).GetMe(auth_pb2.GetMeRequest(), metadata=sent, timeout=5)
    # gRPC rounds up as it sends.
    assert 0 < remaining[0] < 6
    assert script.only_call("GetMe").metadata["x-bin"] == str(b"\xff\x00")


@pytest.mark.parametrize(
    "header", [b"x-note: x\xff", b"x-note: \xc3\xa9", b"x!y: 1", b"x~y: 1"], ids=["latin", "utf8", "mark", "tilde"]
)
async def test_headers_that_grpc_cannot_carry_are_refused(edge: Edge, script: Script, header: bytes) -> None:
    head = f"POST {LOGIN} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n".encode()
    status, _headers, body = await edge.raw(head + header + b"\r\n\r\n{}")
    assert (status, body["code"], body["details"][0]["reason"]) == REFUSED
    assert "Login" not in script.calls


async def test_a_path_with_raw_bytes_is_refused(edge: Edge, script: Script) -> None:
    status, _headers, body = await edge.raw(f"GET {ME}?a=\xff HTTP/1.1\r\nHost: a\r\n\r\n".encode("latin1"))
    assert (status, body["code"], body["details"][0]["reason"]) == REFUSED
    assert "GetMe" not in script.calls


async def test_a_tab_in_a_header_is_taken(client: httpx2.AsyncClient, script: Script) -> None:
    script.answers("Login", auth_pb2.LoginResponse())
    assert (await client.post(LOGIN, json={}, headers={"x-note": "a\tb ~"})).status_code == 200


async def test_grpc_clients_are_refused_bytes_in_their_own_way(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    sent = {**signed_in, "content-type": "application/grpc", "x-note": "\xe9"}
    headers = {name.encode(): value.encode("latin1") for name, value in sent.items()}
    response = await client.post(GET_ME, content=frame(auth_pb2.GetMeRequest()), headers=headers)
    assert (response.status_code, response.headers["grpc-status"]) == (200, str(code_pb2.INVALID_ARGUMENT))
    assert "GetMe" not in script.calls


@pytest.mark.parametrize("size", [33_000, 70_000])
async def test_headers_too_large(client: httpx2.AsyncClient, size: int) -> None:
    response = await client.get("/api", headers={"x-large": "a" * size})
    assert error_of(response) == (431, code_pb2.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")


async def test_headers_too_large_over_http2_and_grpc(
    edge: Edge, channel: grpc.aio.Channel, signed_in: dict[str, str]
) -> None:
    async with edge.client(http2=True) as client:
        response = await client.get("/api", headers={"x-large": "a" * 33_000})
    assert error_of(response) == (431, code_pb2.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")
    sent = (*metadata(signed_in), ("x-large", "a" * 33_000))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await auth_pb2_grpc.AuthServiceStub(channel).GetMe(auth_pb2.GetMeRequest(), metadata=sent, timeout=5)
    assert (caught.value.code(), reason_of(caught.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")


async def test_all_headers_that_the_edge_takes_the_services_take(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.answers("GetMe", auth_pb2.User())
    many = {f"x-{number}": "a" * 380 for number in range(80)}
    assert (await client.get(ME, headers={**signed_in, **many})).status_code == 200


@pytest.mark.parametrize("path", [LOGIN, "/api/v1/chat/conversations/c1", "/docs"])
@pytest.mark.parametrize(
    "content_type",
    [
        "application/grpc",
        "application/grpc+json",
        "application/grpc-web",
        "application/grpc-web-text+proto",
        "Application/GRPC",
    ],
)
async def test_grpc_content_is_not_for_rest_paths(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str], path: str, content_type: str
) -> None:
    headers = {**signed_in, "content-type": content_type}
    response = await client.post(path, content=frame(auth_pb2.LoginRequest()), headers=headers)
    assert error_of(response) == (415, code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert "x-envoy-not-grpc" not in response.headers
    assert set(script.calls) <= {"GetJwks"}


@pytest.mark.parametrize("head", ["GET /health HTTP/1.0", "GET /api HTTP/1.0", "GET /api HTTP/1.0\r\nHost: a"])
async def test_http_1_0_is_taken(edge: Edge, head: str) -> None:
    status, headers, body = await edge.raw(f"{head}\r\n\r\n".encode())
    assert (status, headers["connection"]) == (200, "close")
    assert "version" in body


def test_http_1_0_without_a_host_means_a_host_that_is_served(tmp_path: Path) -> None:
    for hosts, meant in ((("*.example.com", "api.example.com"), "api.example.com"), (("*",), "parley")):
        settings = EdgeSettings(allowed_hosts=hosts)
        config = bootstrap(settings, read_descriptors(DESCRIPTORS), directory=tmp_path)
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        assert manager["http_protocol_options"]["default_host_for_http_10"] == meant


def test_a_fault_without_a_request_id_leaves_the_key_out() -> None:
    # No request that can be sent fails with 500 before it has an id: what Envoy is told is all there is to look at.
    mappers = yaml.safe_load(as_yaml(local_replies("1")))["mappers"]
    formats = [mapper["body_format_override"] for mapper in mappers]
    with_id = [each for each in formats if "request_id" in str(each.get("json_format"))]
    assert with_id
    assert all(each["omit_empty_values"] for each in with_id)
