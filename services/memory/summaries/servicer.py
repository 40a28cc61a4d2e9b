"""GetSummary over gRPC: check, read, convert."""

import uuid
from typing import Any

import grpc

from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from services.memory.messages import timestamp
from services.memory.summaries.store import SummaryStore
from services.runtime.calls import current_user_id

Context = grpc.aio.ServicerContext[Any, Any]


class SummaryRpcs(memory_pb2_grpc.MemoryServiceServicer):
    """GetSummary."""

    _summaries: SummaryStore

    async def GetSummary(self, request: memory_pb2.GetSummaryRequest, context: Context) -> memory_pb2.Summary:
        user_id = current_user_id()
        conversation_id = str(uuid.UUID(request.conversation_id)) if request.conversation_id else ""
        found = await self._summaries.read(user_id, conversation_id or user_id)
        if found is None:
            return memory_pb2.Summary(conversation_id=conversation_id)
        return memory_pb2.Summary(
            text=found.text,
            conversation_id=conversation_id,
            last_sequence=found.last_sequence,
            update_time=timestamp(found.update_time),
        )
