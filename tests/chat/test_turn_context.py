"""What the model is told of the conversation so far, and what memory is told of it."""

import asyncio

import pytest

from simulator.control import Fault, ScriptedAnswer
from simulator.server import Running
from tests.chat.conftest import Start
from tests.chat.peers import MemoryStandIn
from tests.chat.service import User, eventually, inputs, refusal, text_of
from tests.work import PATIENCE_SECONDS


async def test_the_second_turn_carries_the_first_and_the_instructions(user: User, simulator: Running) -> None:
    first = await user.create("My name is Ana.")
    second = await user.create("What is my name?", conversation_id=first.conversation_id, instructions="Be brief.")
    assert "Ana" in second.message.text
    assert second.message.sequence == 4
    asked = await inputs(simulator)
    assert asked[1] == [
        ("user", "My name is Ana."),
        ("assistant", first.message.text),
        ("user", "What is my name?"),
    ]
    bodies = [request.body for request in await simulator.control.requests("responses")]
    assert "helpful assistant" in bodies[0]["instructions"]
    assert bodies[1]["instructions"] == "Be brief."
    assert bodies[1]["store"] is False


async def test_without_memory_the_turn_goes_on_with_chats_own_messages(
    user: User, simulator: Running, memory: MemoryStandIn
) -> None:
    first = await user.create("My name is Ana.")
    memory.is_away = True
    events = await user.stream("What is my name?", conversation_id=first.conversation_id)
    assert events[0].started.degraded == ["memory"]
    assert "Ana" in text_of(events)
    assert len((await inputs(simulator))[1]) == 3


async def test_a_slow_memory_is_not_waited_for(start_chat: Start, memory: MemoryStandIn) -> None:
    async with start_chat(memory_timeout_seconds=0.2) as chat:
        user = chat.user()
        # A conversation's first turn has nothing to remember, and asks for nothing.
        begun = await user.create("Hello")
        memory.delay_seconds = 300
        async with asyncio.timeout(PATIENCE_SECONDS):
            events = await user.stream("Hi", conversation_id=begun.conversation_id)
        memory.delay_seconds = 0
    assert events[0].started.degraded == ["memory"]


async def test_what_memory_does_not_know_yet_is_added(user: User, simulator: Running, memory: MemoryStandIn) -> None:
    first = await user.create("First")
    await eventually(lambda: len(memory.turns.get(first.conversation_id, {})) == 2)
    memory.refuses_turns = True
    second = await user.create("Second", conversation_id=first.conversation_id)
    await user.create("Third", conversation_id=first.conversation_id)
    assert [text for _, text in (await inputs(simulator))[2]] == [
        "First", first.message.text, "Second", second.message.text, "Third",
    ]  # fmt: skip


@pytest.mark.parametrize("after_tokens", [0, 2])
async def test_a_reply_that_memory_holds_in_an_old_revision_is_told_anew(
    user: User, simulator: Running, memory: MemoryStandIn, after_tokens: int
) -> None:
    fault = Fault(kind="cut", after_tokens=after_tokens)
    await simulator.control.script(ScriptedAnswer(text="One two three", fault=fault))
    await refusal(user.create("Hi", request_id="again"))
    await eventually(lambda: any(len(known) == 2 for known in memory.turns.values()))
    conversation_id = next(iter(memory.turns))
    memory.refuses_turns = True
    await simulator.control.script(ScriptedAnswer(text="Whole."))
    again = await user.create("Hi", request_id="again")
    assert (again.conversation_id, again.message.text) == (conversation_id, "Whole.")
    await user.create("More", conversation_id=conversation_id)
    assert [text for _, text in (await inputs(simulator))[-1]] == ["Hi", "Whole.", "More"]


async def test_the_context_stays_within_the_budget_and_the_new_message_is_always_in(
    start_chat: Start, simulator: Running, memory: MemoryStandIn
) -> None:
    async with start_chat(context_token_budget=100) as chat:
        user = chat.user()
        memory.is_away = True
        said = [{"role": role, "text": f"{number} " + "x" * 120} for number, role in enumerate(["user", "assistant"] * 3)]
        await user.create(messages=[*said, {"role": "user", "text": "y" * 2000}])
    asked = (await inputs(simulator))[0]
    assert [text.split(" ")[0] for _, text in asked[:-1]] == ["4", "5"]
    assert asked[-1] == ("user", "y" * 2000)


async def test_memory_is_told_every_turn_in_the_users_name(user: User, memory: MemoryStandIn) -> None:
    said = [{"role": role, "text": f"{number}"} for number, role in enumerate(["user", "assistant"] * 49)]
    first = await user.create(messages=[*said, {"role": "user", "text": "Last"}])
    conversation_id = first.conversation_id
    await eventually(lambda: len(memory.turns.get(conversation_id, {})) == 100)
    await refusal(user.create("Fails", conversation_id=conversation_id, model="sim-9-0-0-cut-2"))
    await eventually(lambda: len(memory.turns[conversation_id]) == 102)
    known = memory.turns[conversation_id]
    messages = await user.messages(conversation_id)
    assert [(one.id, one.role, one.text) for one in messages] == [
        (known[sequence].message_id, known[sequence].role, known[sequence].text) for sequence in range(1, 103)
    ]
    assert memory.users[conversation_id] == user.id
    assert known[102].text.split() == ["tok0", "tok1"]


async def test_without_auth_memory_is_not_waited_for_either(start_chat: Start) -> None:
    async with start_chat(auth_target="ipv4:192.0.2.1:1", memory_timeout_seconds=0.3) as chat:
        user = chat.user()
        begun = await user.create("Hello", memory_enabled=True)
        async with asyncio.timeout(PATIENCE_SECONDS):
            events = await user.stream("Hi", conversation_id=begun.conversation_id, memory_enabled=True)
    assert "memory" in events[0].started.degraded
    assert events[-1].WhichOneof("event") == "completed"
