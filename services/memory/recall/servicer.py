"""SearchMemories over gRPC: check, call, convert."""

import uuid
from typing import Any

import grpc

from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from services.memory.recall.conversion import memory_of_found
from services.memory.recall.search import Found, Recall
from services.runtime.calls import current_user_id
from services.runtime.fairness import FairGate

Context = grpc.aio.ServicerContext[Any, Any]


class RecallRpcs(memory_pb2_grpc.MemoryServiceServicer):
    """SearchMemories, for the user on whose behalf the call comes.

    One search of a user at a time: a user who searches much waits behind himself, and what turns recall goes before.
    """

    _recall: Recall
    _search_gate: FairGate

    async def SearchMemories(
        self,
        request: memory_pb2.SearchMemoriesRequest,
        context: Context,
    ) -> memory_pb2.SearchMemoriesResponse:
        user_id = current_user_id()
        async with self._search_gate.passed(user_id):
            result = await self._recall.search(
                user_id,
                request.query,
                limit=request.limit,
                kind=request.kind or None,
                conversation_id=str(uuid.UUID(request.conversation_id)) if request.conversation_id else None,
                include_superseded=request.include_superseded if request.HasField("include_superseded") else None,
            )
        memories = [_found_memory(found) for found in result.found]
        return memory_pb2.SearchMemoriesResponse(memories=memories, degraded=result.degraded)


def _found_memory(found: Found) -> memory_pb2.FoundMemory:
    return memory_pb2.FoundMemory(memory=memory_of_found(found), score=found.score, found_by=found.found_by)
