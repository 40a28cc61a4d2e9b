"""Chat as real processes: killed, stopped, continued and told to end in the middle of replies."""

import asyncio
import signal
import sys
import time

import grpc
import pytest

from parley.chat.v1 import chat_pb2
from simulator.control import ScriptedAnswer
from tests.chat.service import checked, text_of
from tests.faults.stand import LEASE_SECONDS, ROOT, USER, Stand, soon, until_text
from tests.work import PATIENCE_SECONDS


async def test_a_killed_process_costs_the_turn_at_most_its_lease(stand: Stand) -> None:
    first, second = await asyncio.gather(stand.start(), stand.start())
    asked = {"request_id": "one", "model": "sim-60-20-0"}
    before: list[chat_pb2.CompletionEvent] = []
    await until_text(first.user(USER).open_stream("Count", **asked), before)
    # Follows the reply of the process that is about to die.
    following = asyncio.create_task(second.user(USER).stream("Count", **asked))
    await asyncio.sleep(0.2)
    first.tell(signal.SIGKILL)
    await first.exit_code()
    begin = time.monotonic()
    answer = await second.user(USER).create("Count", **asked)
    # The lease, a sweep, and the reply itself (60 tokens, 20 ms each): 4 s.
    assert time.monotonic() - begin < PATIENCE_SECONDS
    assert answer.message.text.split() == [f"tok{number}" for number in range(60)]
    events = await following
    # It goes on from what the log holds, and says how it ended.
    assert events[: len(before)] == before
    assert events[-1].failed.reason == "GENERATION_INTERRUPTED"
    assert events[-1].failed.partial_message.text == text_of(events)
    assert answer.message.id == before[0].started.message_id
    messages = await second.user(USER).messages(answer.conversation_id)
    assert messages == [answer.user_message, answer.message]
    assert len(await stand.simulator.control.requests("responses")) == 2


async def test_a_reply_nobody_asks_for_again_does_not_stay_generating(stand: Stand) -> None:
    first, second = await asyncio.gather(stand.start(), stand.start())
    before: list[chat_pb2.CompletionEvent] = []
    await until_text(first.user(USER).open_stream("Count", model="sim-100-20-0"), before)
    await asyncio.sleep(0.7)
    first.tell(signal.SIGKILL)
    await first.exit_code()
    conversation_id = before[0].started.conversation_id

    async def is_closed() -> bool:
        return (await second.user(USER).messages(conversation_id))[1].status == "incomplete"

    await soon(is_closed, within_seconds=LEASE_SECONDS * 2 + 2)
    said, reply = await second.user(USER).messages(conversation_id)
    assert (said.text, reply.incomplete_reason) == ("Count", "GENERATION_INTERRUPTED")
    # What was written until the last sign of life is kept.
    assert reply.text.startswith("tok0 tok1")


async def test_a_process_that_sleeps_past_its_lease_writes_nothing_more(stand: Stand) -> None:
    first, second = await asyncio.gather(stand.start(), stand.start())
    # Its reply would be another text than the one of the process that takes over.
    await stand.simulator.control.script(
        ScriptedAnswer(text="the sleeper's words are never saved", hold_after_tokens=2), ScriptedAnswer(text="Awake.")
    )
    sleeping: list[chat_pb2.CompletionEvent] = []
    call = first.user(USER).open_stream("Hi", request_id="one")
    await until_text(call, sleeping)
    first.tell(signal.SIGSTOP)
    try:
        answer = await second.user(USER).create("Hi", request_id="one")
        await stand.simulator.control.release()
    finally:
        first.tell(signal.SIGCONT)
    assert answer.message.text == "Awake."
    sleeping += [event async for event in call]
    assert checked(sleeping)[-1].failed.reason == "GENERATION_INTERRUPTED"
    await asyncio.sleep(0.5)
    for chat in (first, second):
        assert await chat.user(USER).messages(answer.conversation_id) == [answer.user_message, answer.message]
        assert await chat.user(USER).create("Hi", request_id="one") == answer


async def test_a_stop_lets_replies_end(stand: Stand) -> None:
    chat = await stand.start()
    events: list[chat_pb2.CompletionEvent] = []
    call = chat.user(USER).open_stream("Count", model="sim-60-20-0")
    await until_text(call, events)
    chat.tell(signal.SIGTERM)
    events += [event async for event in call]
    assert checked(events)[-1].completed.message.status == "complete"
    assert len(text_of(events).split()) == 60
    assert await chat.exit_code() == 0


async def test_a_reply_that_outlasts_the_drain_is_told_saved_and_taken_up_elsewhere(stand: Stand) -> None:
    first, second = await asyncio.gather(stand.start(DRAIN_SECONDS="1"), stand.start())
    await stand.simulator.control.script(ScriptedAnswer(text="one two three four", hold_after_tokens=3))
    events: list[chat_pb2.CompletionEvent] = []
    call = first.user(USER).open_stream("Hi", request_id="one")
    await until_text(call, events)
    first.tell(signal.SIGTERM)
    events += [event async for event in call]
    failed = checked(events)[-1].failed
    assert failed.reason == "GENERATION_INTERRUPTED"
    assert failed.HasField("retry_delay")
    assert failed.partial_message.text == text_of(events) != ""
    assert await first.exit_code() == 0
    saved = (await second.user(USER).messages(events[0].started.conversation_id))[1]
    assert saved == failed.partial_message
    again = await second.user(USER).create("Hi", request_id="one")
    assert (again.message.id, again.message.status) == (saved.id, "complete")
    await stand.simulator.control.release()


async def test_a_stopping_process_begins_no_reply(stand: Stand) -> None:
    chat = await stand.start(DRAIN_SECONDS="2")
    await stand.simulator.control.script(ScriptedAnswer(text="one two three", hold_after_tokens=1))
    events: list[chat_pb2.CompletionEvent] = []
    call = chat.user(USER).open_stream("Hi")
    await until_text(call, events)
    chat.tell(signal.SIGTERM)
    await asyncio.sleep(0.3)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await chat.user(USER).create("Another")
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    await stand.simulator.control.release()
    events += [event async for event in call]
    assert checked(events)[-1].WhichOneof("event") == "completed"
    assert await chat.exit_code() == 0


async def test_bad_settings_are_named_all_at_once(stand: Stand) -> None:
    environment = {**stand.environment, "LEASE_SECONDS": "0", "LISTEN_ADDRESS": "nowhere"}
    del environment["OPENAI_API_KEY"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.chat", cwd=ROOT, env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    for variable in (b"LEASE_SECONDS", b"LISTEN_ADDRESS", b"METRICS_ADDRESS", b"OPENAI_API_KEY"):
        assert variable in said
