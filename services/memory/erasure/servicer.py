"""The RPC that forgets for good: check, call, convert."""

import uuid
from datetime import UTC
from typing import Any, Literal

import grpc

from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from services.memory.conversation_memory import ConversationMemory
from services.memory.erasure.store import ErasureStore, Wanted
from services.runtime.calls import current_user_id

Context = grpc.aio.ServicerContext[Any, Any]


class ErasureRpcs(memory_pb2_grpc.MemoryServiceServicer):
    """DeleteMemories."""

    _memory: ConversationMemory
    _erasure: ErasureStore

    async def DeleteMemories(
        self, request: memory_pb2.DeleteMemoriesRequest, context: Context
    ) -> memory_pb2.DeleteMemoriesResponse:
        gone = await self._erasure.erase(current_user_id(), _wanted(request))
        # Redis away: they stay owed, and are unreachable meanwhile. See evictions.py.
        await self._memory.settle_all(gone.evictions)
        return memory_pb2.DeleteMemoriesResponse(deleted_facts=gone.facts, deleted_messages=gone.messages)


def _wanted(request: memory_pb2.DeleteMemoriesRequest) -> Wanted:
    before = request.before_time.ToDatetime(tzinfo=UTC) if request.HasField("before_time") else None
    conversation_id = str(uuid.UUID(request.conversation_id)) if request.conversation_id else None
    return Wanted(conversation_id, _kind(request.kind), before)


def _kind(kind: str) -> Literal["fact", "message"] | None:
    return "fact" if kind == "fact" else "message" if kind == "message" else None
