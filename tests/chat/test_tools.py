"""The loop of tools: what the model has called, as readers see it, and what it comes to when things go wrong."""

import asyncio
import json
import time
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from parley.chat.v1 import chat_pb2
from simulator.control import Fault, ScriptedAnswer, ScriptedCall, ScriptedCitation
from simulator.server import Running
from suite.databases import ServiceDatabase
from suite.postgres import EmbeddedPostgres
from tests.chat.conftest import Start
from tests.chat.service import ChatProcess, User, asked_for_turns, text_of
from tests.chat.test_tasks import add, titles


def call(name: str, arguments: Any = None, **fields: Any) -> ScriptedCall:
    return ScriptedCall(name=name, arguments=arguments or {}, **fields)


def calls_of(events: list[chat_pb2.CompletionEvent]) -> list[tuple[str, str, str]]:
    """Tool and outcome of each call that ended, in the order in which they began."""
    begun = [one.tool_call_started.id for one in events if one.WhichOneof("event") == "tool_call_started"]
    ended = {one.tool_call_finished.id: one.tool_call_finished for one in events if one.HasField("tool_call_finished")}
    assert set(begun) == set(ended)
    return [(ended[key].tool, ended[key].status, ended[key].result or ended[key].error) for key in begun]


async def outputs(simulator: Running) -> list[str]:
    """What the model was told of its calls in the latest round."""
    body = (await simulator.control.requests("responses"))[-1].body
    return [item["output"] for item in body["input"] if item.get("type") == "function_call_output"]


async def test_tasks_by_natural_language_are_seen_and_stored(user: User) -> None:
    added = await user.stream("Add a task to buy groceries", use_tasks=True)
    assert [status for _, status, _ in calls_of(added)] == ["succeeded"]
    assert await titles(user) == ["buy groceries"]
    conversation_id = added[0].started.conversation_id
    listed = await user.stream("What is on my list?", use_tasks=True, conversation_id=conversation_id)
    assert [tool for tool, _, _ in calls_of(listed)] == ["list_tasks"]
    assert "buy groceries" in text_of(listed)
    done = await user.stream("Done with groceries", use_tasks=True, conversation_id=conversation_id)
    assert [tool for tool, _, _ in calls_of(done)] == ["list_tasks", "complete_task"]
    assert await titles(user, completed=True) == ["buy groceries"]
    saved = done[-1].completed.message
    assert (await user.messages(conversation_id))[-1] == saved
    kinds = [part.WhichOneof("part") for part in saved.parts]
    assert kinds == ["tool_call", "tool_call", "text"]
    assert [part.tool_call.status for part in saved.parts[:2]] == ["succeeded", "succeeded"]
    assert json.loads(saved.parts[1].tool_call.result)["completed"]["title"] == "buy groceries"


async def test_without_use_tasks_the_model_has_no_task_tools(user: User, simulator: Running) -> None:
    await user.create("Add a task to buy groceries")
    assert await titles(user) == []
    offered = (await simulator.control.requests("responses"))[-1].body["tools"]
    assert [tool["name"] for tool in offered] == ["remember", "recall", "forget"]


async def test_the_unary_call_tells_its_tool_calls(user: User) -> None:
    answer = await user.create("Add a task to buy groceries", use_tasks=True)
    assert [(one.tool, one.status) for one in answer.tool_calls] == [("add_task", "succeeded")]
    assert answer.usage.input_tokens > 0


async def test_what_goes_wrong_with_a_call_is_a_result_and_not_the_end(user: User, simulator: Running) -> None:
    await add(user, "Call Ana")
    await add(user, "Call Bob")
    await simulator.control.script(
        ScriptedAnswer(
            function_calls=[
                call("complete_task", {"title": "call"}),
                call("complete_task", {"title": "nothing like it"}),
                call("add_task", {"name": "wrong"}),
                call("add_task", {"title": "x" * 201}),
                call("add_task", {"title": "Soon", "due_time": "tomorrow"}),
                call("complete_task", {"task_id": "7"}),
                call("no_such_tool", {}),
                call("list_tasks", {"text": "a\0b"}),
                call("complete_task", {"title": "a\0b"}),
            ]
        ),
        ScriptedAnswer(text="That did not work."),
    )
    events = await user.stream("Go", use_tasks=True)
    assert text_of(events) == "That did not work."
    results = calls_of(events)
    assert {status for _, status, _ in results} == {"failed"}
    told = [text for _, _, text in results]
    assert "Call Ana" in told[0]
    assert "Call Bob" in told[0]
    assert told[1].startswith("No task has this title")
    assert told[2].startswith("Wrong arguments")
    assert "1 to 200" in told[3]
    assert told[4].startswith("due_time must be a time")
    assert "task_id" in told[5]
    assert told[6] == "There is no such tool."
    assert told[7].startswith("text holds a control character")
    assert told[8].startswith("title holds a control character")
    assert await outputs(simulator) == [f"Error: {text}" for text in told]
    assert await titles(user) == ["Call Bob", "Call Ana"]


async def test_calls_of_one_round_run_at_the_same_time_and_answer_in_order(
    start_chat: Start, simulator: Running, database: ServiceDatabase
) -> None:
    """Three calls that each hang until their time is over take one such time together; the others are not hindered."""
    async with start_chat(tool_timeout_seconds=2) as chat:
        user = chat.user()
        await add(user, "Here before")
        hanging = [call("add_task", {"title": str(number)}) for number in range(3)]
        await simulator.control.script(
            ScriptedAnswer(function_calls=[*hanging, call("list_tasks")]), ScriptedAnswer(text="Well.")
        )
        async with await psycopg.AsyncConnection.connect(database.migration_url) as connection:
            await connection.execute("select set_config('parley.scope', 'service', true)")
            await connection.execute("select * from task_counters where user_id = %s for update", (user.id,))
            begin = time.monotonic()
            events = await user.stream("Go", use_tasks=True)
            assert 1.9 < time.monotonic() - begin < 5
        results = calls_of(events)
        assert [(tool, status) for tool, status, _ in results] == [("add_task", "failed")] * 3 + [
            ("list_tasks", "succeeded")
        ]
        assert results[0][2] == "It did not answer within 2 seconds."
        assert text_of(events) == "Well."
        assert "Here before" in (await outputs(simulator))[3]
        assert await titles(user) == ["Here before"]


async def test_rounds_are_bounded_and_the_last_has_no_tools(start_chat: Start, simulator: Running) -> None:
    async with start_chat(max_tool_rounds=2) as chat:
        user = chat.user()
        await simulator.control.script(
            ScriptedAnswer(function_calls=[call("list_tasks")], times=2), ScriptedAnswer(text="Enough.")
        )
        events = await user.stream("Go on and on", use_tasks=True)
        assert len(calls_of(events)) == 2
        assert text_of(events) == "Enough."
        asked = [request.body for request in await simulator.control.requests("responses")]
        assert [bool(body.get("tools")) for body in asked] == [True, True, False]


async def test_calls_are_bounded_and_the_model_is_told(start_chat: Start, simulator: Running) -> None:
    async with start_chat(max_tool_calls=2) as chat:
        user = chat.user()
        wanted = [call("add_task", {"title": str(number)}) for number in range(3)]
        await simulator.control.script(ScriptedAnswer(function_calls=wanted), ScriptedAnswer(text="Enough."))
        events = await user.stream("Go", use_tasks=True)
        assert len(calls_of(events)) == 2
        assert len(await titles(user)) == 2
        told = await outputs(simulator)
        assert [text.startswith("It was not run") for text in told] == [False, False, True]
        assert not (await simulator.control.requests("responses"))[-1].body.get("tools")


async def test_usage_sums_over_the_rounds(user: User, simulator: Running) -> None:
    await simulator.control.script(ScriptedAnswer(function_calls=[call("list_tasks")]), ScriptedAnswer(text="One two three"))
    events = await user.stream("Go", use_tasks=True)
    first = await user.stream("Go")
    total, alone = events[-1].completed.message.usage, first[-1].completed.message.usage
    assert total.input_tokens > 2 * alone.input_tokens
    assert total.output_tokens > 3


async def test_text_of_two_rounds_is_apart(user: User, simulator: Running) -> None:
    await simulator.control.script(
        ScriptedAnswer(text="Let me look.", function_calls=[call("list_tasks")]), ScriptedAnswer(text="There is nothing.")
    )
    events = await user.stream("Go", use_tasks=True)
    saved = events[-1].completed.message
    assert saved.text == text_of(events) == "Let me look.\n\nThere is nothing."
    assert [part.WhichOneof("part") for part in saved.parts] == ["text", "tool_call", "text"]


async def test_the_next_attempt_does_nothing_twice(user: User, simulator: Running) -> None:
    """The task is there, the round after it failed: the same request once more goes on after it."""
    await simulator.control.script(
        ScriptedAnswer(function_calls=[call("add_task", {"title": "Once"})]),
        ScriptedAnswer(text="never", fault=Fault(kind="cut", after_tokens=0)),
        ScriptedAnswer(text="Added."),
    )
    failed = await user.stream("Add it", use_tasks=True, request_id="again")
    assert failed[-1].WhichOneof("event") == "failed"
    events = await user.stream("Add it", use_tasks=True, request_id="again")
    assert text_of(events) == "Added."
    assert [(tool, status) for tool, status, _ in calls_of(events)] == [("add_task", "succeeded")]
    assert await titles(user) == ["Once"]
    assert len(await outputs(simulator)) == 1


async def test_a_turn_with_a_tool_costs_few_statements(chat: ChatProcess, user: User) -> None:
    await user.create("Hi")
    await asyncio.sleep(1)
    chat.statements.clear()
    await user.create("What is on my list?", use_tasks=True)
    of_calls = [
        one
        for one in asked_for_turns(chat)
        if "tool_calls" in one or ("items" in one and "update generations" in one.lower())
    ]
    assert len(of_calls) <= 5, of_calls


@pytest.mark.parametrize("arguments", ["{", "[]", '{"title": 7}'])
async def test_arguments_that_are_no_object_or_do_not_fit_are_told(user: User, simulator: Running, arguments: str) -> None:
    await simulator.control.script(
        ScriptedAnswer(function_calls=[call("add_task", arguments)]), ScriptedAnswer(text="Sorry.")
    )
    events = await user.stream("Go", use_tasks=True)
    assert [status for _, status, _ in calls_of(events)] == ["failed"]
    assert await titles(user) == []


async def test_the_next_attempt_tells_again_what_earlier_rounds_said_and_did(chat: ChatProcess, simulator: Running) -> None:
    """The model is not asked for it again, so that it would be lost to the user."""
    source = ScriptedCitation(url="https://otters.example", title="Otters", start=0, end=5)
    await simulator.control.script(
        ScriptedAnswer(
            text="Otters swim.", citations=[source], reasoning="So…", function_calls=[call("add_task", {"title": "One"})]
        ),
        ScriptedAnswer(text="They play.", function_calls=[call("add_task", {"title": "Two"})]),
        ScriptedAnswer(text="They sleep.", fault=Fault(kind="cut", after_tokens=1)),
        ScriptedAnswer(text="Both are on your list."),
        exhaustive=True,
    )
    user, asked = chat.user(), {"use_tasks": True, "request_id": "one"}
    failed = (await user.stream("Add them", **asked))[-1].failed
    assert failed.partial_message.text.startswith("Otters swim.\n\nThey play.\n\nThey")
    again = await user.stream("Add them", **asked)
    message = again[-1].completed.message
    assert message.text == text_of(again) == "Otters swim.\n\nThey play.\n\nBoth are on your list."
    kinds = ["reasoning", "text", "tool_call", "text", "tool_call", "text"]
    assert [part.WhichOneof("part") for part in message.parts] == kinds
    assert [part.WhichOneof("part") for part in failed.partial_message.parts] == kinds
    for one in (failed.partial_message, message):
        assert [one.text[cited.start : cited.end] for cited in one.citations] == ["Otter"]
    assert sorted(await titles(user)) == ["One", "Two"]


async def test_a_task_that_was_changed_is_told_also_when_the_turn_is_cancelled_meanwhile(
    user: User, simulator: Running, postgres: EmbeddedPostgres
) -> None:
    await add(user, "Before")
    await simulator.control.script(ScriptedAnswer(function_calls=[call("add_task", {"title": "Milk"})]))
    url = make_conninfo(postgres.admin_url, dbname="parley_chat")
    async with await psycopg.AsyncConnection.connect(url) as connection:
        # The change waits for this, as for another change of the user.
        await connection.execute("select from task_counters where user_id = %s for update", [user.id])
        # The cancellation may have to wait for the change; the round after it takes longer than that.
        events = aiter(user.open_stream("Go", use_tasks=True, model="sim-5-0-1500"))
        told = [await anext(events)]
        while told[-1].WhichOneof("event") != "tool_call_started":
            told.append(await anext(events))
        asked = chat_pb2.CancelGenerationRequest(generation_id=told[0].started.generation_id)
        cancelling = asyncio.ensure_future(user.chat.CancelGeneration(asked, metadata=user.metadata, timeout=10))
        await asyncio.sleep(0.3)
    assert (await cancelling).status == "cancelled"
    told += [event async for event in events]
    assert [status for _, status, _ in calls_of(told)] == ["succeeded"]
    assert told[-1].cancelled.partial_message.parts[-1].tool_call.status == "succeeded"
    assert sorted(await titles(user)) == ["Before", "Milk"]
