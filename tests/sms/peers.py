# ruff: noqa: ARG002 - the signatures are the contract's
"""The services that sms calls, as stand-ins on real gRPC servers: auth's tokens and numbers, and a chat that answers."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from parley.auth.v1 import auth_pb2, auth_pb2_grpc, user_pb2, user_pb2_grpc
from parley.chat.v1 import chat_pb2, chat_pb2_grpc, conversation_pb2, conversation_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.calls import current_caller, current_user_id
from services.runtime.errors import NotFound, ServiceError, Unavailable
from services.runtime.interceptors import CallInterceptor
from services.runtime.server import GrpcServer, Mount, access_rule
from tests.chat.peers import LIFETIME, TokensStandIn, keys_handler
from tests.issuer import Issuer

Context = grpc.aio.ServicerContext[Any, Any]
CREDENTIAL = "the-credential-of-sms"
Preferences = user_pb2.Preferences


class _Tokens(TokensStandIn):
    """As chat's, for another workload."""

    def __init__(self, issuer: Issuer) -> None:
        super().__init__(issuer)
        self._own_issuer = issuer

    async def IssueServiceToken(
        self, request: auth_pb2.IssueServiceTokenRequest, context: Context
    ) -> auth_pb2.IssueServiceTokenResponse:
        assert (request.workload, request.credential) == ("sms", CREDENTIAL)
        token = self._own_issuer.service_token("sms", audience=request.audience)
        return auth_pb2.IssueServiceTokenResponse(token=token, lifetime=LIFETIME)

    async def ExchangeForUser(
        self, request: auth_pb2.ExchangeForUserRequest, context: Context
    ) -> auth_pb2.ExchangeForUserResponse:
        assert current_caller().service == "sms"
        token = self._own_issuer.on_behalf_token(request.user_id, service="sms", audience=request.audience)
        return auth_pb2.ExchangeForUserResponse(token=token, lifetime=LIFETIME)


class NeverCalled:
    """Has every RPC, and refuses those that it was not given: nobody has any business with them."""

    def __getattr__(self, name: str) -> Any:
        if not name[0].isupper():
            raise AttributeError(name)

        async def refused(*_: Any) -> NoReturn:
            raise AssertionError(f"somebody calls {name}")

        return refused


@dataclass
class PeopleStandIn(NeverCalled):
    """Whose numbers are whose, and what they prefer; can be away, or hold its answers."""

    numbers: dict[str, str] = field(default_factory=dict)
    preferences: dict[str, Preferences] = field(default_factory=dict)
    asked: int = 0
    is_away: bool = False
    hold: asyncio.Event | None = None

    def clear(self) -> None:
        self.numbers.clear()
        self.preferences.clear()
        self.asked, self.is_away, self.hold = 0, False, None

    def add(self, phone_number: str, user_id: str | None = None, **preferences: Any) -> str:
        """A user who has verified this number; wants replies unless the preferences say otherwise."""
        found = user_id or str(uuid.uuid4())
        self.numbers[phone_number] = found
        self.preferences[found] = Preferences(user_id=found, **{"auto_reply_enabled": True, **preferences})
        return found

    async def FindUserByPhone(
        self, request: user_pb2.FindUserByPhoneRequest, context: Context
    ) -> user_pb2.FindUserByPhoneResponse:
        self.asked += 1
        if self.hold is not None:
            await self.hold.wait()
        if self.is_away:
            raise Unavailable("away", reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE)
        user_id = self.numbers.get(request.phone_number)
        if user_id is None:
            raise NotFound("nobody", reasons.ERROR_REASON_USER_NOT_FOUND)
        return user_pb2.FindUserByPhoneResponse(user_id=user_id, preferences=self.preferences[user_id])

    async def GetPreferences(self, request: user_pb2.GetPreferencesRequest, context: Context) -> Preferences:
        if self.is_away:
            raise Unavailable("away", reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE)
        return self.preferences.get(current_user_id(), Preferences())


@dataclass
class ChatStandIn(NeverCalled):
    """A chat that answers texts, once for each request id, and has turns; can be away, refuse, or hold its answers.

    As the real one, it does not try a failed turn again once another began after it (tests/chat/test_texts.py).
    """

    answers: dict[tuple[str, str], chat_pb2.Utterance] = field(default_factory=dict)
    latest: dict[str, str] = field(default_factory=dict)
    failed: dict[tuple[str, str], ServiceError] = field(default_factory=dict)
    asked: list[chat_pb2.ProcessUtteranceRequest] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    turns: dict[str, list[conversation_pb2.Turn]] = field(default_factory=dict)
    reads: int = 0
    reply: str | None = None
    error: ServiceError | None = None
    error_of: dict[str, ServiceError] = field(default_factory=dict)
    """Errors of texts that fail whatever the others do."""
    hold: asyncio.Event | None = None

    def clear(self) -> None:
        for kept in (self.answers, self.latest, self.failed, self.asked, self.users, self.turns, self.error_of):
            kept.clear()
        self.reads, self.reply, self.error, self.hold = 0, None, None, None

    async def ProcessUtterance(self, request: chat_pb2.ProcessUtteranceRequest, context: Context) -> chat_pb2.Utterance:
        caller = current_caller()
        assert (caller.service, request.channel) == ("sms", "sms")
        user_id = current_user_id()
        self.asked.append(request)
        self.users.append(user_id)
        if self.hold is not None:
            await self.hold.wait()
        named = (user_id, request.request_id)
        if named in self.failed and self.latest[user_id] != request.request_id:
            raise self.failed[named]
        self.latest[user_id] = request.request_id
        if error := self.error or self.error_of.get(request.text):
            self.failed[named] = error
            raise error
        made = chat_pb2.Utterance(
            id=str(uuid.uuid4()),
            conversation_id=str(uuid.uuid5(uuid.NAMESPACE_OID, user_id)),
            input_text=request.text,
            reply=f"You said: {request.text}" if self.reply is None else self.reply,
        )
        return self.answers.setdefault(named, made)

    async def ReadTurns(
        self, request: conversation_pb2.ReadTurnsRequest, context: Context
    ) -> conversation_pb2.ReadTurnsResponse:
        assert current_caller().service == "sms"
        self.reads += 1
        if self.error is not None:
            raise self.error
        turns = sorted(self.turns.get(current_user_id(), []), key=_place, reverse=True)
        if request.HasField("before_time"):
            before = (request.before_time.ToNanoseconds(), request.before_id)
            turns = [one for one in turns if _place(one) < before]
        return conversation_pb2.ReadTurnsResponse(turns=turns[: request.limit])


def _place(turn: conversation_pb2.Turn) -> tuple[int, str]:
    return turn.create_time.ToNanoseconds(), turn.id


def _access(*services: ServiceDescriptor) -> dict[str, Any]:
    return {f"/{service.full_name}/{method.name}": access_rule(method) for service in services for method in service.methods}


@asynccontextmanager
async def running_auth(issuer: Issuer, people: PeopleStandIn) -> AsyncIterator[str]:
    """Auth's stand-in behind the real interceptors; yields its target."""
    auth, users = auth_pb2.DESCRIPTOR.services_by_name, user_pb2.DESCRIPTOR.services_by_name
    access = _access(auth["AuthService"], auth["TokenService"], users["UserService"])
    interceptor = CallInterceptor(issuer.verifier("auth"), access, slow_call_seconds=60)
    server = grpc.aio.server(interceptors=[interceptor], options=(("grpc.so_reuseport", 0),))
    auth_pb2_grpc.add_TokenServiceServicer_to_server(_Tokens(issuer), server)
    user_pb2_grpc.add_UserServiceServicer_to_server(cast(Any, people), server)
    server.add_generic_rpc_handlers((keys_handler(issuer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"ipv4:127.0.0.1:{port}"
    await server.stop(0)


@asynccontextmanager
async def running_chat(issuer: Issuer, chat: ChatStandIn) -> AsyncIterator[str]:
    """Chat's stand-in behind the real interceptors; yields its target."""
    services: dict[str, tuple[Any, Any]] = {
        "ChatService": (chat_pb2, chat_pb2_grpc.add_ChatServiceServicer_to_server),
        "ConversationService": (conversation_pb2, conversation_pb2_grpc.add_ConversationServiceServicer_to_server),
    }
    mounts = [Mount(add, chat, module.DESCRIPTOR.services_by_name[name]) for name, (module, add) in services.items()]
    server = GrpcServer(address="127.0.0.1:0", mounts=mounts, verifier=issuer.verifier("chat"), slow_call_seconds=60)
    port = await server.start()
    yield f"ipv4:127.0.0.1:{port}"
    await server.stop(wait_seconds=0, drain_seconds=0)
