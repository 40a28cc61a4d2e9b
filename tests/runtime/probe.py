"""A service of its own for the tests of the runtime, compiled from probe.proto into a descriptor pool of its own."""

import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import google.api
import grpc
import grpc_tools
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc

from services.runtime.calls import current_call
from services.runtime.server import GrpcServer, Mount
from tests.issuer import Issuer, Metadata

HERE = Path(__file__).parent
INCLUDES = (
    HERE,
    HERE.parents[1] / "protos",
    Path(next(iter(google.api.__path__))).parents[1],
    Path(next(iter(grpc_tools.__path__))) / "_proto",
)
UNARY = ("ForAnybody", "ForUsers", "ForAdmins", "ForServices", "ForWorkloads")
Context = Any
Answer = Callable[[Any, Context], Awaitable[Message]]
Follow = Callable[[Any, Context], AsyncGenerator[Message, None]]


@cache
def pool() -> DescriptorPool:
    """The probe's own pool: nothing of it reaches the descriptors of the contract."""
    with tempfile.NamedTemporaryFile(suffix=".binpb") as file:
        arguments = [f"-I{folder}" for folder in INCLUDES]
        code = protoc.main(["protoc", *arguments, "--include_imports", f"--descriptor_set_out={file.name}", "probe.proto"])
        assert code == 0
        files = descriptor_pb2.FileDescriptorSet.FromString(Path(file.name).read_bytes()).file
    made = DescriptorPool()
    for one in files:
        made.Add(one)
    return made


def service(name: str = "ProbeService") -> ServiceDescriptor:
    return pool().FindServiceByName(f"probe.v1.{name}")


def message(name: str) -> Any:
    """The class of a message of probe.proto."""
    return GetMessageClass(pool().FindMessageTypeByName(f"probe.v1.{name}"))


def request(**fields: Any) -> Any:
    return message("ProbeRequest")(**fields)


def reply(**fields: Any) -> Any:
    return message("ProbeReply")(**fields)


class Probe:
    """The servicer: what it does is given by each test."""

    def __init__(self, answer: Answer | None = None, follow: Follow | None = None) -> None:
        self.answer: Answer = answer or _echo
        self.follow: Follow = follow or _echo_stream

    async def ForAnybody(self, request: Any, context: Context) -> Message:
        return await self.answer(request, context)

    ForUsers = ForAdmins = ForServices = ForWorkloads = ForAnybody

    async def Follow(self, request: Any, context: Context) -> AsyncIterator[Message]:
        async with aclosing(self.follow(request, context)) as messages:
            async for one in messages:
                yield one


async def _echo(request: Any, _context: Context) -> Message:
    return reply(text=request.text)  # type: ignore[no-any-return]  # the class is made at run time


async def _echo_stream(request: Any, _context: Context) -> AsyncGenerator[Message, None]:
    for number in range(3):
        yield reply(text=request.text, number=number)


def add(servicer: Any, server: grpc.aio.Server, descriptor: ServiceDescriptor | None = None) -> None:
    """What the generated `add_ProbeServiceServicer_to_server` would do."""
    descriptor = descriptor or service()
    handlers = {}
    for method in descriptor.methods:
        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        handlers[method.name] = make(
            getattr(servicer, method.name),
            request_deserializer=message("ProbeRequest").FromString,
            response_serializer=message("ProbeReply").SerializeToString,
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(descriptor.full_name, handlers),))


@dataclass(frozen=True)
class Client:
    """Calls the probe."""

    channel: grpc.aio.Channel
    issuer: Issuer
    port: int

    def call(self, method: str, request: Any, metadata: Metadata = (), timeout: float | None = 10) -> Any:
        stub = self.channel.unary_unary(
            f"/probe.v1.ProbeService/{method}",
            request_serializer=_serialized,
            response_deserializer=message("ProbeReply").FromString,
        )
        return stub(request, metadata=metadata, timeout=timeout)

    def follow(self, request: Any, metadata: Metadata = (), timeout: float | None = 10) -> Any:
        stub = self.channel.unary_stream(
            "/probe.v1.ProbeService/Follow",
            request_serializer=_serialized,
            response_deserializer=message("ProbeReply").FromString,
        )
        return stub(request, metadata=metadata, timeout=timeout)


def _serialized(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


def probe_server(probe: Probe, issuer: Issuer, *, audience: str = "probe", **options: Any) -> GrpcServer:
    return GrpcServer(
        address="127.0.0.1:0",
        mounts=[Mount(add, probe, service())],
        verifier=issuer.verifier(audience),
        **options,
    )


async def caller_as_reply(_request: Any, _context: Context) -> Message:
    """Answers with who calls, as the handler sees it."""
    caller = current_call().caller
    return reply(text=f"{caller.user_id}/{caller.service}/{','.join(sorted(caller.roles))}")  # type: ignore[no-any-return]


def raising(error: BaseException) -> Probe:
    """A probe whose every call fails; its stream after one message."""

    async def answer(_request: Any, _context: Any) -> Any:
        raise error

    async def follow(_request: Any, _context: Any) -> AsyncGenerator[Any, None]:
        yield reply(number=1)
        raise error

    return Probe(answer, follow)
