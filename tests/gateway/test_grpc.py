"""Native gRPC and gRPC-Web on the edge's port."""

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx2
import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from gateway.contract import DESCRIPTORS, read_descriptors
from parley.auth.v1 import auth_pb2, auth_pb2_grpc
from parley.chat.v1 import chat_pb2, chat_pb2_grpc
from parley.options.v1 import options_pb2
from tests.gateway.backend import Script, error
from tests.issuer import Issuer

# Every RPC that only services may call.
SERVICE_PATHS = [
    f"/{file.package}.{service.name}/{method.name}"
    for file in read_descriptors(DESCRIPTORS).file
    for service in file.service
    for method in service.method
    if method.options.Extensions[options_pb2.access] in {options_pb2.ACCESS_SERVICE, options_pb2.ACCESS_WORKLOAD}
]
GRPC_WEB = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}


def metadata(headers: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(headers.items())


def reason_of(caught: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(caught)  # type: ignore[arg-type]  # reads code, details and trailers, which it has
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


async def test_unary_call_with_identity(channel: grpc.aio.Channel, script: Script, signed_in: dict[str, str]) -> None:
    script.answers("GetMe", auth_pb2.User(username="ana"))
    stub = auth_pb2_grpc.AuthServiceStub(channel)
    answer = await stub.GetMe(auth_pb2.GetMeRequest(), metadata=metadata(signed_in), timeout=5)
    assert answer.username == "ana"
    assert script.only_call("GetMe").metadata["authorization"] == signed_in["authorization"]


async def test_public_call_without_identity(channel: grpc.aio.Channel, script: Script) -> None:
    script.answers("Login", auth_pb2.LoginResponse())
    stub = auth_pb2_grpc.AuthServiceStub(channel)
    await stub.Login(auth_pb2.LoginRequest(username="ana"), timeout=5)
    assert script.only_call("Login").request.username == "ana"


async def test_stream_flows_message_by_message(channel: grpc.aio.Channel, script: Script, signed_in: dict[str, str]) -> None:
    seen: asyncio.Queue[int] = asyncio.Queue()

    async def one_by_one(_request: Any, _context: Any) -> AsyncIterator[Message]:
        for number in (1, 2, 3):
            yield chat_pb2.CompletionEvent(sequence=number)
            assert await asyncio.wait_for(seen.get(), timeout=5) == number

    script.streams["StreamCompletion"] = one_by_one
    stub = chat_pb2_grpc.ChatServiceStub(channel)
    async for event in stub.StreamCompletion(chat_pb2.CompletionRequest(), metadata=metadata(signed_in), timeout=10):
        seen.put_nowait(event.sequence)
    assert seen.empty()


async def test_service_errors_arrive_whole(channel: grpc.aio.Channel, script: Script, signed_in: dict[str, str]) -> None:
    script.refuses("GetMe", error(code_pb2.NOT_FOUND, "No ünïcode.", "USER_NOT_FOUND"))
    stub = auth_pb2_grpc.AuthServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetMe(auth_pb2.GetMeRequest(), metadata=metadata(signed_in), timeout=5)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "No ünïcode.")
    assert reason_of(caught.value) == "USER_NOT_FOUND"


async def test_refusals_of_the_door_are_grpc_errors(channel: grpc.aio.Channel, issuer: Issuer) -> None:
    stub = auth_pb2_grpc.AuthServiceStub(channel)
    expired = issuer.sign({"aud": "parley", "sub": "u"}, expires_in=-10)
    for token, reason in ((None, "IDENTITY_MISSING"), (expired, "TOKEN_EXPIRED"), ("bad", "TOKEN_INVALID")):
        call_metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetMe(auth_pb2.GetMeRequest(), metadata=call_metadata, timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert reason_of(caught.value) == reason


@pytest.mark.parametrize(
    "path",
    [
        *SERVICE_PATHS,
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/parley.auth.v1.AuthService/Nonsense",
    ],
)
async def test_what_is_not_for_clients_does_not_exist(
    channel: grpc.aio.Channel, client: httpx2.AsyncClient, script: Script, issuer: Issuer, path: str
) -> None:
    tokens = {"authorization": f"Bearer {issuer.user_token('u', roles=('user', 'admin'))}"}
    tokens["x-parley-service-authorization"] = f"Bearer {issuer.service_token('chat', audience='memory')}"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(path, bytes, bytes)(b"", metadata=metadata(tokens), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert reason_of(caught.value) == "ROUTE_NOT_FOUND"
    assert (await client.post(path, json={}, headers=tokens)).status_code == 404
    assert set(script.calls) <= {"GetJwks"}


def test_some_rpcs_are_only_for_services() -> None:
    assert {path.rsplit("/", 1)[1] for path in SERVICE_PATHS} >= {
        "AssembleContext",
        "InvalidateContext",
        "IssueServiceToken",
        "RecordTurn",
        "RecordTurns",
        "WatchEndedSessions",
    }


async def test_json_to_a_grpc_path_does_not_exist(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/parley.auth.v1.AuthService/Login", json={})).status_code == 404


async def test_grpc_content_to_a_rest_path_reaches_no_service(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    headers = {**signed_in, "content-type": "application/grpc"}
    response = await client.post("/api/v1/auth/logout", content=frame(auth_pb2.LogoutRequest()), headers=headers)
    assert response.headers.get("grpc-status", str(response.status_code)) != "0"
    assert "Logout" not in script.calls


def frame(message: Message) -> bytes:
    body = message.SerializeToString()
    return struct.pack(">BI", 0, len(body)) + body


def frames_of(body: bytes) -> list[tuple[int, bytes]]:
    frames = []
    while body:
        flag, length = struct.unpack(">BI", body[:5])
        frames.append((flag, body[5 : 5 + length]))
        body = body[5 + length :]
    return frames


async def test_grpc_web_unary(client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]) -> None:
    script.answers("GetMe", auth_pb2.User(username="ana"))
    path = "/parley.auth.v1.AuthService/GetMe"
    response = await client.post(path, content=frame(auth_pb2.GetMeRequest()), headers={**signed_in, **GRPC_WEB})
    assert response.headers["content-type"] == "application/grpc-web+proto"
    (flag, message), (end, trailers) = frames_of(response.content)
    assert (flag, auth_pb2.User.FromString(message).username) == (0, "ana")
    assert end == 0x80
    assert b"grpc-status:0" in trailers


async def test_grpc_web_text_stream(client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]) -> None:
    async def two(_request: Any, _context: Any) -> AsyncIterator[Message]:
        yield chat_pb2.CompletionEvent(sequence=1)
        yield chat_pb2.CompletionEvent(sequence=2)

    script.streams["StreamCompletion"] = two
    content = base64.b64encode(frame(chat_pb2.CompletionRequest(message="Hi")))
    headers = {**signed_in, "content-type": "application/grpc-web-text", "accept": "application/grpc-web-text"}
    path = "/parley.chat.v1.ChatService/StreamCompletion"
    response = await client.post(path, content=content, headers=headers)
    pieces = [piece for piece in response.content.replace(b"=", b"= ").split(b" ") if piece]
    body = b"".join(base64.b64decode(piece + b"=" * (-len(piece) % 4)) for piece in join_padding(pieces))
    *messages, (end, trailers) = frames_of(body)
    assert [chat_pb2.CompletionEvent.FromString(message).sequence for _flag, message in messages] == [1, 2]
    assert end == 0x80
    assert b"grpc-status:0" in trailers


def join_padding(pieces: list[bytes]) -> list[bytes]:
    """Each base64 chunk with all of its padding: the second `=` of a chunk was split off it."""
    joined: list[bytes] = []
    for piece in pieces:
        if piece == b"=":
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


async def test_grpc_web_errors_keep_their_details(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.refuses("GetMe", error(code_pb2.NOT_FOUND, "No.", "USER_NOT_FOUND"))
    path = "/parley.auth.v1.AuthService/GetMe"
    response = await client.post(path, content=frame(auth_pb2.GetMeRequest()), headers={**signed_in, **GRPC_WEB})
    found = dict(response.headers)
    if response.content:
        found = dict(line.split(":", 1) for line in frames_of(response.content)[-1][1].decode().split("\r\n") if line)
    assert found["grpc-status"] == str(code_pb2.NOT_FOUND)
    details = found["grpc-status-details-bin"].strip()
    status = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
    assert status.message == "No."


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        ("/parley.auth.v1.AuthService/GetMe", "16", "IDENTITY_MISSING"),
        ("/parley.memory.v1.MemoryService/RecordTurn", "12", "ROUTE_NOT_FOUND"),
    ],
)
async def test_grpc_web_refusals_are_grpc_errors(client: httpx2.AsyncClient, path: str, code: str, reason: str) -> None:
    response = await client.post(path, content=frame(auth_pb2.GetMeRequest()), headers=GRPC_WEB)
    assert response.headers["content-type"] == "application/grpc-web+proto"
    assert response.headers["grpc-status"] == code
    details = response.headers["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == reason
