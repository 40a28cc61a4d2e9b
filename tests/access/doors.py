"""The ways in: straight at a service, through the edge over gRPC, and through the edge over REST. Each gives one outcome."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import httpx2
from google.protobuf.message import Message

from tests.access.contract import Binding, Rpc
from tests.issuer import Metadata

# A method of a channel, whose answers stay bytes.
Call = Any
CALL_SECONDS = 20.0
# Of a stream that is let in and has nothing to say.
PATIENCE_SECONDS = 0.8
STATUSES: Mapping[str, int] = {
    "OK": 200, "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400, "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403, "NOT_FOUND": 404, "ALREADY_EXISTS": 409, "ABORTED": 409, "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499, "INTERNAL": 500, "UNKNOWN": 500, "UNIMPLEMENTED": 501, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504,
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a call came to: the code's name, and everything that was said."""

    code: str
    said: bytes = b""

    def holds(self, words: str) -> bool:
        return words.encode() in self.said


class Door(Protocol):
    """A way in."""

    name: str

    async def call(self, rpc: Rpc, message: Message, headers: Metadata) -> Outcome:
        """What the call comes to."""


class GrpcDoor:
    """A channel: to a service, or to the edge."""

    def __init__(self, name: str, channel: grpc.aio.Channel) -> None:
        self.name = name
        self._channel = channel

    async def call(self, rpc: Rpc, message: Message, headers: Metadata) -> Outcome:
        """See Door."""
        said = [b""]
        try:
            if not rpc.is_stream:
                unary: Call = self._channel.unary_unary(rpc.path, request_serializer=_serialized)
                return Outcome("OK", await unary(message, metadata=headers, timeout=CALL_SECONDS))
            stream: Call = self._channel.unary_stream(rpc.path, request_serializer=_serialized)
            patience = PATIENCE_SECONDS if "Watch" in rpc.name else CALL_SECONDS
            async for one in stream(message, metadata=headers, timeout=patience):
                said.append(one)  # noqa: PERF401 - what came before an error counts
        except grpc.aio.AioRpcError as error:
            return Outcome(error.code().name, b"".join(said) + (error.details() or "").encode())
        return Outcome("OK", b"".join(said))


class RestDoor:
    """One binding, through the edge. The status must be that of the code, and the answer that of an error or of the RPC."""

    def __init__(self, client: httpx2.AsyncClient, binding: Binding) -> None:
        self.name = f"{binding.verb.upper()} {binding.path}"
        self.binding = binding
        self._client = client

    async def call(self, rpc: Rpc, message: Message, headers: Metadata) -> Outcome:
        """See Door."""
        verb, path, body = self.binding.request(message)
        patience = PATIENCE_SECONDS if "Watch" in rpc.name else CALL_SECONDS
        said = b""
        try:
            async with asyncio.timeout(patience):
                async with self._client.stream(verb, path, json=body, headers=list(headers)) as answer:
                    async for chunk in answer.aiter_raw():
                        said += chunk
        except TimeoutError:
            return Outcome("DEADLINE_EXCEEDED", said)
        if answer.status_code in {200, 204}:
            return Outcome("OK", said)
        code = _code(said)
        assert answer.status_code in {STATUSES[code], 405, 413, 431}, (answer.status_code, code)
        return Outcome(code, said)


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


def _code(said: bytes) -> str:
    body = json.loads(said)
    assert set(body) == {"code", "message", "details"}, body
    names = {value[0]: name.name for name in grpc.StatusCode if isinstance(value := name.value, tuple)}
    return str(names[body["code"]])
