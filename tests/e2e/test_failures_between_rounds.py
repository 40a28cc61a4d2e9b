"""When the provider fails in the round after a tool's: the task is there once, the text kept, every replica tells the same.

Each failure comes in a turn that has just added a task, in a reply of the calling process and in one that runs at the
provider by itself (background). The reader leaves before the failure and comes back at both chat processes and the edge.
"""

import asyncio
import uuid
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from parley.chat.v1 import chat_pb2, chat_pb2_grpc
from simulator.control import Control, Fault, ScriptedAnswer, ScriptedCall
from tests.e2e.harness import Client, Event, Json, Suite, check_sequence, generation_of, of_kind, reason_of, text_of

FIRST, WHOLE, PARTIAL = "Adding it.", "one two three four five", "one two three"
ADD = ScriptedCall(name="add_task", arguments={"title": "buy oats"}, call_id="call_1")
# High effort is what the default of OPENAI_BACKGROUND runs at the provider by itself.
EFFORT = {"foreground": {}, "background": {"reasoning_effort": "high"}}


@dataclass(frozen=True)
class Failure:
    """What the provider does in the second round, and what comes of it; without a reason the reply is completed."""

    fault: Fault
    reason: str = ""
    status: int = 200
    times: int = 1
    incomplete_reason: str = ""
    partial: str = PARTIAL

    @property
    def name(self) -> str:
        return f"{self.fault.kind}-{self.fault.status}" if self.fault.kind == "status" else self.fault.kind

    @property
    def text(self) -> str:
        return f"{FIRST}\n\n{self.partial}" if self.partial else FIRST

    @property
    def breaks_only_the_way(self) -> bool:
        return self.fault.breaks_the_transport


def _late(kind: Any) -> Fault:
    return Fault(kind=kind, after_tokens=3)


FAILURES = [
    # A wait that outlasts the reply's deadline (120 s by default) is not begun.
    Failure(Fault(kind="status", status=429, retry_after_seconds=150), "MODEL_RATE_LIMITED", 429, partial=""),
    Failure(Fault(kind="status", status=500), "MODEL_UNAVAILABLE", 503, times=2, partial=""),
    Failure(_late("cut"), "MODEL_UNAVAILABLE", 503),
    Failure(_late("malformed"), "MODEL_UNAVAILABLE", 503),
    Failure(_late("end"), "MODEL_UNAVAILABLE", 503),
    Failure(_late("stall"), "MODEL_TIMED_OUT", 504),
    Failure(_late("error"), "MODEL_UNAVAILABLE", 503),
    Failure(_late("failed"), "MODEL_UNAVAILABLE", 503),
    Failure(_late("incomplete"), incomplete_reason="MAX_OUTPUT_TOKENS"),
]
# What breaks the way to a run that goes on by itself costs nothing: it is read on.
HEALED = [replace(one, reason="", status=200, partial=WHOLE) for one in FAILURES if one.breaks_only_the_way]
CASES = [("foreground", one) for one in FAILURES]
CASES += [("background", one) for one in (*HEALED, *(one for one in FAILURES if not one.breaks_only_the_way))]
each_failure = pytest.mark.parametrize(("way", "failure"), CASES, ids=[f"{way}-{one.name}" for way, one in CASES])


@each_failure
async def test_a_stream_tells_the_same_everywhere_and_keeps_the_work(
    suite: Suite, client: Client, control: Control, way: str, failure: Failure
) -> None:
    await _script(control, failure)
    asked: Json = {"request_id": str(uuid.uuid4()), "use_tasks": True, **EFFORT[way]}
    seen = await _until_added(client, asked)
    everywhere = asyncio.gather(*(_rest_at(suite, client, replica, seen) for replica in range(2)))
    events = [*seen, *(await client.rest_of(generation_of(seen), len(seen)) or ())]
    check_sequence(events)
    told = [json_format.ParseDict(event.data, chat_pb2.CompletionEvent()) for event in events]
    for rest in await everywhere:
        assert [*told[: len(seen)], *rest] == told
    assert text_of(events) == failure.text
    _check_end(events[-1], failure)
    await _check_kept(client, events[0].data["started"]["conversation_id"], failure)
    await control.verify_consumed()
    if failure.reason:
        await control.script(ScriptedAnswer(text="Added it."), exhaustive=True)
    again = await client.streamed("add oats", **asked)
    check_sequence(again)
    await _check_repeat(client, again, failure)


@each_failure
async def test_a_unary_call_says_it_and_its_repeat_adds_nothing(
    client: Client, control: Control, way: str, failure: Failure
) -> None:
    await _script(control, failure)
    asked: Json = {"message": "add oats", "request_id": str(uuid.uuid4()), "use_tasks": True, **EFFORT[way]}
    answer = await client.http.post("/api/v1/chat/completions", json=asked, headers=client.headers)
    assert answer.status_code == failure.status, answer.text
    if failure.reason:
        assert reason_of(answer) == failure.reason
        assert [detail for detail in answer.json()["details"] if detail["@type"].endswith("RetryInfo")]
    listed = await client.call("GET", "/api/v1/chat/conversations")
    await _check_kept(client, listed["conversations"][0]["id"], failure)
    await control.verify_consumed()
    if failure.reason:
        await control.script(ScriptedAnswer(text="Added it."), exhaustive=True)
    again = await client.call("POST", "/api/v1/chat/completions", **asked)
    _check_message(again["message"], _repeated(failure))
    assert await _titles(client) == ["buy oats"]


async def test_a_limit_that_passes_within_the_deadline_is_waited_for_between_rounds(
    client: Client, control: Control
) -> None:
    """However often it is told: more often than other failures are tried again (once, here)."""
    limit = Fault(kind="status", status=429, retry_after_seconds=1)
    await control.script(
        ScriptedAnswer(text=FIRST, function_calls=[ADD]),
        ScriptedAnswer(fault=limit, times=3),
        ScriptedAnswer(text=WHOLE),
    )
    events = await client.streamed("add oats", use_tasks=True)
    check_sequence(events)
    assert events[-1].data["completed"]["message"]["text"] == f"{FIRST}\n\n{WHOLE}"
    outcomes = [request.outcome for request in await control.requests("responses")]
    assert outcomes == ["completed", "refused", "refused", "refused", "completed"]
    assert await _titles(client) == ["buy oats"]


async def _script(control: Control, failure: Failure) -> None:
    """A task, then the failure; in mid-text it is held back until the readers are there."""
    texts: Json = {"text": WHOLE} if failure.partial else {}
    await control.script(
        ScriptedAnswer(text=FIRST, function_calls=[ADD]),
        ScriptedAnswer(fault=failure.fault, times=failure.times, **texts),
        exhaustive=True,
    )


async def _until_added(client: Client, asked: Json) -> list[Event]:
    """The events until the task is there; then the reader leaves."""
    seen: list[Event] = []
    async with client.stream("add oats", **asked) as events:
        async for event in events:
            seen.append(event)
            if event.kind == "tool_call_finished":
                return seen
    raise AssertionError([event.data for event in seen])


async def _rest_at(suite: Suite, client: Client, replica: int, seen: list[Event]) -> list[chat_pb2.CompletionEvent]:
    asked = chat_pb2.SubscribeGenerationRequest(generation_id=generation_of(seen), after_sequence=len(seen))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{suite.port('CHAT') + replica}") as channel:
        stub: Any = chat_pb2_grpc.ChatServiceStub(channel)
        call = stub.SubscribeGeneration(asked, metadata=tuple(client.headers.items()), timeout=30)
        return [event async for event in call if event.sequence]


def _check_end(last: Event, failure: Failure) -> None:
    if not failure.reason:
        _check_message(last.data["completed"]["message"], failure)
        return
    failed = last.data["failed"]
    assert failed["reason"] == failure.reason
    assert failed["retry_delay"].endswith("s")
    _check_message(failed["partial_message"], failure)


def _check_message(message: Json, failure: Failure) -> None:
    """The text, marked where it is not whole, and the call with its result, once."""
    why = failure.reason or failure.incomplete_reason
    assert (message["text"], message["incomplete_reason"]) == (failure.text, why)
    assert message["status"] == ("incomplete" if why else "complete")
    calls = [part["tool_call"] for part in message["parts"] if "tool_call" in part]
    assert [(call["tool"], call["status"]) for call in calls] == [("add_task", "succeeded")]


async def _check_kept(client: Client, conversation_id: str, failure: Failure) -> None:
    full = await client.call("GET", f"/api/v1/chat/conversations/{conversation_id}/full")
    user, reply = full["messages"]
    assert (user["role"], user["text"], user["status"]) == ("user", "add oats", "complete")
    _check_message(reply, failure)
    assert await _titles(client) == ["buy oats"]


async def _check_repeat(client: Client, again: list[Event], failure: Failure) -> None:
    """A reply that failed is written again after what its tools did; another is told again."""
    assert [call["status"] for call in of_kind(again, "tool_call_finished")] == ["succeeded"]
    _check_message(again[-1].data["completed"]["message"], _repeated(failure))
    assert await _titles(client) == ["buy oats"]


def _repeated(failure: Failure) -> Failure:
    return replace(failure, reason="", partial="Added it.") if failure.reason else failure


async def _titles(client: Client) -> list[str]:
    return [task["title"] for task in (await client.call("GET", "/api/v1/tasks"))["tasks"]]
