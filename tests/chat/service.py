"""Chat on real parts, in this process: its own database pool, model client, channels, and a gRPC server."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from sqlalchemy import event

from parley.chat.v1 import chat_pb2, chat_pb2_grpc, conversation_pb2, conversation_pb2_grpc, task_pb2_grpc
from services.chat.__main__ import chat_server, open_chat
from services.chat.generation.generations import Generations
from services.chat.settings import ChatSettings
from services.chat.tasks.feed import TaskFeed
from services.runtime.channels import open_channel
from services.runtime.database import open_database
from services.runtime.peers import ServiceTokens
from services.runtime.server import GrpcServer
from simulator.server import Running
from tests.chat.peers import WORKLOADS
from tests.issuer import Issuer, Metadata

TERMINAL = ("completed", "failed", "cancelled")
Request = chat_pb2.CompletionRequest


class User:
    """A signed-in user at one chat process (or at several, by `at`)."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata, user_id: str) -> None:
        self.id = user_id
        self.metadata = metadata
        self.chat = chat_pb2_grpc.ChatServiceStub(channel)
        self.conversations = conversation_pb2_grpc.ConversationServiceStub(channel)
        self.tasks = task_pb2_grpc.TaskServiceStub(channel)

    def at(self, other: "ChatProcess") -> "User":
        return User(other.channel, self.metadata, self.id)

    async def create(self, message: str = "", **fields: Any) -> chat_pb2.Completion:
        return await self.chat.CreateCompletion(Request(message=message, **fields), metadata=self.metadata, timeout=30)

    async def stream(self, message: str = "", **fields: Any) -> list[chat_pb2.CompletionEvent]:
        """Every event but heartbeats, checked: sequences without holes, `started` first, one terminal event, last."""
        return checked([one async for one in self.open_stream(message, **fields)])

    def open_stream(self, message: str = "", **fields: Any) -> Any:
        return self.chat.StreamCompletion(Request(message=message, **fields), metadata=self.metadata, timeout=30)

    async def messages(self, conversation_id: str) -> list[conversation_pb2.Message]:
        asked = conversation_pb2.ListMessagesRequest(conversation_id=conversation_id, page_size=200)
        return list((await self.conversations.ListMessages(asked, metadata=self.metadata, timeout=10)).messages)

    async def edit(self, message: conversation_pb2.Message, text: str, **fields: Any) -> list[chat_pb2.CompletionEvent]:
        return checked([one async for one in self.open_edit(message, text, **fields)])

    def open_edit(self, message: conversation_pb2.Message, text: str, **fields: Any) -> Any:
        asked = chat_pb2.EditMessageRequest(
            conversation_id=message.conversation_id, message_id=message.id, message=text, **fields
        )
        return self.chat.EditMessage(asked, metadata=self.metadata, timeout=30)

    async def regenerate(self, reply: conversation_pb2.Message, **fields: Any) -> list[chat_pb2.CompletionEvent]:
        return checked([one async for one in self.open_regenerate(reply, **fields)])

    def open_regenerate(self, reply: conversation_pb2.Message, **fields: Any) -> Any:
        asked = chat_pb2.RegenerateReplyRequest(conversation_id=reply.conversation_id, message_id=reply.id, **fields)
        return self.chat.RegenerateReply(asked, metadata=self.metadata, timeout=30)

    async def versions(self, conversation_id: str) -> list[conversation_pb2.Message]:
        asked = conversation_pb2.ListMessagesRequest(conversation_id=conversation_id, page_size=200, include_superseded=True)
        return list((await self.conversations.ListMessages(asked, metadata=self.metadata, timeout=10)).messages)

    async def delete(self, conversation_id: str) -> conversation_pb2.DeleteConversationResponse:
        asked = conversation_pb2.DeleteConversationRequest(conversation_id=conversation_id)
        return await self.conversations.DeleteConversation(asked, metadata=self.metadata, timeout=10)


def checked(events: Sequence[chat_pb2.CompletionEvent]) -> list[chat_pb2.CompletionEvent]:
    kinds = [one.WhichOneof("event") for one in events]
    assert all(one.sequence == 0 for one in events if one.WhichOneof("event") == "heartbeat")
    told = [one for one in events if one.WhichOneof("event") != "heartbeat"]
    assert [one.sequence for one in told] == list(range(1, len(told) + 1)), kinds
    assert told[0].WhichOneof("event") == "started", kinds
    assert [kind in TERMINAL for kind in kinds if kind != "heartbeat"] == [False] * (len(told) - 1) + [True], kinds
    return told


def text_of(events: Sequence[chat_pb2.CompletionEvent]) -> str:
    return "".join(one.text_delta.text for one in events)


@dataclass
class Refusal:
    code: grpc.StatusCode
    reason: str
    metadata: dict[str, str]
    retry_seconds: float | None
    fields: list[str]
    message: str


async def refusal(call: Awaitable[object]) -> Refusal:
    """The error that a call must end with, unpacked."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return unpacked(error)
    raise AssertionError("the call was answered")


def unpacked(error: grpc.aio.AioRpcError) -> Refusal:
    trailers = dict(error.trailing_metadata() or ())
    details = trailers.get("grpc-status-details-bin")
    assert isinstance(details, bytes), error
    info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    for detail in status_pb2.Status.FromString(details).details:
        for message in (info, retry, bad):
            detail.Unpack(message)
    seconds = retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None
    fields = [violation.field for violation in bad.field_violations]
    return Refusal(error.code(), info.reason, dict(info.metadata), seconds, fields, error.details() or "")


class ChatProcess:
    """One running chat."""

    def __init__(self, issuer: Issuer, server: GrpcServer, port: int, generations: Generations, task_feed: TaskFeed) -> None:
        self.server = server
        self.generations = generations
        self.task_feed = task_feed
        self.statements: list[str] = []
        self.target = f"ipv4:127.0.0.1:{port}"
        self.channel = grpc.aio.insecure_channel(self.target)
        self._issuer = issuer

    def user(self, user_id: str | None = None) -> User:
        found = user_id or str(uuid.uuid4())
        return User(self.channel, self._issuer.as_user(found), found)

    def admin(self) -> User:
        found = str(uuid.uuid4())
        token = self._issuer.user_token(found, roles=("user", "admin"))
        return User(self.channel, (("authorization", f"Bearer {token}"),), found)


@asynccontextmanager
async def running_chat(settings: ChatSettings, issuer: Issuer) -> AsyncIterator[ChatProcess]:
    async with AsyncExitStack() as parts:
        database = open_database(settings.database_url.get_secret_value(), pool_size=settings.database_pool_size)
        parts.push_async_callback(database.close)
        auth = open_channel(settings.auth_target, audience="auth", tokens=None, timeout_seconds=5)
        parts.push_async_callback(auth.close)
        tokens = ServiceTokens(auth, workload="chat", credential=WORKLOADS["chat"])
        chat = await open_chat(settings, parts, database=database, tokens=tokens)
        server = chat_server(settings, chat, issuer.verifier("chat"))
        process = ChatProcess(issuer, server, await server.start(), chat.generations, chat.task_feed)
        event.listen(
            database.engine.sync_engine,
            "before_cursor_execute",
            lambda _connection, _cursor, statement, *_rest: process.statements.append(statement),
        )
        database.on_driver_statement = process.statements.append
        try:
            yield process
        finally:
            await process.channel.close()
            await server.stop(wait_seconds=0, drain_seconds=0.2)


def asked_of_database(process: ChatProcess) -> list[str]:
    """Statements of calls: without whose they are, and without those of the standing duties, which come at any time."""
    duties = ("set_config", "unrecorded_turns", "generations", "procrastinate")
    return [one for one in process.statements if not any(word in one for word in duties)]


def asked_for_turns(process: ChatProcess) -> list[str]:
    """Statements of turns: without whose they are, and without those that look after what was left, at any time."""
    duties = ("set_config", "with dead as", "update unrecorded_turns", "delete from unrecorded_turns", "procrastinate")
    return [one for one in process.statements if not any(word in one for word in duties)]


async def eventually(condition: Callable[[], bool], *, within_seconds: float = 10) -> None:
    end = time.monotonic() + within_seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.02)


async def inputs(simulator: Running) -> list[list[tuple[str, str]]]:
    """What the provider was asked, request by request: role and text of each message."""
    asked = await simulator.control.requests("responses")
    return [[(one["role"], one["content"]) for one in request.body["input"]] for request in asked]


async def held(simulator: Running, count: int = 1) -> None:
    for _ in range(500):
        if (await simulator.control.status()).held >= count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("no reply is held")
