"""What the provider can do to a reply: each failure ends the stream and the call as the contract says, the text kept."""

import asyncio
import time

import grpc
import pytest

from simulator.control import Fault, ScriptedAnswer, ScriptedCall
from simulator.server import Running
from tests.chat.conftest import Start
from tests.chat.service import ChatProcess, User, refusal, text_of
from tests.chat.test_tasks import titles
from tests.work import PATIENCE_SECONDS

C = grpc.StatusCode
FAULTS = [
    ("sim-9-0-0-status-429-7", C.RESOURCE_EXHAUSTED, "MODEL_RATE_LIMITED", 0),
    ("sim-9-0-0-status-500", C.UNAVAILABLE, "MODEL_UNAVAILABLE", 0),
    ("sim-9-0-0-status-503", C.UNAVAILABLE, "MODEL_UNAVAILABLE", 0),
    ("sim-9-0-0-status-401", C.UNAVAILABLE, "MODEL_ACCESS_REFUSED", 0),
    ("sim-9-0-0-status-403", C.UNAVAILABLE, "MODEL_ACCESS_REFUSED", 0),
    ("sim-9-0-0-status-404", C.INVALID_ARGUMENT, "MODEL_REFUSED_REQUEST", 0),
    ("sim-9-0-0-status-400", C.INVALID_ARGUMENT, "MODEL_REFUSED_REQUEST", 0),
    ("sim-9-0-0-cut", C.UNAVAILABLE, "MODEL_UNAVAILABLE", 0),
    ("sim-9-0-0-cut-4", C.UNAVAILABLE, "MODEL_UNAVAILABLE", 4),
    ("sim-9-0-0-stall", C.DEADLINE_EXCEEDED, "MODEL_TIMED_OUT", 0),
    ("sim-9-0-0-stall-4", C.DEADLINE_EXCEEDED, "MODEL_TIMED_OUT", 4),
    ("sim-9-0-0-malformed-4", C.UNAVAILABLE, "MODEL_UNAVAILABLE", 4),
    ("sim-9-0-0-end-4", C.UNAVAILABLE, "MODEL_UNAVAILABLE", 4),
    ("sim-9-0-0-error-4", C.UNAVAILABLE, "MODEL_UNAVAILABLE", 4),
    ("sim-9-0-0-failed-4", C.UNAVAILABLE, "MODEL_UNAVAILABLE", 4),
]
LIMIT_SECONDS = 2.2
RETRIED = {"MODEL_RATE_LIMITED", "MODEL_UNAVAILABLE", "MODEL_TIMED_OUT"}


@pytest.mark.parametrize(("model", "code", "reason", "tokens"), FAULTS, ids=[fault[0] for fault in FAULTS])
async def test_a_failure_ends_stream_and_call_and_keeps_what_was_written(
    start_chat: Start, model: str, code: grpc.StatusCode, reason: str, tokens: int
) -> None:
    # A limit with a stated wait is waited for, where the deadline allows it.
    async with start_chat(openai_timeout_seconds=0.4, generation_deadline_seconds=5) as chat:
        user = chat.user()
        events = await user.stream("Count", model=model)
        refused = await refusal(user.create("Count", model=model))
    failed = events[-1].failed
    assert failed.reason == reason
    assert failed.HasField("retry_delay") == (reason in RETRIED)
    assert text_of(events) == failed.partial_message.text
    assert len(failed.partial_message.text.split()) == tokens
    assert (failed.partial_message.status, failed.partial_message.incomplete_reason) == ("incomplete", reason)
    assert (refused.code, refused.reason, refused.message) == (code, reason, failed.message)
    assert (refused.retry_seconds is not None) == (reason in RETRIED)
    assert refused.metadata["model"] == model


async def test_what_the_user_said_is_kept_with_the_marked_reply_and_the_next_turn_carries_both(
    user: User, simulator: Running
) -> None:
    events = await user.stream("Count", model="sim-9-0-0-cut-4")
    conversation_id = events[0].started.conversation_id
    said, reply = await user.messages(conversation_id)
    assert (said.text, said.status) == ("Count", "complete")
    assert reply == events[-1].failed.partial_message
    await user.stream("Refuse", model="sim-status-500", conversation_id=conversation_id)
    await user.create("Go on", conversation_id=conversation_id)
    asked = (await simulator.control.requests("responses"))[-1].body["input"]
    assert [one["content"] for one in asked] == ["Count", reply.text, "Refuse", "Go on"]


async def test_the_stated_delay_of_a_limit_that_outlasts_the_deadline_is_passed_on(start_chat: Start) -> None:
    async with start_chat(generation_deadline_seconds=5) as chat:
        user = chat.user()
        refused = await refusal(user.create("Hi", model="sim-status-429-7"))
        events = await user.stream("Hi", model="sim-status-429-7")
    assert refused.retry_seconds == 7
    assert refused.metadata == {"model": "sim-status-429-7"}
    assert events[-1].failed.retry_delay.seconds == 7


async def test_an_exhausted_quota_is_no_passing_limit(user: User, simulator: Running) -> None:
    fault = Fault(kind="status", status=429, code="insufficient_quota", message="Pay.")
    await simulator.control.script(ScriptedAnswer(fault=fault))
    refused = await refusal(user.create("Hi"))
    assert (refused.code, refused.reason) == (C.UNAVAILABLE, "MODEL_ACCESS_REFUSED")
    assert "Pay" not in refused.message


async def test_a_refused_parameter_is_named(user: User) -> None:
    refused = await refusal(user.create("Hi", model="sim-bad-name"))
    assert (refused.code, refused.reason) == (C.INVALID_ARGUMENT, "MODEL_REFUSED_REQUEST")
    assert refused.metadata == {"parameter": "model", "model": "sim-bad-name"}


async def test_what_fails_before_the_first_text_is_tried_again(start_chat: Start, simulator: Running) -> None:
    limited = Fault(kind="status", status=429, retry_after_seconds=1)
    await simulator.control.script(
        ScriptedAnswer(fault=limited), ScriptedAnswer(fault=Fault(kind="cut")), ScriptedAnswer(text="At last.")
    )
    async with start_chat(openai_max_retries=2, openai_retry_delay_seconds=0.05) as chat:
        begin = time.monotonic()
        answer = await chat.user().create("Hi")
    assert answer.message.text == "At last."
    assert time.monotonic() - begin >= 1
    assert len(await simulator.control.requests("responses")) == 3


async def test_what_fails_after_the_first_text_is_not_tried_again(start_chat: Start, simulator: Running) -> None:
    async with start_chat(openai_max_retries=2, openai_retry_delay_seconds=0.05) as chat:
        await refusal(chat.user().create("Hi", model="sim-9-0-0-cut-1"))
    assert len(await simulator.control.requests("responses")) == 1


async def test_a_wait_that_outlasts_the_generations_deadline_is_not_begun(start_chat: Start, simulator: Running) -> None:
    async with start_chat(openai_max_retries=2, generation_deadline_seconds=50) as chat:
        begin = time.monotonic()
        refused = await refusal(chat.user().create("Hi", model="sim-status-429-60"))
    assert (refused.reason, refused.retry_seconds) == ("MODEL_RATE_LIMITED", 60)
    assert time.monotonic() - begin < PATIENCE_SECONDS
    assert len(await simulator.control.requests("responses")) == 1


async def test_a_reply_that_outlasts_its_deadline_is_cut_with_its_text(start_chat: Start) -> None:
    async with start_chat(generation_deadline_seconds=0.5) as chat:
        events = await chat.user().stream("Count", model="sim-1000-50-0")
    assert events[-1].failed.reason == "MODEL_TIMED_OUT"
    assert text_of(events).startswith("tok0 tok1")


async def test_a_provider_that_is_not_there_is_unavailable(start_chat: Start) -> None:
    async with start_chat(openai_base_url="http://127.0.0.1:1/v1") as chat:
        refused = await refusal(chat.user().create("Hi"))
    assert (refused.code, refused.reason) == (C.UNAVAILABLE, "MODEL_UNAVAILABLE")


async def test_a_thousand_replies_leave_no_connection_behind(chat: ChatProcess, simulator: Running) -> None:
    user = chat.user()
    for _ in range(5):
        await user.create("Hi", model="sim-3-0-0")
    assert (await simulator.control.status()).running == 0


async def limited_between_rounds(simulator: Running, *, for_seconds: float, wait_seconds: int, after: str) -> None:
    """A provider that limits us for some time once a task was added, and says each time how long to wait."""
    limited = Fault(kind="status", status=429, retry_after_seconds=wait_seconds)
    await simulator.control.script(
        ScriptedAnswer(function_calls=[ScriptedCall(name="add_task", arguments={"title": "Once"})]),
        ScriptedAnswer(fault=limited, for_seconds=for_seconds),
        ScriptedAnswer(text=after),
        exhaustive=True,
    )


async def test_a_limit_that_ends_within_the_deadline_is_waited_for_to_its_end(start_chat: Start, simulator: Running) -> None:
    await limited_between_rounds(simulator, for_seconds=LIMIT_SECONDS, wait_seconds=1, after="At last.")
    async with start_chat(generation_deadline_seconds=300) as chat, start_chat() as other:
        user, asked = chat.user(), {"use_tasks": True, "request_id": "one"}
        begin = time.monotonic()
        reading = asyncio.create_task(user.stream("Add it", **asked))
        await asyncio.sleep(0.5)
        followed = await user.at(other).stream("Add it", **asked)
        assert LIMIT_SECONDS <= time.monotonic() - begin < PATIENCE_SECONDS
        assert await reading == followed
        assert followed[-1].completed.message.text == "At last."
        assert await titles(user) == ["Once"]


async def test_a_limit_that_outlasts_the_deadline_is_waited_for_no_longer(start_chat: Start, simulator: Running) -> None:
    # There is time for one wait, and none for two.
    await limited_between_rounds(simulator, for_seconds=6, wait_seconds=3, after="At last.")
    async with start_chat(generation_deadline_seconds=5.8) as chat, start_chat() as other:
        user, asked = chat.user(), {"use_tasks": True, "request_id": "one"}
        events = await user.stream("Add it", **asked)
        # Not MODEL_TIMED_OUT: a wait that would not end in time is not begun.
        assert (events[-1].failed.reason, events[-1].failed.retry_delay.seconds) == ("MODEL_RATE_LIMITED", 3)
        assert len(await simulator.control.requests("responses")) == 3
        await asyncio.sleep(4)
        again = await user.at(other).create("Add it", **asked)
        assert (again.message.text, [call.status for call in again.tool_calls]) == ("At last.", ["succeeded"])
        assert await titles(user) == ["Once"]
