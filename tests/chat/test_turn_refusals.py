"""Turns that are refused, and why."""

import asyncio
import uuid
from typing import Any

import grpc
import pytest

from simulator.control import ScriptedAnswer
from simulator.server import Running
from tests.chat.conftest import Start
from tests.chat.service import ChatProcess, User, held, refusal


async def test_two_turns_at_once_in_one_conversation_are_refused(user: User, simulator: Running) -> None:
    first = await user.create("Hi")
    await simulator.control.script(ScriptedAnswer(text="Slow", hold_after_tokens=0))
    running = asyncio.create_task(user.stream("One", conversation_id=first.conversation_id))
    await held(simulator)
    refused = await refusal(user.create("Two", conversation_id=first.conversation_id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "CONVERSATION_BUSY")
    assert refused.metadata == {"conversation_id": first.conversation_id}
    await simulator.control.release()
    await running
    assert len(await user.messages(first.conversation_id)) == 4


async def test_more_replies_than_the_process_may_write_are_refused(start_chat: Start, simulator: Running) -> None:
    async with start_chat(max_generations=1) as chat:
        await simulator.control.script(ScriptedAnswer(text="Slow", hold_after_tokens=0))
        running = asyncio.create_task(chat.user().stream("One"))
        await held(simulator)
        refused = await refusal(chat.user().create("Two"))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_GENERATIONS")
        assert refused.retry_seconds is not None
        await simulator.control.release()
        await running
        assert (await chat.user().create("Two")).message.status == "complete"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "message"),
    ({"message": "Hi", "messages": [{"role": "user", "text": "Hi"}]}, "message"),
    ({"message": "x" * 10_001}, "message"),
    ({"message": "a\x00b"}, "message"),
    ({"messages": [{"role": "assistant", "text": "Hi"}]}, "messages"),
    ({"messages": [{"role": "user", "text": "Hi"}] * 101}, "messages"),
    ({"messages": [{"role": "user", "text": "Hi"}] * 2, "conversation_id": str(uuid.uuid4())}, "messages"),
    ({"message": "Hi", "conversation_id": "seven"}, "conversation_id"),
    ({"message": "Hi", "request_id": "x" * 201}, "request_id"),
    ({"message": "Hi", "reasoning_effort": "huge"}, "reasoning_effort"),
    ({"message": "Hi", "max_output_tokens": 1}, "max_output_tokens"),
    ({"message": "Hi", "temperature": 2.5}, "temperature"),
    ({"message": "Hi", "metadata": {"k" * 65: "v"}}, "metadata"),
    ({"message": "Hi", "metadata": {"k": "v" * 513}}, "metadata"),
    ({"message": "Hi", "metadata": {str(number): "v" for number in range(17)}}, "metadata"),
]


@pytest.mark.parametrize(("asked", "field"), REFUSED)
async def test_a_request_that_breaks_a_rule_is_refused_by_field(user: User, asked: dict[str, Any], field: str) -> None:
    refused = await refusal(user.create(**asked))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert any(field in named for named in refused.fields), refused.fields
    streamed = user.open_stream(**asked)
    assert (await refusal(anext(aiter(streamed)))).fields == refused.fields


async def test_the_longest_message_is_taken(user: User) -> None:
    assert (await user.create("ä" * 10_000)).message.status == "complete"


async def test_somebody_elses_conversation_does_not_exist(chat: ChatProcess) -> None:
    theirs = await chat.user().create("Mine")
    refused = await refusal(chat.user().create("Hi", conversation_id=theirs.conversation_id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND")
    assert (await refusal(chat.user().create("Hi", conversation_id=str(uuid.uuid4())))).reason == refused.reason


async def test_nobody_is_answered_without_identity(chat: ChatProcess) -> None:
    user = chat.user()
    user.metadata = ()
    assert (await refusal(user.create("Hi"))).code is grpc.StatusCode.UNAUTHENTICATED
