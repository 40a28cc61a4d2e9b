"""PurgeUser: of a deleted user nothing is left, in no table and under no key, whoever writes meanwhile or later."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from psycopg import sql
from redis.asyncio import Redis

from parley.memory.v1 import memory_pb2
from services.runtime.database import open_database
from services.runtime.purging import SETTLE_SECONDS, Fence
from suite.databases import ServiceDatabase
from suite.redis import RedisServer, running_redis
from tests.issuer import Metadata
from tests.memory.conftest import Start
from tests.memory.database import fetch, opened, run, somebody_waits
from tests.memory.service import MemoryService, message, new_id, reason_of, turn
from tests.memory.test_erasure import planted
from tests.memory.traces import CANARY, keys_with, rows_with


def as_auth(memory: MemoryService) -> Metadata:
    return memory.issuer.as_service("auth", audience="memory")


async def purge_once(memory: MemoryService, user_id: str, metadata: Metadata | None = None) -> None:
    request = memory_pb2.PurgeUserRequest(user_id=user_id)
    await memory.stub.PurgeUser(request, metadata=metadata or as_auth(memory), timeout=30)


async def refused(memory: MemoryService, user_id: str, metadata: Metadata | None = None) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await purge_once(memory, user_id, metadata)
    return reason_of(caught.value)


async def purged(memory: MemoryService, user_id: str) -> None:
    """Asks, as auth does, until memory confirms."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await purge_once(memory, user_id)
            except grpc.aio.AioRpcError as error:
                if reason_of(error) != "PURGE_UNFINISHED":
                    raise
            await asyncio.sleep(0.3)


async def naming(database: ServiceDatabase, user_id: str) -> list[str]:
    """The tables that hold a row with this id, but for the fences."""
    async with opened(database) as connection:
        cursor = await connection.execute(
            "select relname from pg_class join pg_namespace on pg_namespace.oid = relnamespace"
            " where relkind in ('r', 'p') and nspname not in ('pg_catalog', 'information_schema') and not relispartition"
        )
        found = []
        for (table,) in await cursor.fetchall():
            asked = sql.SQL("select count(*) from {} t where t::text like {}").format(
                sql.Identifier(table), sql.Literal(f"%{user_id}%")
            )
            row = await (await connection.execute(asked)).fetchone()
            found += [table] if row and row[0] else []
    return [table for table in found if table != "purged_users"]


@pytest.fixture(autouse=True)
async def empty_redis(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        await redis.flushall()


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A Redis that a test may stop."""
    async with running_redis(tmp_path / "redis") as server:
        if not server.is_real:
            pytest.skip("needs a real Redis; this machine has only fakeredis")
        yield server


async def test_nothing_is_left_and_somebody_elses_stays(
    memory: MemoryService, database: ServiceDatabase, redis_url: str
) -> None:
    other = MemoryService(memory.issuer, memory.stub, memory.memory, memory.upkeep)
    await other.record(new_id(), turn(1, "owls"))
    await planted(memory, database)
    assert await rows_with(database) != []
    assert await keys_with(redis_url, memory.user_id) != []
    # What was under way may still write where no fence stands: so it is not confirmed at once, though all rows are gone.
    assert await refused(memory, memory.user_id) == "PURGE_UNFINISHED"
    assert await rows_with(database) == []
    assert await naming(database, memory.user_id) == []
    await purged(memory, memory.user_id)
    assert await keys_with(redis_url, memory.user_id) == []
    assert await keys_with(redis_url) == []
    assert await fetch(database, "select held_keys from purged_users where user_id = %s", memory.user_id) == [([],)]
    await purge_once(memory, memory.user_id)
    assert await naming(database, other.user_id) != []


async def test_nobody_writes_for_them_any_more(memory: MemoryService, database: ServiceDatabase) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, turn(1))
    await purged(memory, memory.user_id)
    assert await memory.record(conversation_id, turn(1, CANARY)) == 0
    assert await memory.record(new_id(), turn(1, CANARY)) == 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await memory.add_memory(f"likes {CANARY}")
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert reason_of(caught.value) == "USER_DELETED"
    assert await memory.texts(conversation_id) == []
    assert await naming(database, memory.user_id) == []
    assert await rows_with(database) == []


async def test_a_late_report_of_turns_costs_the_others_in_it_nothing(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    living = new_id()
    await purged(memory, memory.user_id)
    told = [
        memory_pb2.ConversationTurns(user_id=user_id, conversation_id=new_id(), messages=[message(1, CANARY)])
        for user_id in (memory.user_id, living)
    ]
    request = memory_pb2.RecordTurnsRequest(conversations=told)
    answer = await memory.stub.RecordTurns(request, metadata=memory.issuer.as_service("chat", audience="memory"), timeout=10)
    assert answer.refused_conversation_ids == []
    assert await naming(database, memory.user_id) == []
    assert await fetch(database, "select count(*) from turns where user_id = %s", living) == [(1,)]


_WRITERS = 6


async def test_writers_at_the_same_time_bring_nothing_back(
    start_memory: Start, memory: MemoryService, database: ServiceDatabase, redis_url: str
) -> None:
    user_id, stop, enough, written = memory.user_id, asyncio.Event(), asyncio.Event(), 0
    async with start_memory() as other:
        other.user_id = user_id

        async def write(through: MemoryService) -> None:
            nonlocal written
            conversation_id, number = new_id(), 0
            while not stop.is_set():
                number += 1
                try:
                    await through.record(conversation_id, turn(number, CANARY))
                    await through.record(new_id(), turn(1, CANARY))
                    await through.assemble(conversation_id)
                    await through.add_memory(f"likes {CANARY} {new_id()}")
                    written += 1
                    if written > _WRITERS:
                        enough.set()
                except grpc.aio.AioRpcError as error:
                    if reason_of(error) not in {"USER_DELETED", "CONFLICT"}:
                        raise

        writers = [asyncio.create_task(write(each)) for each in (memory, other) * (_WRITERS // 2)]
        async with asyncio.timeout(30):
            await enough.wait()
        await purged(memory, user_id)
        stop.set()
        await asyncio.gather(*writers)
    assert await naming(database, user_id) == []
    assert await rows_with(database) == []
    assert await keys_with(redis_url) == []
    assert await keys_with(redis_url, user_id) == []


async def test_it_is_not_confirmed_while_redis_is_away(
    start_memory: Start, own_redis: RedisServer, database: ServiceDatabase
) -> None:
    async with start_memory(redis_url=own_redis.url, redis_retry_seconds=0.1) as memory:
        await planted(memory, database)
        own_redis.process.kill()
        await own_redis.wait()
        await asyncio.sleep(0.2)
        await refused(memory, memory.user_id)
        await asyncio.sleep(SETTLE_SECONDS)
        assert await refused(memory, memory.user_id) == "PURGE_UNFINISHED"
        held = await fetch(database, "select cardinality(held_keys) from purged_users where user_id = %s", memory.user_id)
        assert held == [(2,)]


async def test_only_auth_for_itself_may_ask(memory: MemoryService, database: ServiceDatabase) -> None:
    await memory.record(new_id(), turn(1))
    for metadata in (
        memory.as_user(),
        memory.as_chat(),
        memory.issuer.as_service("chat", audience="memory"),
        memory.issuer.as_service("auth", audience="memory", user_id=memory.user_id),
    ):
        assert await refused(memory, memory.user_id, metadata) == "ACCESS_DENIED"
    for rubbish in ("", "nobody", "x" * 500):
        assert await refused(memory, rubbish) == "INVALID_REQUEST"
    assert "turns" in await naming(database, memory.user_id)


async def test_a_fence_goes_after_a_day(memory: MemoryService, database: ServiceDatabase) -> None:
    await purged(memory, memory.user_id)
    opened_again = open_database(database.url, pool_size=1)
    try:
        assert await Fence(opened_again).sweep() == 0
        await run(database, "update purged_users set purge_time = now() - interval '25 hours'")
        assert await Fence(opened_again).sweep() == 1
    finally:
        await opened_again.close()
    assert await fetch(database, "select 1 from purged_users") == []


async def test_a_fence_stands_from_when_its_writers_are_done(database: ServiceDatabase) -> None:
    """And not from when it began to wait for them: what they read may be on its way to Redis still."""
    user_id = new_id()
    fenced = open_database(database.url, pool_size=1)
    try:
        async with opened(database) as writer:
            locking = "select pg_advisory_xact_lock_shared(hashtextextended('parley purge ' || %s, 0))"
            await writer.execute(locking, (user_id,))
            putting_up = asyncio.create_task(Fence(fenced).put_up(user_id))
            await somebody_waits(database)
            [(done,)] = await (await writer.execute("select clock_timestamp()")).fetchall()
        await putting_up
        [(stands_since,)] = await fetch(database, "select purge_time from purged_users where user_id = %s", user_id)
        assert stands_since > done
    finally:
        await fenced.close()
