"""Turns as a client sees them: answers, events, and what a reader may do."""

import asyncio
from typing import Any

import grpc
import pytest

from parley.chat.v1 import conversation_pb2
from simulator.control import Match, ScriptedAnswer
from simulator.server import Running
from tests.chat.conftest import Start
from tests.chat.peers import MemoryStandIn
from tests.chat.service import ChatProcess, Request, User, eventually, held, inputs, refusal, text_of, unpacked


async def test_a_message_is_answered_and_both_are_saved(user: User, simulator: Running) -> None:
    await simulator.control.script(ScriptedAnswer(text="Hello, Ana."))
    answer = await user.create("Hi, I am Ana.", metadata={"screen": "home"})
    assert answer.message.text == "Hello, Ana."
    assert (answer.message.role, answer.message.status, answer.message.sequence) == ("assistant", "complete", 2)
    assert (answer.user_message.text, answer.user_message.sequence) == ("Hi, I am Ana.", 1)
    assert answer.user_message.metadata == {"screen": "home"}
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens > 0
    assert answer.model == "gpt-5-mini"
    assert answer.generation_id == answer.message.generation_id
    assert list(await user.messages(answer.conversation_id)) == [answer.user_message, answer.message]


async def test_a_stream_starts_tells_the_text_and_the_cost_and_completes(user: User) -> None:
    events = await user.stream("Count", model="sim-20-2-0")
    assert [one.WhichOneof("event") for one in events[-2:]] == ["usage", "completed"]
    assert text_of(events) == events[-1].completed.message.text
    assert text_of(events).split() == [f"tok{number}" for number in range(20)]
    saved = (await user.messages(events[0].started.conversation_id))[1]
    assert saved == events[-1].completed.message
    assert saved.id == events[0].started.message_id
    assert saved.timings.processing_time_ms >= saved.timings.time_to_first_token_ms >= 0
    assert saved.usage == events[-2].usage
    assert events[0].started.degraded == []


async def test_what_comes_in_one_read_is_one_event(user: User) -> None:
    events = await user.stream("Count", model="sim-500-0-0")
    assert len(text_of(events).split()) == 500
    assert len(events) < 100


async def test_options_of_the_request_reach_the_provider_and_others_are_not_sent(user: User, simulator: Running) -> None:
    await user.create("Hi")
    await user.create("Hi", model="o4-mini", reasoning_effort="low", max_output_tokens=64, temperature=0.5)
    plain, full = [request.body for request in await simulator.control.requests("responses")]
    assert {"reasoning", "max_output_tokens", "temperature"}.isdisjoint(plain)
    assert (full["model"], full["max_output_tokens"]) == ("o4-mini", 64)
    assert full["reasoning"] == {"effort": "low", "summary": "auto"}
    assert full["temperature"] == 0.5
    assert user.id not in str(full)


async def test_earlier_messages_begin_a_conversation_and_are_stored(user: User, simulator: Running) -> None:
    said = [{"role": "user", "text": "One"}, {"role": "assistant", "text": "Two"}, {"role": "user", "text": "Three"}]
    answer = await user.create(messages=said)
    assert (await inputs(simulator))[0] == [(one["role"], one["text"]) for one in said]
    saved = await user.messages(answer.conversation_id)
    assert [one.sequence for one in saved] == [1, 2, 3, 4]
    assert [one.text for one in saved[:3]] == ["One", "Two", "Three"]


async def test_a_reply_at_the_token_limit_is_complete_as_an_event_and_marked_incomplete(user: User) -> None:
    events = await user.stream("Count", model="sim-50-0-0", max_output_tokens=16)
    reply = events[-1].completed.message
    assert (reply.status, reply.incomplete_reason) == ("incomplete", "MAX_OUTPUT_TOKENS")
    assert len(reply.text.split()) == 16


async def test_a_client_that_leaves_changes_nothing(user: User) -> None:
    call = user.open_stream("Count", model="sim-40-10-0")
    async for event in call:
        if event.WhichOneof("event") == "text_delta":
            break
        conversation_id = event.started.conversation_id
    call.cancel()
    assert (await user.messages(conversation_id))[1].status == "generating"
    for _ in range(200):
        saved = (await user.messages(conversation_id))[1]
        if saved.status != "generating":
            break
        await asyncio.sleep(0.02)
    assert (saved.status, len(saved.text.split())) == ("complete", 40)


async def test_an_unary_caller_whose_deadline_passes_finds_the_reply_saved(user: User) -> None:
    asked = Request(message="Count", model="sim-20-20-0", request_id="late")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await user.chat.CreateCompletion(asked, metadata=user.metadata, timeout=0.15)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len((await user.create(**fields(asked))).message.text.split()) == 20


def fields(request: Request) -> dict[str, Any]:
    return {descriptor.name: value for descriptor, value in request.ListFields()}


async def test_a_deletion_cancels_the_reply_that_is_being_written(
    user: User, simulator: Running, memory: MemoryStandIn
) -> None:
    await simulator.control.script(
        ScriptedAnswer(text="Never said to the end", hold_after_tokens=2, match=Match(text="stream")),
        ScriptedAnswer(text="Neither is this", hold_after_tokens=1, match=Match(text="unary")),
    )
    running = asyncio.create_task(user.stream("stream"))
    await held(simulator)
    unary = asyncio.create_task(refusal(user.create("unary")))
    await held(simulator, 2)
    listed = await user.conversations.ListConversations(conversation_pb2.ListConversationsRequest(), metadata=user.metadata)
    for conversation in listed.conversations:
        assert (await user.delete(conversation.id)).deleted_messages == 2
    events = await running
    assert events[-1].WhichOneof("event") == "cancelled"
    assert not events[-1].cancelled.HasField("partial_message")
    assert (await unary).reason == "CONVERSATION_NOT_FOUND"
    await eventually(lambda: {one.id for one in listed.conversations} <= memory.forgotten)


async def test_silence_is_filled_with_heartbeats(start_chat: Start) -> None:
    async with start_chat(heartbeat_seconds=0.1) as chat:
        events = [one async for one in chat.user().open_stream("Count", model="sim-3-0-500")]
    kinds = [one.WhichOneof("event") for one in events]
    assert 3 <= kinds.count("heartbeat") <= 6
    assert kinds[0] == "started"


async def test_a_reader_that_is_behind_when_the_reply_is_let_go_is_cut_and_finds_it_saved(start_chat: Start) -> None:
    async with start_chat(reader_retention_seconds=0.2) as chat:
        user = chat.user()
        # More than the connection's windows hold, to a reader that does not read.
        asked = {"request_id": "slow", "model": "sim-40000-0-0"}
        narrow = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
        channel = grpc.aio.insecure_channel(chat.target, options=narrow)
        call = User(channel, user.metadata, user.id).open_stream("Count", **asked)
        read = [await call.read()]
        answer = await user.create("Count", **asked)
        await eventually(lambda: chat.generations.find(answer.generation_id) is None)
        try:
            while (event := await call.read()) is not grpc.aio.EOF:
                read.append(event)
            pytest.fail(f"read to the end: {len(read)} events")
        except grpc.aio.AioRpcError as error:
            refused = unpacked(error)
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "READER_TOO_SLOW")
        assert refused.metadata == {"last_sequence": str(read[-1].sequence)}
        assert answer.message.text.startswith(text_of(read))
        assert text_of(await user.stream("Count", **asked)) == answer.message.text
        await channel.close()


async def test_a_process_that_drains_begins_nothing_and_saves_what_it_has(start_chat: Start, simulator: Running) -> None:
    async with start_chat() as chat:
        user = chat.user()
        await simulator.control.script(ScriptedAnswer(text="one two three four", hold_after_tokens=3))
        running = asyncio.create_task(user.stream("Hi"))
        await held(simulator)
        draining = asyncio.create_task(chat.generations.drain(within_seconds=0.3))
        await asyncio.sleep(0.1)
        refused = await refusal(user.create("Another"))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVICE_STOPPING")
        await draining
        events = await running
        failed = events[-1].failed
        assert (failed.reason, failed.partial_message.text) == ("GENERATION_INTERRUPTED", text_of(events))
        assert len((await user.messages(events[0].started.conversation_id))[1].text) > 0


async def test_a_deletion_reaches_the_reply_that_another_process_writes(start_chat: Start, simulator: Running) -> None:
    async with start_chat(lease_renew_seconds=0.2) as here, start_chat(heartbeat_seconds=0.1) as there:
        user = here.user()
        await simulator.control.script(ScriptedAnswer(text="Never said to the end", hold_after_tokens=2))
        running = asyncio.create_task(user.stream("Hi", request_id="one"))
        await held(simulator)
        following = asyncio.create_task(user.at(there).stream("Hi", request_id="one"))
        await asyncio.sleep(0.2)
        asked = conversation_pb2.ListConversationsRequest()
        listed = await user.at(there).conversations.ListConversations(asked, metadata=user.metadata)
        await user.at(there).delete(listed.conversations[0].id)
        for events in (await running, await following):
            assert events[-1].WhichOneof("event") == "cancelled"


async def test_many_streams_at_once_lose_and_double_nothing(chat: ChatProcess) -> None:
    streams = (chat.user().stream("Count", model="sim-100-5-10") for _ in range(50))
    for events in await asyncio.gather(*streams):
        assert text_of(events).split() == [f"tok{number}" for number in range(100)]
