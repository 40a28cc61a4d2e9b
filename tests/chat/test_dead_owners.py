"""Replies whose process is gone, as whoever takes them over finds them: with their log, without it, or with its end."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import psycopg
import pytest
from redis.asyncio import Redis

from parley.chat.v1 import chat_pb2
from services.chat.log.entries import KEY
from simulator.control import ScriptedAnswer
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.chat.conftest import Start
from tests.chat.service import TERMINAL, User, checked, eventually, held, text_of

Event = chat_pb2.CompletionEvent
MOST_SEQUENCE = 2**31 - 1
TOGETHER = 20


@contextlib.asynccontextmanager
async def sql(database: ServiceDatabase) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as connection:
        await connection.execute("select set_config('parley.scope', 'service', false)")
        yield connection


async def abandon(database: ServiceDatabase, *, lease_seconds: float = -1) -> None:
    """Makes every generation what a process leaves that dies before it has saved anything of it."""
    async with sql(database) as connection:
        await connection.execute(
            "update generations set status = 'running', end_time = null, reason = null, error = null, owner = 'nobody',"
            " event_lengths = null, other_events = null, last_sequence = 0,"
            " lease_expire_time = now() + make_interval(secs => %s)",
            [lease_seconds],
        )
        await connection.execute(
            "update messages set text = '', status = 'generating', incomplete_reason = null where role = 'assistant'"
        )


async def generations(database: ServiceDatabase) -> list[tuple[str, int]]:
    """Status and epoch of each."""
    async with sql(database) as connection:
        return await (await connection.execute("select status, epoch from generations")).fetchall()


async def until_ended(database: ServiceDatabase) -> None:
    end = time.monotonic() + 25
    while any(status == "running" for status, _ in await generations(database)):
        assert time.monotonic() < end, "they did not end"
        await asyncio.sleep(0.1)


async def followed(user: User, generation_id: str, *, after: int) -> tuple[list[Event], bool]:
    """The events after a sequence, and whether the answer was that there are none."""
    asked = chat_pb2.SubscribeGenerationRequest(generation_id=generation_id, after_sequence=after)
    call: Any = user.chat.SubscribeGeneration(asked, metadata=user.metadata, timeout=20)
    events = [one async for one in call if one.WhichOneof("event") != "heartbeat"]
    return events, dict(await call.initial_metadata()).get("x-parley-finished") == "1"


def kinds_of(events: list[Event]) -> list[str | None]:
    return [one.WhichOneof("event") for one in events]


async def told_and_left(
    start_chat: Start, database: ServiceDatabase, *, lease_seconds: float = -1
) -> tuple[User, list[Event]]:
    """A user, and the events of a reply whose process has died since without a trace in its row."""
    async with start_chat() as chat:
        user = chat.user()
        events = await user.stream("Count", model="sim-9-0-0")
        await eventually(lambda: chat.generations.find(events[0].started.generation_id) is None)
    await abandon(database, lease_seconds=lease_seconds)
    return user, events


async def test_a_reply_whose_log_is_gone_is_closed_and_none_who_heard_more_is_told_another(
    start_chat: Start, database: ServiceDatabase, redis_url: str, simulator: Running
) -> None:
    user, events = await told_and_left(start_chat, database)
    generation_id, heard = events[0].started.generation_id, len(events) - 1
    async with Redis.from_url(redis_url) as redis:
        assert await redis.delete(KEY + generation_id) == 1
    async with start_chat() as chat:
        user = user.at(chat)
        rest, _ = await followed(user, generation_id, after=heard)
        assert kinds_of(rest) == ["failed"]
        assert rest[0].failed.reason == "GENERATION_INTERRUPTED"
        whole, _ = await followed(user, generation_id, after=0)
        assert kinds_of(whole) == ["started", "failed"]
    # The provider was asked once.
    assert len(await simulator.control.requests("responses")) == 1


async def test_the_end_of_a_reply_whose_log_is_gone_is_told_to_everybody_once(
    start_chat: Start, database: ServiceDatabase, redis_url: str
) -> None:
    user, events = await told_and_left(start_chat, database)
    generation_id = events[0].started.generation_id
    async with Redis.from_url(redis_url) as redis:
        await redis.delete(KEY + generation_id)
    async with start_chat() as here, start_chat() as there:
        await until_ended(database)
        # In the process that closed it and in another; then from the database alone.
        for is_released in (False, True):
            if is_released:
                for process in (here, there):
                    await eventually(lambda process=process: process.generations.find(generation_id) is None)  # type: ignore[misc]
            for process in (here, there):
                reader = user.at(process)
                whole, _ = await followed(reader, generation_id, after=0)
                assert kinds_of(whole) == ["started", "failed"]
                # As many as there are, and more.
                for after in (1, 2, 3, 57):
                    assert await followed(reader, generation_id, after=after) == (whole[1:], False)
                assert await followed(reader, generation_id, after=whole[-1].sequence) == ([], True)
                asked = chat_pb2.GetGenerationRequest(generation_id=generation_id)
                seen = await reader.chat.GetGeneration(asked, metadata=reader.metadata, timeout=10)
                assert seen.sequence == whole[-1].sequence


async def test_who_follows_hears_the_end_of_a_reply_that_is_closed_with_fewer_events(
    start_chat: Start, database: ServiceDatabase, redis_url: str, simulator: Running
) -> None:
    async with start_chat() as here, start_chat() as there, Redis.from_url(redis_url) as redis:
        user = here.user()
        await simulator.control.script(ScriptedAnswer(deltas=["one", " two", " three", " four"], hold_after_tokens=3))
        call = user.open_stream("Hi")
        told = [await call.read()]
        generation_id = told[0].started.generation_id
        await held(simulator)
        following = asyncio.create_task(followed(user.at(there), generation_id, after=0))
        while text_of(told) != "one two three":
            told.append(await call.read())
        await asyncio.sleep(0.3)
        await redis.delete(KEY + generation_id)
        await abandon(database)
        seen, _ = await following
        while (event := await call.read()) is not grpc.aio.EOF:
            told.append(event)
        for events in (seen, told):
            assert text_of(events) == "one two three"
            assert [kind in TERMINAL for kind in kinds_of(events)] == [False] * (len(events) - 1) + [True]
            assert events[-1].failed.reason == "GENERATION_INTERRUPTED"
        await simulator.control.release()


async def test_a_logged_end_that_the_database_has_lost_is_replaced_by_one_end(
    start_chat: Start, database: ServiceDatabase, redis_url: str
) -> None:
    user, events = await told_and_left(start_chat, database)
    generation_id = events[0].started.generation_id
    async with start_chat() as chat, Redis.from_url(redis_url) as redis:
        await until_ended(database)
        whole = checked((await followed(user.at(chat), generation_id, after=0))[0])
        assert whole[:-1] == events[:-1]
        await eventually(lambda: chat.generations.find(generation_id) is None)
        logged: Any = await redis.xrange(KEY + generation_id)
        assert sum(values[b"x"] == b"1" for _, values in logged) == 1
        assert checked((await followed(user.at(chat), generation_id, after=0))[0]) == whole


@pytest.mark.parametrize("is_running", [False, True])
async def test_a_deletion_takes_the_log_that_a_dead_process_left(
    start_chat: Start, database: ServiceDatabase, redis_url: str, *, is_running: bool
) -> None:
    user, events = await told_and_left(start_chat, database, lease_seconds=60)
    key = KEY + events[0].started.generation_id
    if not is_running:
        # It has saved the end, and died before it told Redis: the log is kept as that of a running one is.
        async with sql(database) as connection:
            await connection.execute("update generations set status = 'completed', end_time = now() - interval '5 minutes'")
    async with start_chat() as chat, Redis.from_url(redis_url) as redis:
        assert await redis.exists(key)
        await user.at(chat).delete(events[0].started.conversation_id)
        assert not await redis.exists(key)


async def test_a_deletion_leaves_nothing_of_a_reply_that_is_being_written(
    start_chat: Start, redis_url: str, simulator: Running
) -> None:
    async with start_chat() as here, start_chat() as there, Redis.from_url(redis_url) as redis:
        user = here.user()
        await simulator.control.script(ScriptedAnswer(text="one two three", hold_after_tokens=2))
        call = user.open_stream("Hi")
        started = (await call.read()).started
        await held(simulator)
        await user.at(there).delete(started.conversation_id)
        while (event := await call.read()) is not grpc.aio.EOF:
            last = event
        assert last.WhichOneof("event") == "cancelled"
        await eventually(lambda: not here.generations.running())
        await asyncio.sleep(0.1)
        assert not await redis.exists(KEY + started.generation_id)
        await simulator.control.release()


async def test_many_are_taken_over_once_while_redis_hangs(
    start_chat: Start, database: ServiceDatabase, mute_redis: str
) -> None:
    async with start_chat() as chat:
        users = [chat.user() for _ in range(TOGETHER)]
        await asyncio.gather(*(user.create("Count", model="sim-2-0-0") for user in users))
    await abandon(database)
    async with start_chat(redis_url=mute_redis) as first, start_chat(redis_url=mute_redis) as second:
        await until_ended(database)
        assert await generations(database) == [("failed", 2)] * TOGETHER
        for process in (first, second):
            await eventually(lambda process=process: not process.generations.running())  # type: ignore[misc]
