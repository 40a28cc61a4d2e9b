"""What one user asks for many times at once waits for itself, and leaves the others room."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from parley.memory.v1 import memory_pb2
from suite.databases import ServiceDatabase
from tests.memory.conftest import Start
from tests.memory.database import holding_person, somebody_waits
from tests.memory.service import MemoryService, message, new_id

_BURST = 12


def _import(memory: MemoryService) -> Awaitable[object]:
    record = memory_pb2.MessageRecord(conversation_id=new_id(), message=message(1))
    request = memory_pb2.ImportMemoriesRequest(records=[memory_pb2.MemoryRecord(message=record)])
    return memory.stub.ImportMemories(request, metadata=memory.as_user(), timeout=60)


def _erase(memory: MemoryService) -> Awaitable[object]:
    request = memory_pb2.DeleteMemoriesRequest(conversation_id=new_id())
    return memory.stub.DeleteMemories(request, metadata=memory.as_user(), timeout=60)


@pytest.mark.parametrize("call", [_import, _erase])
async def test_one_users_burst_leaves_the_connections_to_others(
    start_memory: Start, database: ServiceDatabase, call: Callable[[MemoryService], Awaitable[object]]
) -> None:
    async with start_memory(database_pool_size=4) as memory, asyncio.TaskGroup() as group:
        other = new_id()
        await memory.add_memory("likes tea", user_id=other)
        await memory.add_memory("likes coffee")
        async with holding_person(database, memory.user_id):
            burst = [group.create_task(_made(call(memory))) for _ in range(_BURST)]
            await somebody_waits(database)
            assert [one.text for one in await memory.memories(user_id=other)] == ["likes tea"]
            assert not any(one.done() for one in burst)


async def _made(call: Awaitable[object]) -> None:
    await call
