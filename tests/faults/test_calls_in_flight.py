"""Chat dies, or sleeps, while a tool runs that is not exactly-once: the call is never made again, and everybody is told so.

The tool is one of a real MCP server; what became of a call that was cut is unknown, and that is its result.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from mcp.server.mcpserver import MCPServer

from parley.chat.v1 import chat_pb2
from simulator.control import ScriptedAnswer, ScriptedCall
from tests.chat.mcp_peers import Seen, running_mcp
from tests.chat.service import User, checked, text_of
from tests.chat.test_tasks import titles
from tests.faults.stand import Chat, Stand, soon

USER = "0199aaaa-0000-7000-8000-000000000003"
UNKNOWN = "whether it took effect is unknown"
# What a reader sees of a process that is gone.
BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
Event = chat_pb2.CompletionEvent


@dataclass
class Notes:
    """An MCP server whose one tool notes each call and then takes its time."""

    url: str = ""
    calls: list[str] = field(default_factory=list)
    answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def called(self, times: int) -> None:
        async def is_called() -> bool:
            return len(self.calls) >= times

        await soon(is_called, within_seconds=10)

    def option(self) -> chat_pb2.McpServerOption:
        return chat_pb2.McpServerOption(label="notes", url=self.url)


@pytest.fixture
async def notes() -> AsyncIterator[Notes]:
    notes, server = Notes(), MCPServer("notes")

    @server.tool()
    async def keep(text: str) -> str:
        notes.calls.append(text)
        await notes.answer.wait()
        return "kept"

    async with running_mcp(server, Seen()) as url:
        notes.url = url
        yield notes
        notes.answer.set()


def keep(text: str) -> ScriptedCall:
    return ScriptedCall(name="notes__keep", arguments={"text": text}, call_id="call_1")


async def replicas(stand: Stand, count: int, background: str) -> list[Chat]:
    settings = {"OPENAI_BACKGROUND": background, "MCP_ALLOW_PRIVATE_ADDRESSES": "true"}
    return list(await asyncio.gather(*(stand.start(**settings) for _ in range(count))))


async def read_into(call: Any, events: list[Event]) -> None:
    """Every event until the end, or until the process is gone."""
    try:
        async for event in call:
            if event.sequence:
                events.append(event)  # noqa: PERF401 - what came before the break counts
    except grpc.aio.AioRpcError as error:
        if error.code() not in BROKEN:
            raise


async def kill(chat: Chat) -> None:
    chat.tell(signal.SIGKILL)
    await chat.exit_code()


def resumed(user: User, events: list[Event]) -> Any:
    asked = chat_pb2.SubscribeGenerationRequest(
        generation_id=events[0].started.generation_id, after_sequence=events[-1].sequence
    )
    return user.chat.SubscribeGeneration(asked, metadata=user.metadata, timeout=30)


def ends_of_calls(events: list[Event]) -> list[tuple[str, str, bool]]:
    ended = [event.tool_call_finished for event in events if event.HasField("tool_call_finished")]
    return [(call.tool, call.status, UNKNOWN in call.error) for call in ended]


async def outputs(stand: Stand) -> list[str]:
    """What the model was told of its calls in the latest request."""
    asked = (await stand.simulator.control.requests("responses"))[-1]
    return [item["output"] for item in asked.body["input"] if item.get("type") == "function_call_output"]


async def test_a_call_cut_by_a_kill_is_not_made_again(stand: Stand, notes: Notes) -> None:
    await stand.simulator.control.script(
        ScriptedAnswer(text="Keeping it.", function_calls=[keep("one")]), ScriptedAnswer(text="I cannot tell.")
    )
    first, second = await replicas(stand, 2, "on")
    events: list[Event] = []
    call = first.user(USER).open_stream("Keep it", mcp_servers=[notes.option()], request_id="one")
    reading = asyncio.create_task(read_into(call, events))
    await notes.called(1)
    await kill(first)
    await reading
    await read_into(resumed(second.user(USER), events), events)
    assert checked(events)[-1].completed.message.text == text_of(events) == "Keeping it.\n\nI cannot tell."
    assert ends_of_calls(events) == [("keep", "failed", True)]
    assert notes.calls == ["one"]
    (told,) = await outputs(stand)
    assert UNKNOWN in told
    parts = [part.tool_call for part in events[-1].completed.message.parts if part.HasField("tool_call")]
    assert [(part.status, UNKNOWN in part.error) for part in parts] == [("failed", True)]


async def test_a_call_cut_without_background_is_not_made_again_by_the_repeat(stand: Stand, notes: Notes) -> None:
    await stand.simulator.control.script(
        ScriptedAnswer(text="Keeping it.", function_calls=[keep("one")]), ScriptedAnswer(text="I cannot tell.")
    )
    first, second = await replicas(stand, 2, "off")
    asked: dict[str, Any] = {"mcp_servers": [notes.option()], "request_id": "one"}
    events: list[Event] = []
    reading = asyncio.create_task(read_into(first.user(USER).open_stream("Keep it", **asked), events))
    await notes.called(1)
    await kill(first)
    await reading
    await read_into(resumed(second.user(USER), events), events)
    assert checked(events)[-1].failed.reason == "GENERATION_INTERRUPTED"
    assert events[-1].failed.partial_message.text == text_of(events) == "Keeping it."
    again = await second.user(USER).stream("Keep it", **asked)
    assert again[-1].WhichOneof("event") == "completed"
    assert ends_of_calls(again) == [("keep", "failed", True)]
    assert notes.calls == ["one"]
    (told,) = await outputs(stand)
    assert UNKNOWN in told


async def test_who_sleeps_through_a_call_past_its_lease_changes_nothing_when_it_wakes(stand: Stand, notes: Notes) -> None:
    await stand.simulator.control.script(
        ScriptedAnswer(function_calls=[keep("one")]), ScriptedAnswer(text="I cannot tell."), exhaustive=True
    )
    first, second = await replicas(stand, 2, "on")
    slept: list[Event] = []
    call = first.user(USER).open_stream("Keep it", mcp_servers=[notes.option()], request_id="one")
    reading = asyncio.create_task(read_into(call, slept))
    await notes.called(1)
    first.tell(signal.SIGSTOP)
    try:
        events = list(slept)
        await read_into(resumed(second.user(USER), events), events)
        # The server's answer waits for the sleeper.
        notes.answer.set()
        await asyncio.sleep(0.3)
    finally:
        first.tell(signal.SIGCONT)
    await reading
    assert checked(slept) == checked(events)
    assert ends_of_calls(events) == [("keep", "failed", True)]
    await asyncio.sleep(0.5)
    assert notes.calls == ["one"]
    for chat in (first, second):
        seen = list(events[:1])
        await read_into(resumed(chat.user(USER), seen), seen)
        assert seen == events
    await stand.simulator.control.verify_consumed()


async def test_two_take_overs_in_a_row_do_every_call_once(stand: Stand, notes: Notes) -> None:
    add = ScriptedCall(name="add_task", arguments={"title": "Once"}, call_id="call_2")
    await stand.simulator.control.script(
        ScriptedAnswer(text="First.", function_calls=[keep("one")]),
        ScriptedAnswer(text="Second.", function_calls=[add, keep("two")]),
        ScriptedAnswer(text="Third and last.", hold_after_tokens=1),
        exhaustive=True,
    )
    first, second = await replicas(stand, 2, "on")
    events: list[Event] = []
    opened = first.user(USER).open_stream("Do it", mcp_servers=[notes.option()], use_tasks=True)
    reading = asyncio.create_task(read_into(opened, events))
    await notes.called(1)
    await kill(first)
    await reading
    reading = asyncio.create_task(read_into(resumed(second.user(USER), events), events))
    await notes.called(2)
    (third,) = await replicas(stand, 1, "on")
    await kill(second)
    await reading
    reading = asyncio.create_task(read_into(resumed(third.user(USER), events), events))
    await stand.simulator.control.wait(held=1)
    await stand.simulator.control.release()
    await reading
    assert checked(events)[-1].completed.message.text == text_of(events) == "First.\n\nSecond.\n\nThird and last."
    assert sorted(ends_of_calls(events)) == [("add_task", "succeeded", False), *[("keep", "failed", True)] * 2]
    assert notes.calls == ["one", "two"]
    assert await titles(third.user(USER)) == ["Once"]
    await stand.simulator.control.verify_consumed()
