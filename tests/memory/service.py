"""A running memory service, called as chat calls it."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from services.memory.__main__ import open_memory
from services.memory.conversation_memory import ConversationMemory
from services.memory.settings import MemorySettings
from services.memory.upkeep.runner import Upkeep
from services.runtime.duties import beside
from services.runtime.server import GrpcServer
from tests.issuer import Issuer, Metadata
from tests.memory.statements import hear

BEGAN = 1_700_000_000


def message(
    sequence: int, text: str = "words", *, message_id: str | None = None, revision: int = 0, seconds: int | None = None
) -> memory_pb2.ContextMessage:
    """A message of a conversation: the user's at odd places, the assistant's at even ones."""
    return memory_pb2.ContextMessage(
        message_id=message_id or str(uuid.uuid4()),
        sequence=sequence,
        role="user" if sequence % 2 else "assistant",
        text=text,
        revision=revision,
        create_time=Timestamp(seconds=BEGAN + (sequence if seconds is None else seconds)),
    )


def turn(number: int, text: str = "words") -> list[memory_pb2.ContextMessage]:
    """The two messages of a conversation's turn, the first being 1."""
    return [message(2 * number - 1, f"{text} {2 * number - 1}"), message(2 * number, f"{text} {2 * number}")]


def repeatable(seed: int) -> random.Random:
    """Chance that is the same in every run."""
    return random.Random(seed)  # noqa: S311 - nothing here is secret


def new_id() -> str:
    return str(uuid.uuid4())


@dataclass
class MemoryService:
    """The service, its stub, and one user on whose behalf chat calls."""

    issuer: Issuer
    stub: memory_pb2_grpc.MemoryServiceStub
    memory: ConversationMemory
    upkeep: Upkeep
    user_id: str = field(default_factory=new_id)

    async def record(
        self, conversation_id: str, messages: Sequence[memory_pb2.ContextMessage], *, user_id: str | None = None
    ) -> int:
        answer = await self.stub.RecordTurn(
            memory_pb2.RecordTurnRequest(conversation_id=conversation_id, messages=messages),
            metadata=self.as_chat(user_id),
            timeout=10,
        )
        return answer.last_sequence

    async def assemble(
        self, conversation_id: str, *, budget: int = 0, user_id: str | None = None
    ) -> memory_pb2.AssembleContextResponse:
        return await self.stub.AssembleContext(
            memory_pb2.AssembleContextRequest(conversation_id=conversation_id, token_budget=budget),
            metadata=self.as_chat(user_id),
            timeout=10,
        )

    async def texts(self, conversation_id: str, *, budget: int = 0, user_id: str | None = None) -> list[str]:
        answer = await self.assemble(conversation_id, budget=budget, user_id=user_id)
        return [one.text for one in answer.messages]

    async def forget(self, conversation_id: str, from_sequence: int = 0, *, user_id: str | None = None) -> int:
        answer = await self.stub.InvalidateContext(
            memory_pb2.InvalidateContextRequest(conversation_id=conversation_id, from_sequence=from_sequence),
            metadata=self.as_chat(user_id),
            timeout=10,
        )
        return answer.forgotten_messages

    async def summary(self, conversation_id: str = "", *, user_id: str | None = None) -> memory_pb2.Summary:
        return await self.stub.GetSummary(
            memory_pb2.GetSummaryRequest(conversation_id=conversation_id), metadata=self.as_user(user_id), timeout=10
        )

    async def summarized(self, conversation_id: str = "", *, holding: str = "", user_id: str | None = None) -> str:
        """The summary, once there is one that holds these words."""
        async for _ in eventually(10):
            self.upkeep.look()
            found = await self.summary(conversation_id, user_id=user_id)
            if found.text and holding in found.text:
                break
        return found.text

    async def add_memory(
        self, text: str, *, user_id: str | None = None, metadata: Metadata | None = None, **fields: Any
    ) -> memory_pb2.Memory:
        """A fact that the user states; with other metadata, that a service was told."""
        return await self.stub.AddMemory(
            memory_pb2.AddMemoryRequest(text=text, **fields), metadata=metadata or self.as_user(user_id), timeout=10
        )

    async def memories(self, *, user_id: str | None = None, **fields: Any) -> list[memory_pb2.Memory]:
        """The first page of facts."""
        request = memory_pb2.ListMemoriesRequest(**fields)
        return list((await self.stub.ListMemories(request, metadata=self.as_user(user_id), timeout=10)).memories)

    async def update_memory(
        self, memory_id: str, *, mask: Sequence[str] | None = None, metadata: Metadata | None = None, **fields: Any
    ) -> memory_pb2.Memory:
        request = memory_pb2.UpdateMemoryRequest(memory_id=memory_id, **fields)
        if mask is not None:
            request.update_mask.CopyFrom(FieldMask(paths=mask))
        return await self.stub.UpdateMemory(request, metadata=metadata or self.as_user(), timeout=10)

    async def get_memory(self, memory_id: str, *, user_id: str | None = None) -> memory_pb2.Memory:
        request = memory_pb2.GetMemoryRequest(memory_id=memory_id)
        return await self.stub.GetMemory(request, metadata=self.as_user(user_id), timeout=10)

    async def delete_memory(self, memory_id: str, *, user_id: str | None = None) -> None:
        request = memory_pb2.DeleteMemoryRequest(memory_id=memory_id)
        await self.stub.DeleteMemory(request, metadata=self.as_user(user_id), timeout=10)

    async def history(self, memory_id: str, *, user_id: str | None = None, **fields: Any) -> list[memory_pb2.Memory]:
        """The first page of earlier versions."""
        request = memory_pb2.ListMemoryHistoryRequest(memory_id=memory_id, **fields)
        return list((await self.stub.ListMemoryHistory(request, metadata=self.as_user(user_id), timeout=10)).memories)

    async def search(self, query: str, *, user_id: str | None = None, **fields: Any) -> memory_pb2.SearchMemoriesResponse:
        request = memory_pb2.SearchMemoriesRequest(query=query, **fields)
        return await self.stub.SearchMemories(request, metadata=self.as_user(user_id), timeout=10)

    async def found(self, query: str, *, user_id: str | None = None, **fields: Any) -> list[str]:
        """The texts of what a search finds, the best first."""
        answer = await self.search(query, user_id=user_id, **fields)
        return [one.memory.text for one in answer.memories]

    def as_user(self, user_id: str | None = None) -> tuple[tuple[str, str], ...]:
        return self.issuer.as_user(user_id or self.user_id)

    def as_chat(self, user_id: str | None = None) -> tuple[tuple[str, str], ...]:
        return self.issuer.as_service("chat", audience="memory", user_id=user_id or self.user_id)


@asynccontextmanager
async def running_memory(settings: MemorySettings, issuer: Issuer) -> AsyncIterator[MemoryService]:
    async with AsyncExitStack() as parts:
        memory = await open_memory(settings, parts)
        memory.conversations._store._database.on_driver_statement = hear
        await parts.enter_async_context(beside(*memory.duties))
        server = GrpcServer(address=settings.listen_address, mounts=[memory.mount], verifier=issuer.verifier("memory"))
        port = await server.start()
        parts.push_async_callback(server.stop, wait_seconds=0, drain_seconds=1)
        channel = await parts.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        yield MemoryService(issuer, memory_pb2_grpc.MemoryServiceStub(channel), memory.conversations, memory.upkeep)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason of a refused call, from its details."""
    return next(
        info.reason for info in _details(error, error_details_pb2.ErrorInfo) if isinstance(info, error_details_pb2.ErrorInfo)
    )


def fields_of(error: grpc.aio.AioRpcError) -> set[str]:
    """The fields that a refused call says are wrong."""
    return {
        violation.field
        for bad in _details(error, error_details_pb2.BadRequest)
        if isinstance(bad, error_details_pb2.BadRequest)
        for violation in bad.field_violations
    }


def _details(
    error: grpc.aio.AioRpcError, kind: type[error_details_pb2.ErrorInfo | error_details_pb2.BadRequest]
) -> list[error_details_pb2.ErrorInfo | error_details_pb2.BadRequest]:
    raw = next(value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin")
    assert isinstance(raw, bytes)
    found = []
    for detail in status_pb2.Status.FromString(raw).details:
        one = kind()
        if detail.Unpack(one):
            found.append(one)
    return found


async def eventually(seconds: float = 5.0) -> AsyncIterator[None]:
    """Rounds of waiting, for what happens soon; ends with a failure when it does not."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        yield
        await asyncio.sleep(0.02)
    raise AssertionError(f"did not happen within {seconds} s")
