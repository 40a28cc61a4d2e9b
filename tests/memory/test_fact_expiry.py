"""Facts that are to be forgotten at a time: unseen from then on, and soon gone."""

import asyncio
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from suite.databases import ServiceDatabase
from tests.memory.conftest import Start
from tests.memory.database import fetch, run
from tests.memory.service import MemoryService, eventually, new_id, reason_of

EXPIRE_NOW = "update facts set expire_time = now() - interval '1 second' where id = %s"
FORGET_OWED = "delete from upkeep where task = 'expire'"


def soon(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return stamp


async def is_missing(memory: MemoryService, memory_id: str) -> bool:
    for call in (memory.get_memory(memory_id), memory.history(memory_id)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert reason_of(refused.value) == "MEMORY_NOT_FOUND"
    return True


async def test_a_fact_is_deleted_when_its_time_comes(memory: MemoryService, database: ServiceDatabase) -> None:
    fact = await memory.add_memory("Is in a hotel", expire_time=soon(0.5))
    await memory.update_memory(fact.id, text="Is in a hotel by the sea")
    kept = await memory.add_memory("Likes the sea", expire_time=soon(3600))
    assert len(await memory.memories()) == 2
    async for _ in eventually(10):
        memory.upkeep.look()
        if await fetch(database, "select id::text from facts") == [(kept.id,)]:
            break
    assert await memory.memories() == [kept]
    async for _ in eventually(5):
        owed = await fetch(
            database, "select due_time > now() + interval '50 minutes', claim_until from upkeep where task = 'expire'"
        )
        if owed == [(True, None)]:
            break
    [(summaries_owed,)] = await fetch(database, "select count(*) from upkeep where task = 'portray'")
    assert summaries_owed == 1


async def test_what_has_expired_is_not_shown_before_it_is_swept(memory: MemoryService, database: ServiceDatabase) -> None:
    fact = await memory.add_memory("Is in a hotel", request_id="r")
    await memory.update_memory(fact.id, text="Is in a hotel by the sea", importance=9)
    await run(database, EXPIRE_NOW, fact.id)
    assert await memory.memories(include_closed=True) == []
    assert await is_missing(memory, fact.id)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await memory.update_memory(fact.id, text="Is at home")
    assert reason_of(refused.value) == "MEMORY_NOT_FOUND"
    again = await memory.add_memory("is in a HOTEL by the sea")
    assert (again.id != fact.id, again.importance) == (True, 5)
    assert await memory.memories() == [again]
    await memory.add_memory("Is in a tent", expire_time=soon(3600))


async def test_the_sweep_finds_what_nobody_was_told_of(start_memory: Start, database: ServiceDatabase) -> None:
    async with start_memory(expiry_sweep_seconds=0.1) as memory:
        users = [new_id() for _ in range(3)]
        kept = await memory.add_memory("Likes the sea")
        for user_id in users:
            fact = await memory.add_memory("Is in a hotel", user_id=user_id)
            await memory.add_memory("Likes tea", user_id=user_id)
            await run(database, FORGET_OWED)
            await run(database, EXPIRE_NOW, fact.id)
        async for _ in eventually(10):
            if await fetch(database, "select count(*) from facts where body = 'Is in a hotel'") == [(0,)]:
                break
        assert await memory.memories() == [kept]
        for user_id in users:
            assert [one.text for one in await memory.memories(user_id=user_id)] == ["Likes tea"]


async def test_a_version_is_forgotten_with_its_fact_at_the_latest(memory: MemoryService) -> None:
    early, late = soon(1800), soon(3600)
    fact = await memory.add_memory("Is in Lisbon", expire_time=early)
    await memory.update_memory(fact.id, text="Is in Porto", expire_time=late)
    [lisbon] = await memory.history(fact.id)
    assert lisbon.expire_time == early
    await memory.update_memory(fact.id, text="Is in Faro", mask=["text", "expire_time"])
    porto, lisbon = await memory.history(fact.id)
    assert (porto.expire_time, lisbon.expire_time) == (late, early)
    sooner = soon(600)
    await memory.update_memory(fact.id, expire_time=sooner)
    assert [one.expire_time for one in await memory.history(fact.id)] == [sooner, sooner]


async def test_a_time_that_is_moved_away_keeps_the_fact(memory: MemoryService, database: ServiceDatabase) -> None:
    fact = await memory.add_memory("Is in a hotel", expire_time=soon(0.4))
    await memory.update_memory(fact.id, mask=["expire_time"])
    await asyncio.sleep(0.5)
    async for _ in eventually(10):
        memory.upkeep.look()
        if await fetch(database, "select task from upkeep where task = 'expire'") == []:
            break
    assert [one.id for one in await memory.memories()] == [fact.id]
