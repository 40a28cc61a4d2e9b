# ruff: noqa: ARG002 - the signatures are the contract's
"""The services that chat talks to, as stand-ins on real gRPC servers: auth's tokens, and a memory that remembers."""

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf import duration_pb2, timestamp_pb2

from parley.auth.v1 import auth_pb2, auth_pb2_grpc, user_pb2, user_pb2_grpc
from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.calls import current_caller
from services.runtime.errors import DeadlineExceeded, FieldViolation, NotFound, Unavailable, invalid_request
from services.runtime.identity import TokenVerifier
from services.runtime.server import GrpcServer, Mount
from tests.issuer import Issuer

Context = grpc.aio.ServicerContext[Any, Any]
LIFETIME = duration_pb2.Duration(seconds=300)
WORKLOADS = {"chat": "the-credential-of-chat", "memory": "the-credential-of-memory"}


class TokensStandIn(auth_pb2_grpc.TokenServiceServicer):
    """Service tokens and the feed of ended sessions, with the key of the tests' issuer."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer

    async def IssueServiceToken(
        self, request: auth_pb2.IssueServiceTokenRequest, context: Context
    ) -> auth_pb2.IssueServiceTokenResponse:
        assert request.credential == WORKLOADS[request.workload]
        token = self._issuer.service_token(request.workload, audience=request.audience)
        return auth_pb2.IssueServiceTokenResponse(token=token, lifetime=LIFETIME)

    async def ExchangeForUser(
        self, request: auth_pb2.ExchangeForUserRequest, context: Context
    ) -> auth_pb2.ExchangeForUserResponse:
        uuid.UUID(request.user_id)
        token = self._issuer.on_behalf_token(request.user_id, service="chat", audience=request.audience)
        return auth_pb2.ExchangeForUserResponse(token=token, lifetime=LIFETIME)

    async def WatchEndedSessions(
        self, request: auth_pb2.WatchEndedSessionsRequest, context: Context
    ) -> AsyncIterator[auth_pb2.WatchEndedSessionsResponse]:
        while True:
            yield auth_pb2.WatchEndedSessionsResponse(session_ids=sorted(self._issuer.ended))
            await asyncio.sleep(0.5)


@dataclass
class PreferencesStandIn(user_pb2_grpc.UserServiceServicer):
    """What users prefer, by their ids; can be slow or away. Who asks must be the user, by chat."""

    known: dict[str, user_pb2.Preferences] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    verifier: TokenVerifier | None = None
    is_away: bool = False
    delay_seconds: float = 0.0

    def clear(self) -> None:
        self.known.clear()
        self.asked.clear()
        self.is_away, self.delay_seconds = False, 0.0

    async def GetPreferences(self, request: user_pb2.GetPreferencesRequest, context: Context) -> user_pb2.Preferences:
        assert self.verifier is not None
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        caller = await self.verifier.verify(metadata)
        assert (request.user_id, caller.service) == ("me", "chat")
        self.asked.append(str(caller.user_id))
        await asyncio.sleep(self.delay_seconds)
        if self.is_away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        return self.known.get(str(caller.user_id), user_pb2.Preferences())

    async def _refused(self, request: Any, context: Any) -> NoReturn:
        raise AssertionError(f"chat calls auth with a {type(request).__name__}")

    CreatePreferences = UpdatePreferences = DeletePreferences = FindUserByPhone = _refused
    CreateUser = CreatePasswordToken = ListUsers = GetUser = UpdateUser = DeleteUser = GetDeletion = _refused
    ListAuditEvents = _refused


def keys_handler(issuer: Issuer) -> grpc.GenericRpcHandler:
    """The one method of AuthService that services call."""

    async def get_jwks(_request: auth_pb2.GetJwksRequest, _context: Context) -> auth_pb2.GetJwksResponse:
        x = base64.urlsafe_b64encode(issuer.key.public_key().public_bytes_raw()).decode().rstrip("=")
        key = auth_pb2.JsonWebKey(kty="OKP", crv="Ed25519", x=x, kid=issuer.key_id, alg="EdDSA", use="sig")
        return auth_pb2.GetJwksResponse(keys=[key])

    handler = grpc.unary_unary_rpc_method_handler(
        get_jwks, auth_pb2.GetJwksRequest.FromString, auth_pb2.GetJwksResponse.SerializeToString
    )
    return grpc.method_handlers_generic_handler("parley.auth.v1.AuthService", {"GetJwks": handler})


@asynccontextmanager
async def running_auth(issuer: Issuer, preferences: PreferencesStandIn | None = None) -> AsyncIterator[str]:
    """Auth's stand-in; yields its target. Who wants tokens is not checked: what it gives is good for tests only."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    users = preferences or PreferencesStandIn()
    users.verifier = issuer.verifier("auth")
    user_pb2_grpc.add_UserServiceServicer_to_server(users, server)
    auth_pb2_grpc.add_TokenServiceServicer_to_server(TokensStandIn(issuer), server)
    server.add_generic_rpc_handlers((keys_handler(issuer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"ipv4:127.0.0.1:{port}"
    await server.stop(0)


class _NeverCalled(memory_pb2_grpc.MemoryServiceServicer):
    """The RPCs of memory that chat has no business with."""

    async def _refused(self, request: Any, context: Any) -> NoReturn:
        raise AssertionError(f"chat calls memory with a {type(request).__name__}")

    async def _refused_stream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        raise AssertionError(f"chat calls memory with a {type(request).__name__}")
        yield

    GetSummary = DeleteMemories = ListMemories = GetMemory = UpdateMemory = _refused
    ListMemoryHistory = ImportMemories = PurgeUser = _refused
    ExportMemories = _refused_stream


@dataclass
class MemoryStandIn(_NeverCalled):
    """A memory that remembers by the real one's rule (services/memory/turns.py), and can be slow, away, or behind.

    Of a message the greatest revision stays; of two in one place the later written; what was forgotten, with its revision in
    `gone`, comes back only with a greater one.
    """

    turns: dict[str, dict[int, memory_pb2.ContextMessage]] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)
    gone: dict[str, int] = field(default_factory=dict)
    ends_forgotten: list[tuple[str, int]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    is_away: bool = False
    delay_seconds: float = 0.0
    refuses_turns: bool = False
    record_calls: int = 0
    invalid: set[str] = field(default_factory=set)
    busy: set[str] = field(default_factory=set)
    facts: dict[str, tuple[str, memory_pb2.Memory]] = field(default_factory=dict)
    added: list[memory_pb2.AddMemoryRequest] = field(default_factory=list)
    queries: list[memory_pb2.AssembleContextRequest] = field(default_factory=list)
    person_summary: str = ""
    conversation_summary: str = ""
    degraded: tuple[str, ...] = ()
    recalls_messages_of: str = ""

    def clear(self) -> None:
        for known in (self.turns, self.users, self.forgotten, self.gone, self.ends_forgotten, self.asked):
            known.clear()
        for told in (self.invalid, self.busy, self.facts, self.added, self.queries):
            told.clear()
        self.person_summary = self.conversation_summary = self.recalls_messages_of = ""
        self.degraded = ()
        self.record_calls = 0
        self.is_away = self.refuses_turns = False
        self.delay_seconds = 0.0

    async def _answer(self) -> None:
        await asyncio.sleep(self.delay_seconds)
        if self.is_away:
            raise Unavailable("Away.", reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, metadata={"dependency": "test"})

    async def AssembleContext(
        self, request: memory_pb2.AssembleContextRequest, context: Context
    ) -> memory_pb2.AssembleContextResponse:
        self.asked.append(request.conversation_id)
        await self._answer()
        assert current_caller().service == "chat"
        known = self.turns.get(request.conversation_id, {})
        messages = [known[sequence] for sequence in sorted(known) if known[sequence].text]
        last = 0
        while last + 1 in known:
            last += 1
        answer = memory_pb2.AssembleContextResponse(messages=messages, last_sequence=last)
        self.queries.append(request)
        if request.query:
            answer.memories.extend(self._recalled(str(current_caller().user_id)))
            answer.person_summary, answer.conversation_summary = self.person_summary, self.conversation_summary
            answer.degraded.extend(self.degraded)
        return answer

    def know(self, user_id: str, text: str, **fields: Any) -> str:
        """Has a fact about a user remembered; its id."""
        record_time = timestamp_pb2.Timestamp(seconds=1_777_000_000 + len(self.facts))
        plain = {"id": str(uuid.uuid4()), "kind": "fact", "text": text, "stamped_by": "user", "record_time": record_time}
        fact = memory_pb2.Memory(**{**plain, **fields})
        self.facts[fact.id] = (user_id, fact)
        return fact.id

    def _recalled(self, user_id: str) -> list[memory_pb2.Memory]:
        """Every fact of the user; and the messages of one conversation, as if they were recalled too."""
        said = self.turns.get(self.recalls_messages_of, {}).values()
        messages = [
            memory_pb2.Memory(
                id=one.message_id, kind="message", text=one.text, stamped_by=one.role, role=one.role,
                conversation_id=self.recalls_messages_of, sequence=one.sequence, record_time=one.create_time,
            )
            for one in said
        ]  # fmt: skip
        return [*messages, *(fact for owner, fact in self.facts.values() if owner == user_id)]

    async def AddMemory(self, request: memory_pb2.AddMemoryRequest, context: Context) -> memory_pb2.Memory:
        """The same request id is the same fact, and so are the same words."""
        await self._answer()
        caller = current_caller()
        assert caller.service == "chat"
        self.added.append(request)
        for owner, fact in self.facts.values():
            if owner == str(caller.user_id) and (fact.id == request.request_id or fact.text == request.text):
                return fact
        told = {name: getattr(request, name) for name in ("text", "subject", "attribute", "stamped_by")}
        fact_id = self.know(str(caller.user_id), sources=[request.source], id=request.request_id, **told)
        return self.facts[fact_id][1]

    async def SearchMemories(
        self, request: memory_pb2.SearchMemoriesRequest, context: Context
    ) -> memory_pb2.SearchMemoriesResponse:
        """The user's facts that share a word with the query."""
        await self._answer()
        words = set(request.query.lower().split())
        found = [
            memory_pb2.FoundMemory(memory=fact, score=1, found_by=["words"])
            for owner, fact in self.facts.values()
            if owner == str(current_caller().user_id) and words & set(fact.text.lower().split())
        ]
        return memory_pb2.SearchMemoriesResponse(memories=found[: request.limit])

    async def DeleteMemory(
        self, request: memory_pb2.DeleteMemoryRequest, context: Context
    ) -> memory_pb2.DeleteMemoryResponse:
        await self._answer()
        owner, _ = self.facts.get(request.memory_id, ("", None))
        if owner != str(current_caller().user_id):
            raise NotFound("There is no such memory.", reasons.ERROR_REASON_MEMORY_NOT_FOUND, metadata={"memory_id": "x"})
        del self.facts[request.memory_id]
        return memory_pb2.DeleteMemoryResponse()

    async def RecordTurn(self, request: memory_pb2.RecordTurnRequest, context: Context) -> memory_pb2.RecordTurnResponse:
        await self._answer()
        if self.refuses_turns:
            raise Unavailable("Not now.", reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, metadata={"dependency": "test"})
        caller = current_caller()
        assert caller.service == "chat"
        self._remember(str(caller.user_id), request.conversation_id, request.messages)
        return memory_pb2.RecordTurnResponse(last_sequence=max(self.turns[request.conversation_id]))

    async def RecordTurns(self, request: memory_pb2.RecordTurnsRequest, context: Context) -> memory_pb2.RecordTurnsResponse:
        self.record_calls += 1
        await self._answer()
        if wrong := self.invalid & {told.conversation_id for told in request.conversations}:
            raise invalid_request([FieldViolation("conversations", f"{len(wrong)} of them break a rule")])
        if self.refuses_turns:
            raise Unavailable("Not now.", reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, metadata={"dependency": "test"})
        caller = current_caller()
        assert (caller.service, caller.user_id) == ("chat", None)
        left_out = self.busy & {told.conversation_id for told in request.conversations}
        if left_out and not request.skip_busy:
            raise DeadlineExceeded("It waited in vain.", reasons.ERROR_REASON_DEADLINE_PASSED)
        for told in request.conversations:
            if told.conversation_id not in left_out:
                self._remember(told.user_id, told.conversation_id, told.messages)
        return memory_pb2.RecordTurnsResponse(busy_conversation_ids=left_out)

    def _remember(self, user_id: str, conversation_id: str, messages: Iterable[memory_pb2.ContextMessage]) -> None:
        self.users[conversation_id] = user_id
        known = self.turns.setdefault(conversation_id, {})
        for message in messages:
            if message.revision <= self.gone.get(message.message_id, -1):
                continue
            old = known.get(message.sequence)
            if old is None or (old.message_id == message.message_id and old.revision <= message.revision):
                known[message.sequence] = message
            elif old.message_id != message.message_id:
                displaced, kept = sorted((old, message), key=_age)
                self.gone[displaced.message_id] = displaced.revision
                known[message.sequence] = kept

    async def InvalidateContext(
        self, request: memory_pb2.InvalidateContextRequest, context: Context
    ) -> memory_pb2.InvalidateContextResponse:
        await self._answer()
        if not request.from_sequence:
            self.forgotten.add(request.conversation_id)
            gone = self.turns.pop(request.conversation_id, {})
            return memory_pb2.InvalidateContextResponse(forgotten_messages=len(gone))
        self.ends_forgotten.append((request.conversation_id, request.from_sequence))
        known = self.turns.get(request.conversation_id, {})
        end = [sequence for sequence in known if sequence >= request.from_sequence]
        for sequence in end:
            message = known.pop(sequence)
            self.gone[message.message_id] = max(message.revision, self.gone.get(message.message_id, -1))
        return memory_pb2.InvalidateContextResponse(forgotten_messages=len(end))


def _age(message: memory_pb2.ContextMessage) -> tuple[int, str]:
    return message.create_time.ToNanoseconds(), message.message_id


@asynccontextmanager
async def running_memory(memory: MemoryStandIn, issuer: Issuer) -> AsyncIterator[str]:
    """Memory's stand-in behind the real interceptors; yields its target."""
    service = memory_pb2.DESCRIPTOR.services_by_name["MemoryService"]
    mount = Mount(memory_pb2_grpc.add_MemoryServiceServicer_to_server, memory, service)
    server = GrpcServer(address="127.0.0.1:0", mounts=[mount], verifier=issuer.verifier("memory"))
    port = await server.start()
    yield f"ipv4:127.0.0.1:{port}"
    await server.stop(wait_seconds=0, drain_seconds=0)
