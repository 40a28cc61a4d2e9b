"""Generations that are followed, left, cut, cancelled and found again: here or from elsewhere, live and after the end."""

import asyncio
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from parley.chat.v1 import chat_pb2
from services.chat.log.entries import KEY
from simulator.control import Fault, ScriptedAnswer
from simulator.server import Running
from tests.chat.conftest import Start
from tests.chat.service import ChatProcess, User, checked, eventually, held, refusal, text_of
from tests.work import PATIENCE_SECONDS

Event = chat_pb2.CompletionEvent
LAST_EVENT_ID = "last-event-id"


def follow(user: User, generation_id: str, *, after: int = 0, header: str | None = None) -> Any:
    asked = chat_pb2.SubscribeGenerationRequest(generation_id=generation_id, after_sequence=after)
    metadata = (*user.metadata, (LAST_EVENT_ID, header)) if header is not None else user.metadata
    return user.chat.SubscribeGeneration(asked, metadata=metadata, timeout=20)


async def followed(user: User, generation_id: str, *, after: int = 0, header: str | None = None) -> list[Event]:
    call = follow(user, generation_id, after=after, header=header)
    return [one async for one in call if one.WhichOneof("event") != "heartbeat"]


async def read_on(call: Any, read: list[Event]) -> None:
    while (event := await call.read()) is not grpc.aio.EOF:
        read.append(event)


async def generation(user: User, generation_id: str) -> chat_pb2.Generation:
    asked = chat_pb2.GetGenerationRequest(generation_id=generation_id)
    return await user.chat.GetGeneration(asked, metadata=user.metadata, timeout=10)


async def cancel(user: User, generation_id: str) -> chat_pb2.Generation:
    asked = chat_pb2.CancelGenerationRequest(generation_id=generation_id)
    return await user.chat.CancelGeneration(asked, metadata=user.metadata, timeout=10)


async def begun(user: User, text: str, simulator: Running, **fields: Any) -> tuple["asyncio.Task[list[Event]]", str]:
    """A stream whose reply stands still after some words, and its generation."""
    call = user.open_stream(text, **fields)
    first = await call.read()

    async def rest() -> list[Event]:
        events = [first]
        while (event := await call.read()) is not grpc.aio.EOF:
            events.append(event)
        return checked(events)

    task = asyncio.create_task(rest())
    await held(simulator)
    return task, first.started.generation_id


async def test_several_follow_from_two_processes_and_get_the_same(start_chat: Start, simulator: Running) -> None:
    async with start_chat() as here, start_chat() as there:
        user = here.user()
        await simulator.control.script(ScriptedAnswer(text="one two three four five six", hold_after_tokens=3))
        running, generation_id = await begun(user, "Hi", simulator)
        following = [
            asyncio.create_task(followed(each, generation_id, after=after))
            for each in (user, user.at(there))
            for after in (0, 0, 2)
        ]
        await asyncio.sleep(0.2)
        await simulator.control.release()
        events = await running
        for task, after in zip(following, (0, 0, 2) * 2, strict=True):
            assert await task == events[after:]
        assert events[0].started.resumable
        assert text_of(events) == "one two three four five six"


async def test_every_place_is_resumed_live_after_the_end_and_without_the_log(
    start_chat: Start, simulator: Running, redis_url: str
) -> None:
    async with start_chat() as here, start_chat() as there, Redis.from_url(redis_url) as redis:
        user = here.user()
        await simulator.control.script(ScriptedAnswer(text="one two three four five six", hold_after_tokens=4))
        running, generation_id = await begun(user, "Hi", simulator)
        live = [asyncio.create_task(followed(user.at(there), generation_id, after=after)) for after in range(8)]
        await asyncio.sleep(0.2)
        await simulator.control.release()
        events = await running
        last = len(events)
        for after, task in enumerate(live):
            assert await task == events[after:]
        for after in range(last + 2):
            assert await followed(user.at(there), generation_id, after=after) == events[after:]
        assert await redis.delete(KEY + generation_id) == 1
        for process in (here, there):
            await eventually(lambda process=process: process.generations.find(generation_id) is None)  # type: ignore[misc]
            for after in range(last + 2):
                assert await followed(user.at(process), generation_id, after=after) == events[after:]


async def test_following_a_finished_one_past_its_end_says_so_and_tells_nothing(user: User) -> None:
    events = await user.stream("Count", model="sim-5-0-0")
    generation_id, last = events[0].started.generation_id, events[-1].sequence
    call = follow(user, generation_id, after=last)
    assert [one async for one in call] == []
    assert ("x-parley-finished", "1") in [(key, value) for key, value in await call.initial_metadata()]
    before = follow(user, generation_id, after=last - 1)
    assert [one async for one in before] == events[-1:]
    assert "x-parley-finished" not in dict(await before.initial_metadata())


async def test_the_greater_of_header_and_field_counts(user: User) -> None:
    events = await user.stream("Count", model="sim-5-3-0")
    generation_id = events[0].started.generation_id
    assert await followed(user, generation_id, after=1, header="3") == events[3:]
    assert await followed(user, generation_id, after=3, header="1") == events[3:]
    assert await followed(user, generation_id, header="0") == events
    for rubbish in ("x", "-1", "1.5", "99999999999"):
        refused = await refusal(followed(user, generation_id, header=rubbish))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_another_user_finds_nothing(chat: ChatProcess, user: User, simulator: Running) -> None:
    await simulator.control.script(ScriptedAnswer(text="one two three", hold_after_tokens=1))
    running, generation_id = await begun(user, "Hi", simulator)
    stranger = chat.user()
    for call in (followed(stranger, generation_id), generation(stranger, generation_id), cancel(stranger, generation_id)):
        refused = await refusal(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "GENERATION_NOT_FOUND")
    await simulator.control.release()
    assert (await running)[-1].WhichOneof("event") == "completed"


async def test_a_generation_tells_how_far_it_is(start_chat: Start, simulator: Running) -> None:
    async with start_chat() as here, start_chat() as there:
        user = here.user()
        await simulator.control.script(ScriptedAnswer(text="one two three", hold_after_tokens=2))
        running, generation_id = await begun(user, "Hi", simulator)
        await asyncio.sleep(0.1)
        for process in (here, there):
            seen = await generation(user.at(process), generation_id)
            assert (seen.status, seen.HasField("usage"), seen.HasField("end_time")) == ("running", False, False)
            assert seen.sequence >= 2
        await simulator.control.release()
        events = await running
        for process in (here, there):
            seen = await generation(user.at(process), generation_id)
            assert (seen.status, seen.sequence) == ("completed", len(events))
            assert seen.usage == events[-1].completed.message.usage
            assert seen.HasField("end_time")


@pytest.mark.parametrize("is_remote", [False, True])
async def test_a_cancelled_reply_keeps_what_was_written(start_chat: Start, simulator: Running, *, is_remote: bool) -> None:
    async with start_chat() as here, start_chat() as there:
        user = here.user()
        await simulator.control.script(ScriptedAnswer(text="one two three four", hold_after_tokens=2))
        running, generation_id = await begun(user, "Hi", simulator, request_id="one")
        unary = asyncio.create_task(refusal(user.create("Hi", request_id="one")))
        following = asyncio.create_task(followed(user.at(there), generation_id))
        await asyncio.sleep(0.1)
        caller = user.at(there) if is_remote else user
        async with asyncio.timeout(PATIENCE_SECONDS):
            stopped = await cancel(caller, generation_id)
        events = await running
        partial = events[-1].cancelled.partial_message
        assert partial.text == text_of(events) != ""
        assert (partial.status, partial.incomplete_reason) == ("incomplete", "GENERATION_CANCELLED")
        assert (stopped.status, stopped.sequence) == ("cancelled", len(events))
        assert await following == events
        assert (await unary).reason == "GENERATION_CANCELLED"
        assert (await user.messages(events[0].started.conversation_id))[1] == partial
        assert await cancel(caller, generation_id) == stopped
        assert await followed(user.at(there), generation_id) == events


async def test_a_deletion_is_told_to_those_who_follow_from_elsewhere(
    start_chat: Start, simulator: Running, redis_url: str
) -> None:
    async with start_chat() as here, start_chat() as there, Redis.from_url(redis_url) as redis:
        user = here.user()
        await simulator.control.script(ScriptedAnswer(text="one two three", hold_after_tokens=2))
        running, generation_id = await begun(user, "Hi", simulator)
        following = asyncio.create_task(followed(user.at(there), generation_id))
        await asyncio.sleep(0.2)
        conversation_id = (await generation(user, generation_id)).conversation_id
        await user.at(there).delete(conversation_id)
        for events in (await running, checked(await following)):
            assert events[-1].WhichOneof("event") == "cancelled"
            assert not events[-1].cancelled.HasField("partial_message")
        refused = await refusal(generation(user, generation_id))
        assert refused.reason == "GENERATION_NOT_FOUND"
        # No text of it stays behind.
        await asyncio.sleep(0.1)
        assert await redis.exists(KEY + generation_id) == 0


async def test_an_attempt_that_was_superseded_is_told_as_it_was(start_chat: Start, simulator: Running) -> None:
    async with start_chat() as here, start_chat() as there:
        user = here.user()
        await simulator.control.script(
            ScriptedAnswer(text="one two three four", fault=Fault(kind="cut", after_tokens=2)), ScriptedAnswer(text="Well.")
        )
        failed = await user.stream("Hi", request_id="one")
        again = await user.stream("Hi", request_id="one")
        assert failed[-1].WhichOneof("event") == "failed"
        assert again[-1].completed.message.text == "Well."
        for events in (failed, again):
            for process in (here, there):
                assert await followed(user.at(process), events[0].started.generation_id) == events


async def test_a_stream_that_takes_nothing_is_cut_and_the_rest_is_had_by_following(start_chat: Start) -> None:
    async with start_chat(reader_stall_seconds=0.6) as chat:
        user = chat.user()
        narrow = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
        channel = grpc.aio.insecure_channel(chat.target, options=narrow)
        call = User(channel, user.metadata, user.id).open_stream("Count", model="sim-40000-0-0")
        read = [await call.read()]
        generation_id = read[0].started.generation_id
        await asyncio.sleep(1.2)
        refused = await refusal(read_on(call, read))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "READER_TOO_SLOW")
        rest = await followed(user, generation_id, after=read[-1].sequence)
        assert len(text_of(checked([*read, *rest])).split()) == 40000
        await channel.close()


async def test_a_reader_who_leaves_costs_nothing_and_comes_back(start_chat: Start, simulator: Running) -> None:
    async with start_chat() as here, start_chat() as there:
        user = here.user()
        await simulator.control.script(ScriptedAnswer(text="one two three four", hold_after_tokens=2))
        running, generation_id = await begun(user, "Hi", simulator)
        for _ in range(3):
            call = follow(user.at(there), generation_id)
            assert (await call.read()).sequence == 1
            call.cancel()
        await simulator.control.release()
        events = await running
        assert await followed(user.at(there), generation_id, after=1) == events[1:]


async def test_a_process_that_still_connects_to_redis_can_be_stopped(start_chat: Start, mute_redis: str) -> None:
    for seconds in (0.0, 0.02, 0.05, 0.15):
        async with asyncio.timeout(10):
            async with start_chat(redis_url=mute_redis, redis_timeout_seconds=5):
                await asyncio.sleep(seconds)
