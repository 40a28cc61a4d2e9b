"""The working set spares Postgres, and is never needed."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.memory.evictions import sweep_evictions
from services.memory.turns import ConversationKey
from services.runtime.duties import beside
from suite.databases import ServiceDatabase
from suite.redis import Kind, RedisServer, available_kinds, running_redis, start_redis
from tests.memory.conftest import Start
from tests.memory.service import MemoryService, eventually, message, new_id, turn
from tests.memory.test_invalidate_context import CANARY, keys_with, rows_with

TIMEOUT_SECONDS = 0.3


def counted(operation: str, outcome: str) -> float:
    labels = {"operation": operation, "outcome": outcome}
    return REGISTRY.get_sample_value("parley_memory_working_set_total", labels) or 0.0


def held_key(memory: MemoryService, conversation_id: str) -> str:
    return f"parley:memory:working-set:1:{memory.user_id}:{conversation_id}"


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A Redis that a test may stop."""
    async with running_redis(tmp_path / "redis") as server:
        if not server.is_real:
            pytest.skip("needs a real Redis; this machine has only fakeredis")
        yield server


async def test_a_conversation_in_use_is_found_in_the_working_set(memory: MemoryService) -> None:
    conversation_id = new_id()
    hits, misses = counted("read", "hit"), counted("read", "miss")
    for number in range(1, 6):
        await memory.record(conversation_id, turn(number))
        assert len(await memory.texts(conversation_id)) == 2 * number
    assert (counted("read", "hit") - hits, counted("read", "miss") - misses) == (5, 0)


async def test_use_keeps_a_conversation_for_another_half_hour(memory: MemoryService, redis_url: str) -> None:
    conversation_id = new_id()
    key = held_key(memory, conversation_id)
    await memory.record(conversation_id, turn(1))
    async with Redis.from_url(redis_url) as redis:
        for use in (memory.assemble(conversation_id), memory.record(conversation_id, turn(2))):
            await redis.expire(key, 60)
            await use
            assert 1790 <= await redis.ttl(key) <= 1800


async def test_after_its_time_a_conversation_is_read_from_postgres_again(start_memory: Start, redis_url: str) -> None:
    async with start_memory(working_set_ttl_seconds=1) as memory:
        conversation_id = new_id()
        await memory.record(conversation_id, turn(1))
        async with Redis.from_url(redis_url) as redis:
            assert await redis.pttl(held_key(memory, conversation_id)) <= 1000
            await redis.pexpire(held_key(memory, conversation_id), 1)
            async for _ in eventually():
                if not await redis.exists(held_key(memory, conversation_id)):
                    break
        assert await memory.texts(conversation_id) == ["words 1", "words 2"]


async def test_a_block_never_outgrows_its_bound(start_memory: Start, redis_url: str) -> None:
    async with start_memory(working_set_bytes=4096) as memory, Redis.from_url(redis_url) as redis:
        conversation_id = new_id()
        for number in range(1, 26):
            await memory.record(conversation_id, turn(number, "word " * 30))
            assert await redis.strlen(held_key(memory, conversation_id)) <= 4096
            answer = await memory.assemble(conversation_id, budget=200)
            assert answer.last_sequence == 2 * number
            assert await redis.strlen(held_key(memory, conversation_id)) <= 4096 + 20
        texts = await memory.texts(conversation_id, budget=32_000)
        assert len(texts) == 50


async def test_what_another_wrote_into_the_key_of_an_older_version_is_not_read(
    memory: MemoryService, redis_url: str
) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, turn(1))
    async with Redis.from_url(redis_url) as redis:
        old = await redis.get(held_key(memory, conversation_id))
        assert isinstance(old, bytes)
        await memory.record(conversation_id, turn(2))
        await redis.set(held_key(memory, conversation_id), old)
    assert len(await memory.texts(conversation_id)) == 4


async def test_a_redis_that_comes_back_with_old_data_shows_none_of_it(
    start_memory: Start, own_redis: RedisServer, tmp_path: Path
) -> None:
    async with start_memory(redis_url=own_redis.url, redis_retry_seconds=0.01) as memory:
        conversation_id, deleted = new_id(), new_id()
        await memory.record(conversation_id, turn(1))
        await memory.record(deleted, turn(1))
        await own_redis.stop()
        shutil.copytree(tmp_path / "redis", tmp_path / "old", ignore=shutil.ignore_patterns("*.sock", "*.pid"))
        await memory.record(conversation_id, turn(2))
        await memory.forget(deleted)
        back = await start_redis(tmp_path / "redis")
        try:
            assert back.url == own_redis.url
            async for _ in eventually():
                hits = counted("read", "hit")
                assert len(await memory.texts(conversation_id)) == 4
                assert await memory.texts(deleted) == []
                if counted("read", "hit") > hits:
                    break  # what it holds now is new
        finally:
            await back.stop()


async def test_a_redis_that_was_emptied_costs_one_reading(memory: MemoryService, redis_url: str) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, turn(1))
    async with Redis.from_url(redis_url) as redis:
        await redis.delete(held_key(memory, conversation_id))
        await redis.script_flush()
    misses, hits = counted("read", "miss"), counted("read", "hit")
    for _ in range(3):
        assert len(await memory.texts(conversation_id)) == 2
    assert (counted("read", "miss") - misses, counted("read", "hit") - hits) == (1, 2)


async def test_with_redis_dead_every_call_is_answered_from_postgres(
    start_memory: Start, own_redis: RedisServer, database: ServiceDatabase
) -> None:
    async with start_memory(redis_url=own_redis.url, redis_timeout_seconds=TIMEOUT_SECONDS) as memory:
        conversation_id = new_id()
        await memory.record(conversation_id, turn(1))
        own_redis.process.kill()
        await own_redis.wait()
        assert await memory.record(conversation_id, turn(2)) == 4
        assert len(await memory.texts(conversation_id)) == 4
        assert await memory.forget(conversation_id, 3) == 2
        assert await memory.texts(conversation_id) == ["words 1", "words 2"]
        assert await memory.forget(conversation_id) == 2
        assert await memory.texts(conversation_id) == []
        assert await rows_with(database, "words") == []


async def test_a_redis_that_hangs_costs_one_timeout_and_not_one_a_call(start_memory: Start, own_redis: RedisServer) -> None:
    asked = {"redis_url": own_redis.url, "redis_timeout_seconds": TIMEOUT_SECONDS, "redis_retry_seconds": 60}
    async with start_memory(**asked) as memory:
        conversation_id = new_id()
        await memory.record(conversation_id, turn(1))
        os.kill(own_redis.process.pid, signal.SIGSTOP)
        try:
            errors, skipped = counted("read", "error"), counted("read", "skipped")
            begin = time.monotonic()
            assert len(await memory.texts(conversation_id)) == 2
            assert time.monotonic() - begin >= TIMEOUT_SECONDS
            for _ in range(20):
                assert len(await memory.texts(conversation_id)) == 2
            assert (counted("read", "error") - errors, counted("read", "skipped") - skipped) == (1, 20)
        finally:
            os.kill(own_redis.process.pid, signal.SIGCONT)


async def test_calls_in_flight_when_redis_hangs_are_answered_each_with_its_own(
    start_memory: Start, own_redis: RedisServer
) -> None:
    asked = {"redis_url": own_redis.url, "redis_timeout_seconds": TIMEOUT_SECONDS, "redis_retry_seconds": 0.05}
    async with start_memory(**asked) as memory:
        conversations = {new_id(): turn(1, f"of {number}") for number in range(30)}
        expected = [[one.text for one in told] for told in conversations.values()]

        async def everything() -> list[list[str]]:
            return await asyncio.gather(*(memory.texts(conversation_id) for conversation_id in conversations))

        for conversation_id, told in conversations.items():
            await memory.record(conversation_id, told)
        os.kill(own_redis.process.pid, signal.SIGSTOP)
        try:
            assert await everything() == expected
        finally:
            os.kill(own_redis.process.pid, signal.SIGCONT)
        # What Redis answers to those who gave up reaches nobody else.
        async for _ in eventually():
            hits = counted("read", "hit")
            assert await everything() == expected
            if counted("read", "hit") == hits + 30:
                break


async def test_text_deleted_while_redis_hung_goes_when_it_is_back(
    start_memory: Start, own_redis: RedisServer, database: ServiceDatabase
) -> None:
    asked = {"redis_url": own_redis.url, "redis_timeout_seconds": TIMEOUT_SECONDS, "redis_retry_seconds": 0.05}
    async with start_memory(**asked) as memory:
        conversation_id = new_id()
        await memory.record(conversation_id, turn(1, CANARY))
        os.kill(own_redis.process.pid, signal.SIGSTOP)
        try:
            assert await memory.forget(conversation_id) == 2
        finally:
            os.kill(own_redis.process.pid, signal.SIGCONT)
        async with beside(sweep_evictions(memory.memory, interval_seconds=0.02)):
            async for _ in eventually():
                if not await memory.memory._store.owed_evictions(10):
                    break
        assert await keys_with(own_redis.url, CANARY) == []
        assert await rows_with(database, CANARY) == []


async def test_an_eviction_is_owed_until_redis_confirms_it(start_memory: Start, own_redis: RedisServer) -> None:
    async with start_memory(redis_url=own_redis.url, redis_timeout_seconds=TIMEOUT_SECONDS) as memory:
        conversations = [new_id() for _ in range(3)]
        for conversation_id in conversations:
            await memory.record(conversation_id, turn(1))
        own_redis.process.kill()
        await own_redis.wait()
        for conversation_id in conversations:
            await memory.forget(conversation_id)
        assert await memory.memory.settle_owed(10) is False
        owed = await memory.memory._store.owed_evictions(10)
        assert {one.key.conversation_id for one in owed} == set(conversations)
        await memory.memory._store.settle([owed[0]])
        assert len(await memory.memory._store.owed_evictions(10)) == 2


async def test_a_settled_eviction_leaves_a_later_one_owed(memory: MemoryService) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, [message(n) for n in range(1, 5)])
    store = memory.memory._store
    key = ConversationKey(memory.user_id, conversation_id)
    first = await store.delete_end(key, from_sequence=3)
    second = await store.delete_end(key, from_sequence=2)
    assert first is not None
    assert second is not None
    await store.settle([first[1]])
    assert await store.owed_evictions(10) == [second[1]]
    await store.settle([second[1]])
    assert await store.owed_evictions(10) == []


async def test_losing_and_regaining_redis_is_told_once_each(
    start_memory: Start, own_redis: RedisServer, tmp_path: Path
) -> None:
    async with start_memory(redis_url=own_redis.url, redis_retry_seconds=0.01) as memory:
        conversation_id = new_id()
        with capture_logs() as lines:
            await memory.record(conversation_id, turn(1))
            await own_redis.stop()
            for _ in range(5):
                await memory.texts(conversation_id)
                await asyncio.sleep(0.02)
            async with running_redis(tmp_path / "redis"):
                for _ in range(5):
                    await memory.texts(conversation_id)
                    await asyncio.sleep(0.02)
        told = [line["event"] for line in lines if line["event"].startswith("breaker.")]
        assert told == ["breaker.tripped", "breaker.reset"]


@pytest.mark.parametrize("kind", available_kinds())
async def test_every_redis_that_the_suite_starts_will_do(start_memory: Start, tmp_path: Path, kind: Kind) -> None:
    async with running_redis(tmp_path / "redis", kind=kind) as server, start_memory(redis_url=server.url) as memory:
        conversation_id = new_id()
        hits = counted("read", "hit")
        for number in range(1, 4):
            await memory.record(conversation_id, turn(number, CANARY))
            assert len(await memory.texts(conversation_id)) == 2 * number
        assert counted("read", "hit") - hits == 3
        await memory.forget(conversation_id)
        assert await keys_with(server.url, CANARY) == []
