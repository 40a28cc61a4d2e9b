"""Replies whose process dies, sleeps or stops, and what becomes of their events: read on from another process."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from parley.chat.v1 import chat_pb2
from simulator.control import ScriptedAnswer, ScriptedCall
from suite.databases import ServiceDatabase
from suite.postgres import EmbeddedPostgres
from suite.redis import start_redis
from tests.chat.service import User, checked, text_of
from tests.faults.stand import USER, Chat, Stand, soon, until_text
from tests.work import PATIENCE_SECONDS

Event = chat_pb2.CompletionEvent
WHOLE = " ".join(f"tok{number}" for number in range(60))
ASKED = {"request_id": "one", "model": "sim-60-20-0"}


async def rest_of(user: User, before: list[Event]) -> list[Event]:
    """The whole of a stream that broke after these events, read on from another process."""
    asked = chat_pb2.SubscribeGenerationRequest(
        generation_id=before[0].started.generation_id, after_sequence=before[-1].sequence
    )
    call = user.chat.SubscribeGeneration(asked, metadata=user.metadata, timeout=30)
    return checked([*before, *[one async for one in call if one.WhichOneof("event") != "heartbeat"]])


async def until_broken(call: Any, events: list[Event]) -> grpc.StatusCode:
    try:
        async for event in call:
            events.append(event)  # noqa: PERF401 - what came before the break counts
    except grpc.aio.AioRpcError as error:
        return error.code()
    raise AssertionError("the stream ended well")


async def kill(chat: Chat) -> None:
    chat.tell(signal.SIGKILL)
    await chat.exit_code()


async def test_a_kill_without_background_keeps_what_was_told(stand: Stand) -> None:
    first, second = await asyncio.gather(stand.start(), stand.start())
    events: list[Event] = []
    call = first.user(USER).open_stream("Count", **ASKED)
    await until_text(call, events)
    await asyncio.sleep(0.3)
    await kill(first)
    await until_broken(call, events)
    whole = await rest_of(second.user(USER), events)
    partial = whole[-1].failed.partial_message
    assert whole[-1].failed.reason == "GENERATION_INTERRUPTED"
    assert partial.text == text_of(whole)
    assert WHOLE.startswith(partial.text)
    assert await rest_of(second.user(USER), whole[:1]) == whole


async def test_a_reply_of_which_nothing_was_told_yet_is_begun_by_whoever_takes_it_over(stand: Stand) -> None:
    waiting = {"MEMORY_TIMEOUT_SECONDS": "20"}
    first, second = await asyncio.gather(stand.start(**waiting), stand.start(**waiting))
    stand.memory.delay_seconds = 20
    begun = asyncio.create_task(until_broken(first.user(USER).open_stream("Count", **ASKED), []))

    async def has_asked_memory() -> bool:
        return bool(stand.memory.asked)

    await soon(has_asked_memory, within_seconds=5)
    following = asyncio.create_task(second.user(USER).stream("Count", **ASKED))
    await asyncio.sleep(0.5)
    stand.memory.delay_seconds = 0
    await kill(first)
    await begun
    events = await following
    assert events[-1].completed.message.text == text_of(events) == WHOLE
    assert events[0].started.resumable


@pytest.mark.parametrize("is_told", [False, True])
async def test_what_the_provider_keeps_is_deleted_whoever_ends_the_reply(stand: Stand, *, is_told: bool) -> None:
    """Killed after a round of tools, or stopped with a response that no event was told of; with no renewal meanwhile."""
    rare = {"OPENAI_BACKGROUND": "on", "LEASE_SECONDS": "6", "LEASE_RENEW_SECONDS": "3", "DRAIN_SECONDS": "1"}
    first, second = await asyncio.gather(stand.start(**rare), stand.start(**rare))
    user = first.user(USER)
    events: list[Event] = []
    if is_told:
        await stand.simulator.control.script(
            ScriptedAnswer(text="Adding.", function_calls=[ScriptedCall(name="add_task", arguments={"title": "Once"})]),
            ScriptedAnswer(text="one two three", hold_after_tokens=1),
        )
    else:
        await stand.simulator.control.script(ScriptedAnswer(text="one two three", hold_after_tokens=0))
    call = user.open_stream("Go", use_tasks=is_told, request_id="one")
    events.append(await call.__aiter__().__anext__())
    await stand.simulator.control.wait(held=1)
    await asyncio.sleep(0.1)
    if is_told:
        await kill(first)
    else:
        first.tell(signal.SIGTERM)
    await until_broken(call, events)
    await stand.simulator.control.release()
    whole = await rest_of(second.user(USER), events)
    assert whole[-1].WhichOneof("event") == "completed"
    made = len(await stand.simulator.control.requests("responses"))

    async def are_deleted() -> bool:
        return len(await stand.simulator.control.requests("responses.delete")) >= made

    await soon(are_deleted, within_seconds=5)


@pytest.mark.parametrize("wait_seconds", [0.0, 0.4])
async def test_a_kill_with_background_costs_no_token(stand: Stand, wait_seconds: float) -> None:
    replicas = [stand.start(OPENAI_BACKGROUND="on") for _ in range(2)]
    first, second = await asyncio.gather(*replicas)
    events: list[Event] = []
    call = first.user(USER).open_stream("Count", **ASKED)
    if wait_seconds:
        await until_text(call, events)
        await asyncio.sleep(wait_seconds)
    else:
        events.append(await call.__aiter__().__anext__())
    following = asyncio.create_task(second.user(USER).stream("Count", **ASKED))
    await asyncio.sleep(0.05)
    await kill(first)
    await until_broken(call, events)
    whole = await rest_of(second.user(USER), events)
    assert whole[-1].completed.message.text == text_of(whole) == WHOLE
    assert await following == whole
    responses = await stand.simulator.control.requests("responses")
    assert len(responses) == (1 if wait_seconds else len(responses))
    if wait_seconds:
        # What the provider kept of it is deleted there.
        async def is_forgotten() -> bool:
            return bool(await stand.simulator.control.requests("responses.delete"))

        await soon(is_forgotten, within_seconds=5)


async def test_who_sleeps_past_the_lease_reads_on_what_another_writes(stand: Stand) -> None:
    replicas = [stand.start(OPENAI_BACKGROUND="on") for _ in range(2)]
    first, second = await asyncio.gather(*replicas)
    events: list[Event] = []
    call = first.user(USER).open_stream("Count", request_id="one", model="sim-150-30-0")
    await until_text(call, events)
    first.tell(signal.SIGSTOP)
    try:
        seen = await rest_of(second.user(USER), events)
    finally:
        first.tell(signal.SIGCONT)
    events += [event async for event in call]
    assert checked(events) == seen
    assert seen[-1].completed.message.text == text_of(seen)
    assert len(text_of(seen).split()) == 150
    for chat in (first, second):
        assert await rest_of(chat.user(USER), seen[:1]) == seen


async def test_a_stop_hands_over_what_another_can_go_on_with(stand: Stand) -> None:
    lasting = {"OPENAI_BACKGROUND": "on", "DRAIN_SECONDS": "1", "LEASE_SECONDS": "120", "LEASE_RENEW_SECONDS": "40"}
    first, second = await asyncio.gather(stand.start(**lasting), stand.start(**lasting))
    events: list[Event] = []
    call = first.user(USER).open_stream("Count", request_id="one", model="sim-150-30-0")
    await until_text(call, events)
    first.tell(signal.SIGTERM)
    assert await until_broken(call, events) is grpc.StatusCode.UNAVAILABLE
    begin = time.monotonic()
    whole = await rest_of(second.user(USER), events)
    # Long before the lease has expired.
    assert time.monotonic() - begin < PATIENCE_SECONDS
    assert len(text_of(whole).split()) == 150
    assert whole[-1].WhichOneof("event") == "completed"
    assert len(await stand.simulator.control.requests("responses")) == 1
    assert await first.exit_code() == 0


async def test_with_the_default_lease_a_death_is_resolved_within_fifteen_seconds(stand: Stand) -> None:
    defaults = {"LEASE_SECONDS": "10", "LEASE_RENEW_SECONDS": "3"}
    first, second = await asyncio.gather(stand.start(**defaults), stand.start(**defaults))
    await stand.simulator.control.script(ScriptedAnswer(text="one two three four", hold_after_tokens=2))
    events: list[Event] = []
    call = first.user(USER).open_stream("Hi")
    await until_text(call, events)
    await kill(first)
    begin = time.monotonic()
    await until_broken(call, events)
    whole = await rest_of(second.user(USER), events)
    assert time.monotonic() - begin < PATIENCE_SECONDS
    assert whole[-1].failed.partial_message.text == text_of(whole) != ""
    await stand.simulator.control.release()


async def test_redis_may_go_and_come_back_in_the_middle_of_a_reply(stand: Stand, tmp_path: Path) -> None:
    redis = await start_redis(tmp_path / "redis")
    if not redis.is_real:
        await redis.stop()
        pytest.skip("fakeredis forgets its port")
    environment = {"REDIS_URL": redis.url, "REDIS_RETRY_SECONDS": "0.2"}
    first, second = await asyncio.gather(stand.start(**environment), stand.start(**environment))
    events: list[Event] = []
    call = first.user(USER).open_stream("Count", request_id="one", model="sim-200-20-0")
    await until_text(call, events)
    following = asyncio.create_task(second.user(USER).stream("Count", request_id="one", model="sim-200-20-0"))
    await asyncio.sleep(0.3)
    await redis.stop()
    await asyncio.sleep(0.8)
    redis = await start_redis(tmp_path / "redis")
    try:
        events += [event async for event in call]
        degraded = [one.degraded for one in checked(events) if one.WhichOneof("event") == "degraded"]
        assert [(list(one.parts), one.resumable) for one in degraded] == [(["log"], False)]
        assert len(text_of(events).split()) == 200
        assert await following == events
        assert await rest_of(second.user(USER), events[:3]) == events
    finally:
        await redis.stop()


async def test_without_redis_replies_are_written_and_saved_and_say_so(stand: Stand, tmp_path: Path) -> None:
    nowhere = {"REDIS_URL": f"unix://{tmp_path}/nowhere.sock"}
    first, second = await asyncio.gather(stand.start(**nowhere), stand.start(**nowhere))
    events = await first.user(USER).stream("Count", **ASKED)
    again = await first.user(USER).stream("Count", model="sim-5-0-0")
    assert not again[0].started.resumable
    assert list(again[0].started.degraded) == ["log"]
    assert text_of(events) == WHOLE
    assert await rest_of(second.user(USER), events[:5]) == events
    # One that another process writes is told at its end.
    running = asyncio.create_task(first.user(USER).stream("Count", request_id="two", model="sim-60-20-0"))
    await asyncio.sleep(0.3)
    followed = await second.user(USER).stream("Count", request_id="two", model="sim-60-20-0")
    assert followed == await running


async def test_a_process_that_stops_amid_a_transaction_keeps_its_replies_from_nobody(
    stand: Stand, chat_database: ServiceDatabase, postgres: EmbeddedPostgres
) -> None:
    first, second = await asyncio.gather(stand.start(), stand.start())
    await stand.simulator.control.script(ScriptedAnswer(text="Never ended", hold_after_tokens=1))
    told: list[Event] = []
    call = first.user(USER).open_stream("Hi", request_id="one")
    await until_text(call, told)
    async with await psycopg.AsyncConnection.connect(chat_database.migration_url) as blocker:
        await blocker.execute("select set_config('parley.scope', 'service', true)")
        await blocker.execute("select from generations for update")
        # Only a superuser sees what others wait for.
        async with await psycopg.AsyncConnection.connect(postgres.admin_url, autocommit=True) as looking:
            await soon(lambda: _renewal_waits(looking), within_seconds=5)
        # The renewal goes through once the lock is gone, and its process is not there to commit it.
        first.tell(signal.SIGSTOP)
    try:
        began = time.monotonic()
        whole = await rest_of(second.user(USER), told)
        assert time.monotonic() - began < PATIENCE_SECONDS
        assert whole[-1].failed.reason == "GENERATION_INTERRUPTED"
    finally:
        first.tell(signal.SIGCONT)


async def _renewal_waits(connection: psycopg.AsyncConnection) -> bool:
    waiting = "select from pg_stat_activity where wait_event_type = 'Lock' and query like '%lease_expire_time%'"
    return await (await connection.execute(waiting)).fetchone() is not None
