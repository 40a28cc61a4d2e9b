"""The services behind the edge under test: real gRPC servers with the generated servicers, scripted by each test."""

import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from gateway.settings import Address
from parley.auth.v1 import auth_pb2, auth_pb2_grpc, user_pb2_grpc
from parley.chat.v1 import admin_pb2_grpc, chat_pb2_grpc, conversation_pb2_grpc, mcp_server_pb2_grpc, task_pb2_grpc
from parley.memory.v1 import memory_pb2_grpc
from parley.sms.v1 import call_pb2_grpc, history_pb2_grpc, sms_pb2_grpc

# As the suite's services have them.
OPTIONS = {
    "grpc.so_reuseport": 0,
    "grpc.max_receive_message_length": 8 << 20,
    "grpc.max_metadata_size": 64 << 10,
    "grpc.absolute_max_metadata_size": 128 << 10,
}
_SERVICERS: Mapping[str, Sequence[tuple[ModuleType, str]]] = {
    "auth": (
        (auth_pb2_grpc, "AuthService"),
        (auth_pb2_grpc, "TokenService"),
        (user_pb2_grpc, "UserService"),
    ),
    "chat": (
        (chat_pb2_grpc, "ChatService"),
        (conversation_pb2_grpc, "ConversationService"),
        (task_pb2_grpc, "TaskService"),
        (mcp_server_pb2_grpc, "McpServerService"),
        (admin_pb2_grpc, "AdminService"),
    ),
    "memory": ((memory_pb2_grpc, "MemoryService"),),
    "sms": (
        (sms_pb2_grpc, "SmsService"),
        (call_pb2_grpc, "CallService"),
        (history_pb2_grpc, "HistoryService"),
    ),
}
_STREAMS = frozenset(
    {
        "EditMessage",
        "ExportMemories",
        "RegenerateReply",
        "StreamCompletion",
        "SubscribeGeneration",
        "WatchEndedSessions",
        "WatchTasks",
    }
)
Context = grpc.aio.ServicerContext[Any, Any]
Unary = Callable[[Any, Context], Awaitable[Message]]
Stream = Callable[[Any, Context], AsyncIterator[Message]]


@dataclass
class Call:
    """One call as a service received it."""

    request: Any
    metadata: Mapping[str, str]


@dataclass
class Script:
    """What the services answer in this test, by RPC name, and what they were asked."""

    unary: dict[str, Unary] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    calls: dict[str, list[Call]] = field(default_factory=dict)

    def answers(self, name: str, message: Message) -> None:
        """Lets an RPC answer with this message."""

        async def answer(_request: Any, _context: Context) -> Message:
            return message

        self.unary[name] = answer

    def refuses(self, name: str, status: status_pb2.Status) -> None:
        """Lets an RPC, stream or not, end with this status before it said anything."""

        async def refuse(_request: Any, context: Context) -> Message:
            await context.abort_with_status(rpc_status.to_status(status))

        async def refuse_stream(request: Any, context: Context) -> AsyncIterator[Message]:
            yield await refuse(request, context)

        self.unary[name] = refuse
        self.streams[name] = refuse_stream

    def refuses_late(self, name: str, status: status_pb2.Status) -> None:
        """As `refuses`, for a unary RPC and after the initial metadata has gone out on its own."""

        async def refuse(_request: Any, context: Context) -> Message:
            await context.send_initial_metadata((("x-request-id", "of-the-service"),))
            await context.abort_with_status(rpc_status.to_status(status))

        self.unary[name] = refuse

    def only_call(self, name: str) -> Call:
        """The one call that an RPC received."""
        (call,) = self.calls[name]
        return call

    def clear(self) -> None:
        """Forgets everything: unscripted RPCs are UNIMPLEMENTED."""
        self.unary.clear()
        self.streams.clear()
        self.calls.clear()


def error(code: int, message: str, reason: str, *details: Message) -> status_pb2.Status:
    """An error as the suite's services make it."""
    status = status_pb2.Status(code=code, message=message)
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain="parley", metadata={"part": "test"}), *details):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _scripted(servicer: type, script: Script) -> Any:
    """A servicer of a generated type whose every method does what the script says."""

    def note(name: str, request: Any, context: Context) -> None:
        metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
        script.calls.setdefault(name, []).append(Call(request, {k: str(v) for k, v in metadata.items()}))

    def unary(name: str) -> Callable[[Any, Any, Context], Awaitable[Message]]:
        async def method(_self: Any, request: Any, context: Context) -> Message:
            note(name, request, context)
            if name not in script.unary:
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{name} is not scripted")
            return await script.unary[name](request, context)

        return method

    def stream(name: str) -> Callable[[Any, Any, Context], AsyncIterator[Message]]:
        async def method(_self: Any, request: Any, context: Context) -> AsyncIterator[Message]:
            note(name, request, context)
            async for message in script.streams[name](request, context):
                yield message

        return method

    names = [name for name in vars(servicer) if name[0].isupper()]
    methods = {name: stream(name) if name in _STREAMS else unary(name) for name in names}
    return type(f"Scripted{servicer.__name__}", (servicer,), methods)()


class Service:
    """One service of the suite: a server on a port of its own, with health."""

    def __init__(self, name: str, script: Script) -> None:
        self.name = name
        self.port = 0
        self._script = script
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()

    async def start(self) -> None:
        """Serves, again on the same port after a stop."""
        server = grpc.aio.server(options=list(OPTIONS.items()))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        for module, service in _SERVICERS[self.name]:
            servicer = _scripted(getattr(module, f"{service}Servicer"), self._script)
            getattr(module, f"add_{service}Servicer_to_server")(servicer, server)
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        self._server = server

    async def tell_health(self, *, is_serving: bool) -> None:
        """What the health check answers from now on."""
        response = health_pb2.HealthCheckResponse
        await self._health.set("", response.SERVING if is_serving else response.NOT_SERVING)

    async def stop(self) -> None:
        """Stops at once."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None


def key_set(key: Ed25519PrivateKey, key_id: str) -> auth_pb2.GetJwksResponse:
    """What auth publishes for a key."""
    public = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode().rstrip("=")
    web_key = auth_pb2.JsonWebKey(kty="OKP", crv="Ed25519", x=public, kid=key_id, alg="EdDSA", use="sig")
    return auth_pb2.GetJwksResponse(keys=[web_key])


@asynccontextmanager
async def running_services(script: Script) -> AsyncIterator[dict[str, Service]]:
    """The four services, up."""
    services = {name: Service(name, script) for name in ("auth", "chat", "memory", "sms")}
    for service in services.values():
        await service.start()
    yield services
    for service in services.values():
        await service.stop()


def endpoints_of(services: Mapping[str, Service]) -> dict[str, tuple[Address, ...]]:
    """Where the edge finds these services."""
    return {name: (Address("127.0.0.1", service.port),) for name, service in services.items()}
