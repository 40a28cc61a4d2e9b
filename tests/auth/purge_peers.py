# ruff: noqa: ARG002 - the signatures are the contract's
"""Chat, memory and sms as auth asks them to delete users: stand-ins on real gRPC servers that verify who asks."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from parley.chat.v1 import chat_pb2, chat_pb2_grpc
from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from parley.sms.v1 import sms_pb2, sms_pb2_grpc
from services.auth.__main__ import Assembly
from services.runtime.errors import ServiceError
from services.runtime.identity import TokenVerifier
from services.runtime.purging import require_auth
from services.runtime.server import GrpcServer, Mount

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class Purger:
    """One service: whom it was asked to delete, and what it answers; `refusals` are used up first.

    `losses` are what is answered in the place of a code that was sent.
    """

    asked: list[str] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)
    refusals: list[ServiceError] = field(default_factory=list)
    codes: list[sms_pb2.SendVerificationCodeRequest] = field(default_factory=list)
    losses: list[ServiceError] = field(default_factory=list)
    is_silent: bool = False

    async def purge(self, user_id: str) -> None:
        require_auth()
        self.asked.append(user_id)
        if self.is_silent:
            await asyncio.sleep(3600)
        if self.refusals:
            raise self.refusals.pop(0)
        self.confirmed.append(user_id)

    async def send(self, request: sms_pb2.SendVerificationCodeRequest) -> None:
        require_auth()
        if self.refusals:
            raise self.refusals.pop(0)
        self.codes.append(request)
        if self.losses:
            raise self.losses.pop(0)


class _Unasked:
    """Refuses what auth never asks for: a server wants every method of its contract."""

    def __init__(self, purger: Purger) -> None:
        self._purger = purger

    def __getattr__(self, name: str) -> Any:
        async def unused(_request: Any, _context: Any) -> Any:
            raise AssertionError(f"{name} was not expected")

        if name.startswith("_"):
            raise AttributeError(name)
        return unused


class ChatPurger(_Unasked):
    """PurgeUser of chat."""

    async def PurgeUser(self, request: chat_pb2.PurgeUserRequest, context: Context) -> chat_pb2.PurgeUserResponse:
        await self._purger.purge(request.user_id)
        return chat_pb2.PurgeUserResponse()


class MemoryPurger(_Unasked):
    """PurgeUser of memory."""

    async def PurgeUser(self, request: memory_pb2.PurgeUserRequest, context: Context) -> memory_pb2.PurgeUserResponse:
        await self._purger.purge(request.user_id)
        return memory_pb2.PurgeUserResponse()


class SmsPurger(_Unasked):
    """PurgeUser and SendVerificationCode of sms."""

    async def PurgeUser(self, request: sms_pb2.PurgeUserRequest, context: Context) -> sms_pb2.PurgeUserResponse:
        await self._purger.purge(request.user_id)
        return sms_pb2.PurgeUserResponse()

    async def SendVerificationCode(
        self, request: sms_pb2.SendVerificationCodeRequest, context: Context
    ) -> sms_pb2.SendVerificationCodeResponse:
        await self._purger.send(request)
        return sms_pb2.SendVerificationCodeResponse()


@dataclass
class Peers:
    """The stand-ins, and where they listen."""

    purgers: Mapping[str, Purger]
    ports: dict[str, int] = field(default_factory=dict)

    def settings(self, *names: str) -> dict[str, Any]:
        """The settings of auth that name these services."""
        return {f"{name}_target": f"ipv4:127.0.0.1:{self.ports[name]}" for name in names}


class LateKeys:
    """The keys of an auth that starts after those who trust it: the KeySource and the EndedSessions of its peers."""

    def __init__(self) -> None:
        self._auth: Assembly | None = None
        self._last: Mapping[str, Ed25519PublicKey] = {}

    @asynccontextmanager
    async def of(self, auth: Assembly) -> AsyncIterator[None]:
        """Its keys; after the block the last ones, for asking one that has stopped would open its database again."""
        self._auth = auth
        try:
            yield
        finally:
            self._last = await auth.keys.public_keys()
            self._auth = None

    async def public_keys(self) -> Mapping[str, Ed25519PublicKey]:
        return await self._auth.keys.public_keys() if self._auth is not None else self._last

    def is_ended(self, session_id: str) -> bool:
        return self._auth is not None and self._auth.ended.is_ended(session_id)

    def is_current(self) -> bool:
        return self._auth is not None or bool(self._last)


@asynccontextmanager
async def running_peers(keys: LateKeys) -> AsyncIterator[Peers]:
    """The three services, trusting these keys, until the block ends."""
    purgers = {name: Purger() for name in ("chat", "memory", "sms")}
    mounts: dict[str, tuple[Any, type[_Unasked], Any, str]] = {
        "chat": (chat_pb2_grpc.add_ChatServiceServicer_to_server, ChatPurger, chat_pb2.DESCRIPTOR, "ChatService"),
        "memory": (
            memory_pb2_grpc.add_MemoryServiceServicer_to_server,
            MemoryPurger,
            memory_pb2.DESCRIPTOR,
            "MemoryService",
        ),
        "sms": (sms_pb2_grpc.add_SmsServiceServicer_to_server, SmsPurger, sms_pb2.DESCRIPTOR, "SmsService"),
    }
    peers = Peers(purgers)
    async with AsyncExitStack() as stack:
        for name, (add, made, file, service) in mounts.items():
            mount = Mount(add, made(purgers[name]), file.services_by_name[service])
            server = GrpcServer(
                address="127.0.0.1:0", mounts=[mount], verifier=TokenVerifier(audience=name, keys=keys, ended=keys)
            )
            peers.ports[name] = await server.start()
            stack.push_async_callback(server.stop, wait_seconds=0, drain_seconds=0)
        yield peers
