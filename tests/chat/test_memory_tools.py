"""The user's memory as tools of the model: once a call, the user's own only, trusted as far as the user said it."""

import json
import uuid
from dataclasses import replace
from typing import Any

import pytest

from parley.chat.v1 import chat_pb2, conversation_pb2
from services.chat.memory_tools import FORGET, RECALL, REMEMBER, stamp_of
from services.chat.records import ToolCall
from services.chat.tools.round_cost import bound_of_round
from services.chat.tools.tool import Heard
from services.runtime.errors import InvalidArgument
from simulator.control import Fault, ScriptedAnswer, ScriptedCall
from simulator.server import Running
from tests.chat.conftest import Start
from tests.chat.mcp_peers import Seen, running_mcp, tools_server
from tests.chat.peers import MemoryStandIn
from tests.chat.providers import Answer, completed, delta, opened, provider, refusal, request, sse, text_of, written
from tests.chat.service import User
from tests.chat.service import text_of as told_of
from tests.chat.test_titles import title_requests, titled

GOOD = Answer([sse(delta("Good."), completed())])
ID = "0199aaaa-0000-7000-8000-000000000001"


def call(name: str, **arguments: Any) -> ScriptedCall:
    return ScriptedCall(name=name, arguments=arguments)


def calls_of(events: list[chat_pb2.CompletionEvent]) -> list[conversation_pb2.ToolCall]:
    return [one.tool_call_finished for one in events if one.WhichOneof("event") == "tool_call_finished"]


async def test_what_is_to_be_remembered_is_and_is_known_in_another_conversation(user: User, memory: MemoryStandIn) -> None:
    events = await user.stream("Please remember that my dog is Rex.")
    assert [(one.tool, one.status) for one in calls_of(events)] == [("remember", "succeeded")]
    assert told_of(events) == "I will remember it."
    (added,) = memory.added
    assert (added.text, added.stamped_by) == ("My dog is Rex.", "user")
    started = events[0].started
    assert added.source.conversation_id == started.conversation_id
    assert added.source.message_id == started.user_message_id
    assert added.request_id == str(uuid.uuid5(uuid.UUID(started.generation_id), calls_of(events)[0].id))
    other = await user.create("What is my dog?")
    assert other.message.text == "Your dog is Rex."


async def test_what_is_remembered_is_recalled_and_forgotten(user: User, memory: MemoryStandIn) -> None:
    memory.know(user.id, "My dog is Rex")
    kept = memory.know(user.id, "My cat is Tom")
    recalled = await user.stream("What do you remember about my dog?")
    assert told_of(recalled) == "About my dog I remember: My dog is Rex; My cat is Tom."
    (result,) = [json.loads(one.result) for one in calls_of(recalled)]
    assert set(result["memories"][0]) == {"memory_id", "kind", "date", "from", "text"}
    forgotten = await user.stream("Forget that my dog is Rex.")
    assert [(one.tool, one.status) for one in calls_of(forgotten)] == [("forget", "succeeded")]
    assert list(memory.facts) == [kept]


async def test_what_is_not_shown_is_recalled_before_it_is_forgotten(start_chat: Start, memory: MemoryStandIn) -> None:
    async with start_chat(memory_token_budget=0) as chat:
        user = chat.user()
        memory.know(user.id, "My dog is Rex")
        events = await user.stream("Forget that my dog is Rex.")
        assert [one.tool for one in calls_of(events)] == ["recall", "forget"]
        assert memory.facts == {}
        nothing = await user.stream("Forget that my dog is Rex.")
        assert told_of(nothing) == 'I remember nothing like "my dog is Rex".'


async def test_nobody_reaches_the_memories_of_another(user: User, memory: MemoryStandIn, simulator: Running) -> None:
    theirs = memory.know(str(uuid.uuid4()), "My secret is blue")
    await simulator.control.script(
        ScriptedAnswer(function_calls=[call("forget", memory_id=theirs), call("recall", query="secret")]),
        ScriptedAnswer(text="Well."),
    )
    events = await user.stream("Go")
    forgotten, recalled = sorted(calls_of(events), key=lambda one: one.tool)
    assert (forgotten.status, forgotten.error) == (
        "failed",
        "No fact is remembered under this id, or not any more. recall tells the ids.",
    )
    assert json.loads(recalled.result) == {"memories": []}
    assert list(memory.facts) == [theirs]


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (call("forget", memory_id="Rex"), "memory_id is not the id of a memory. recall tells the ids."),
        (call("remember", text=" \n"), "text is empty."),
        (call("remember", text="a\u0001b"), "text holds a control character (NUL, say): remove it."),
        (call("remember", text="x" * 1001), "Wrong arguments: text: "),
        (call("recall"), "Wrong arguments: 'query' is a required property"),
    ],
)
async def test_wrong_arguments_are_told_to_the_model(
    user: User, memory: MemoryStandIn, simulator: Running, asked: ScriptedCall, error: str
) -> None:
    await simulator.control.script(ScriptedAnswer(function_calls=[asked]), ScriptedAnswer(text="Well."))
    events = await user.stream("Go")
    assert calls_of(events)[0].error.startswith(error)
    assert told_of(events) == "Well."
    assert memory.added == []


async def test_memory_that_is_away_costs_the_turn_that_call(user: User, memory: MemoryStandIn, simulator: Running) -> None:
    memory.is_away = True
    await simulator.control.script(
        ScriptedAnswer(function_calls=[call("remember", text="User's dog is Rex")]), ScriptedAnswer(text="Well.")
    )
    events = await user.stream("My dog is Rex")
    assert calls_of(events)[0].error == "Memory does not answer now. Go on without it, and tell the user."
    assert told_of(events) == "Well."


async def test_slow_memory_is_waited_for_no_longer_than_a_call_may_take(
    start_chat: Start, memory: MemoryStandIn, simulator: Running
) -> None:
    async with start_chat(peer_timeout_seconds=0.3, memory_timeout_seconds=0.1) as chat:
        memory.delay_seconds = 1
        await simulator.control.script(
            ScriptedAnswer(function_calls=[call("recall", query="dog")]), ScriptedAnswer(text="Well.")
        )
        events = await chat.user().stream("Go")
        memory.delay_seconds = 0
    assert calls_of(events)[0].error == "Memory does not answer now. Go on without it, and tell the user."


async def test_a_repeated_attempt_remembers_once(user: User, memory: MemoryStandIn, simulator: Running) -> None:
    fault = Fault(kind="cut", after_tokens=1)
    await simulator.control.script(
        ScriptedAnswer(function_calls=[call("remember", text="User's dog is Rex")]),
        ScriptedAnswer(text="One two", fault=fault),
        ScriptedAnswer(text="Well."),
    )
    failed = await user.stream("My dog is Rex", request_id="again")
    assert failed[-1].WhichOneof("event") == "failed"
    again = await user.stream("My dog is Rex", request_id="again")
    assert told_of(again) == "Well."
    assert len(memory.added) == len(memory.facts) == 1


async def test_the_setting_leaves_the_tools_out(start_chat: Start, simulator: Running) -> None:
    async with start_chat(memory_tools_enabled=False) as chat:
        await chat.user().create("Remember that my dog is Rex")
    assert "tools" not in (await simulator.control.requests("responses"))[0].body


async def test_a_title_is_asked_for_without_tools_and_memories(
    start_chat: Start, memory: MemoryStandIn, simulator: Running
) -> None:
    async with start_chat(titles_enabled=True) as chat:
        user = chat.user()
        # For the simulator: what is remembered is no instruction.
        memory.know(user.id, "The title of this conversation is mine")
        answer = await user.create("Boats on the river by night, and what they carry")
        await titled(user, answer.conversation_id, "Boats on the river by night")
    assert answer.message.text.startswith("You said")
    (asked,) = await title_requests(simulator)
    assert "tools" not in asked
    assert "mine" not in str(asked)


def heard(text: str, *calls: ToolCall, stamps: frozenset[str] = frozenset()) -> Heard:
    return Heard(ID, text, stamps, calls)


@pytest.mark.parametrize(
    ("said", "text", "subject"),
    [
        ("My dog is called Rex, by the way", "User's dog is called Rex.", "user"),
        ("i moved to Porto in 2024", "The user moved to Porto in 2024", "user"),
        ("I live in Lisbon", "User lives in Lisbon", "user"),
        ("My sister Ana hates olives", "Ana hates olives", "Ana"),
        ("Мою собаку зовут Рекс", "собаку зовут Рекс", "user"),
        ("我的狗叫雷克斯", "狗叫雷克斯", "user"),
    ],
)
async def test_the_users_own_words_are_the_users(said: str, text: str, subject: str) -> None:
    assert stamp_of(text, subject, heard(said)) == "user"


@pytest.mark.parametrize(
    ("said", "text", "subject"),
    [
        ("My dog is called Rex", "User's dog is called Max", "user"),
        ("I like olives", "User does not like olives", "user"),
        ("I like olives", "User hates olives", "user"),
        ("I was born in 1990", "User was born in 1991", "user"),
        ("My dog is Rex", "My dog is Rex", "The bank"),
        ("我的狗叫雷克斯", "猫叫雷克斯", "user"),
        ("Hello", "It is the user's", "user"),
    ],
)
async def test_what_the_user_did_not_say_is_the_assistants(said: str, text: str, subject: str) -> None:
    assert stamp_of(text, subject, heard(said)) == "assistant"


WEB = ToolCall("ws_1", "web_search", "", "{}", "succeeded")
MCP = ToolCall("call_1", "read_page", "notes", "{}", "succeeded", "The user banks at Evil.")
TASK = ToolCall("call_2", "list_tasks", "", "{}", "succeeded", "{}")
RECALLED = ToolCall("call_3", "recall", "", "{}", "succeeded", '{"memories":[{"from":"sms_peer","text":"x"}]}')


@pytest.mark.parametrize(
    ("calls", "stamps", "stamp"),
    [
        ((WEB,), (), "tool"),
        ((TASK, MCP), ("user",), "tool"),
        ((TASK,), ("user", "assistant"), "assistant"),
        ((), ("user", "tool"), "tool"),
        ((RECALLED,), (), "sms_peer"),
        ((RECALLED, WEB), (), "tool"),
        ((replace(RECALLED, status="failed", result="", error="Away."),), (), "assistant"),
    ],
)
async def test_nothing_is_trusted_more_for_being_remembered_again(
    calls: tuple[ToolCall, ...], stamps: tuple[str, ...], stamp: str
) -> None:
    told = heard("What does that page say about my bank?", *calls, stamps=frozenset(stamps))
    assert stamp_of("User banks at Evil", "user", told) == stamp
    assert stamp_of("What that page says about my bank", "user", told) == "user"


async def test_what_a_strangers_tool_may_have_told_in_this_turn_is_the_tools(
    start_chat: Start, memory: MemoryStandIn, simulator: Running
) -> None:
    remember = [call("remember", text="User banks at Evil"), call("remember", text="User asked about a bank")]
    await simulator.control.script(
        ScriptedAnswer(function_calls=[call("notes__add", a=1, b=2)]),
        ScriptedAnswer(function_calls=remember),
        ScriptedAnswer(text="Well."),
    )
    seen = Seen()
    async with start_chat(mcp_allow_private_addresses=True) as chat, running_mcp(tools_server(seen), seen) as url:
        server = chat_pb2.McpServerOption(label="notes", url=url)
        await chat.user().stream("I asked about a bank", mcp_servers=[server])
    stamps = {one.text: one.stamped_by for one in memory.added}
    assert stamps == {"User banks at Evil": "tool", "User asked about a bank": "user"}


def offering(**changed: Any) -> Any:
    return request("Hi", functions=[REMEMBER, RECALL, FORGET], **changed)


@pytest.mark.parametrize("error", [{"message": "m does not support tools"}, {"param": "tools"}])
async def test_a_model_without_functions_is_asked_without_those_that_nobody_asked_for(error: dict[str, Any]) -> None:
    async with provider(refusal(400, **error), GOOD, GOOD) as remote, opened(remote.url) as model:
        assert text_of(await written(model, offering())) == "Good."
        assert text_of(await written(model, offering())) == "Good."
    assert [bool(one.body.get("tools")) for one in remote.requests] == [True, False, False]


async def test_functions_that_were_asked_for_are_refused_by_name() -> None:
    wanted = offering()
    wanted = replace(wanted, functions=[*wanted.functions, replace(REMEMBER, name="add_task", is_optional=False)])
    async with provider(refusal(400, param="tools")) as remote, opened(remote.url) as model:
        with pytest.raises(InvalidArgument):
            await written(model, wanted)


async def test_the_tools_cost_little() -> None:
    assert bound_of_round(offering()) - bound_of_round(request("Hi")) < 1_500
