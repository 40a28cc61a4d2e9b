"""The RPCs of single facts: check, call, convert.

The user is who calls, or on whose behalf a service does.
"""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc

from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from services.memory.facts.held import Request
from services.memory.facts.requests import read_add, read_edit
from services.memory.facts.store import FactStore, Key
from services.memory.messages import memory_of_fact, memory_of_turn
from services.memory.records import Fact, Stamp
from services.runtime.calls import current_caller, current_metadata, current_user_id
from services.runtime.paging import bad_page_token, cut_page, decode_page_token, page_size
from services.runtime.request_ids import digest_of, request_id_of

Context = grpc.aio.ServicerContext[Any, Any]

_MEMORIES: Final = "memories"
_HISTORY: Final = "memory_history"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class FactRpcs(memory_pb2_grpc.MemoryServiceServicer):
    """AddMemory, ListMemories, GetMemory, UpdateMemory, DeleteMemory, ListMemoryHistory."""

    _facts: FactStore

    async def AddMemory(self, request: memory_pb2.AddMemoryRequest, context: Context) -> memory_pb2.Memory:
        content = read_add(request, service=current_caller().service, now=datetime.now(UTC))
        request_id = request_id_of(request, current_metadata())
        named = None if request_id is None else Request(request_id, digest_of(request, ("request_id",)))
        return memory_of_fact(await self._facts.add(current_user_id(), content, request=named))

    async def ListMemories(
        self, request: memory_pb2.ListMemoriesRequest, context: Context
    ) -> memory_pb2.ListMemoriesResponse:
        size = page_size(request.page_size)
        found = await self._facts.read_page(
            current_user_id(),
            limit=size + 1,
            after=_key(_MEMORIES, request.page_token),
            subject=request.subject.strip(),
            include_closed=request.include_closed,
        )
        page, next_token = cut_page(found, size, list_name=_MEMORIES, key=_recorded)
        return memory_pb2.ListMemoriesResponse(memories=_memories(page), next_page_token=next_token)

    async def GetMemory(self, request: memory_pb2.GetMemoryRequest, context: Context) -> memory_pb2.Memory:
        found = await self._facts.find(current_user_id(), _id(request.memory_id))
        if isinstance(found, Fact):
            return memory_of_fact(found)
        return memory_of_turn(found.turn, conversation_id=found.conversation_id, record_time=found.record_time)

    async def UpdateMemory(self, request: memory_pb2.UpdateMemoryRequest, context: Context) -> memory_pb2.Memory:
        edit = read_edit(request, now=datetime.now(UTC))
        by: Stamp = "user" if current_caller().service is None else "assistant"
        return memory_of_fact(await self._facts.edit(current_user_id(), _id(request.memory_id), edit, stamped_by=by))

    async def DeleteMemory(
        self, request: memory_pb2.DeleteMemoryRequest, context: Context
    ) -> memory_pb2.DeleteMemoryResponse:
        await self._facts.delete(current_user_id(), _id(request.memory_id))
        return memory_pb2.DeleteMemoryResponse()

    async def ListMemoryHistory(
        self, request: memory_pb2.ListMemoryHistoryRequest, context: Context
    ) -> memory_pb2.ListMemoryHistoryResponse:
        size = page_size(request.page_size)
        after = _key(_HISTORY, request.page_token)
        found = await self._facts.read_history(current_user_id(), _id(request.memory_id), limit=size + 1, after=after)
        page, next_token = cut_page(found, size, list_name=_HISTORY, key=_superseded)
        return memory_pb2.ListMemoryHistoryResponse(memories=_memories(page), next_page_token=next_token)


def _memories(facts: Sequence[Fact]) -> list[memory_pb2.Memory]:
    return [memory_of_fact(fact) for fact in facts]


def _id(text: str) -> str:
    return str(uuid.UUID(text))


def _recorded(fact: Fact) -> tuple[int, str]:
    return _micros(fact.record_time), fact.id


def _superseded(version: Fact) -> tuple[int, str]:
    return _micros(version.invalidate_time or version.record_time), version.id


def _micros(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)


def _key(list_name: str, token: str) -> Key | None:
    """Where a page begins; what a client made up is refused here and not by the database."""
    key = decode_page_token(list_name, token, kinds=(int, str))
    if key is None:
        return None
    try:
        return _EPOCH + timedelta(microseconds=int(key[0])), _id(str(key[1]))
    except (OverflowError, ValueError):
        raise bad_page_token() from None
