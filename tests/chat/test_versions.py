"""The last turn, said or answered anew: its versions, who may, what the model and memory are told."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from parley.chat.v1 import chat_pb2
from parley.chat.v1 import conversation_pb2 as pb
from simulator.control import Fault, ScriptedAnswer
from simulator.server import Running
from tests.chat.conftest import Start
from tests.chat.peers import MemoryStandIn
from tests.chat.service import ChatProcess, User, eventually, held, inputs, refusal, text_of
from tests.chat.test_conversations import full, get, page

Versions = list[tuple[int, int, str, bool]]


def shown(messages: list[pb.Message]) -> Versions:
    return [(one.sequence, one.version, one.text, one.is_superseded) for one in messages]


async def read(call: Any) -> list[chat_pb2.CompletionEvent]:
    return [one async for one in call]


async def told(memory: MemoryStandIn, conversation_id: str, texts: list[str]) -> None:
    def knows() -> bool:
        known = memory.turns.get(conversation_id, {})
        return [known[sequence].text for sequence in sorted(known)] == texts

    try:
        await eventually(knows, within_seconds=30)
    except AssertionError:
        raise AssertionError([one.text for one in memory.turns.get(conversation_id, {}).values()]) from None


async def test_a_reply_is_written_anew_and_the_old_one_kept(user: User, simulator: Running) -> None:
    await simulator.control.script(ScriptedAnswer(text="One."), ScriptedAnswer(text="Two."))
    first = await user.create("Say a number", metadata={"from": "test"})
    events = await user.regenerate(first.message)
    started, saved = events[0].started, events[-1].completed.message
    assert text_of(events) == saved.text == "Two."
    assert started.user_message_id == first.user_message.id
    assert started.message_id == saved.id != first.message.id
    assert (saved.sequence, saved.version, saved.is_superseded) == (2, 2, False)
    conversation_id = first.conversation_id
    assert await user.messages(conversation_id) == [first.user_message, saved]
    assert list((await full(user, conversation_id)).messages) == [first.user_message, saved]
    assert shown(await user.versions(conversation_id)) == [
        (1, 1, "Say a number", False), (2, 1, "One.", True), (2, 2, "Two.", False),
    ]  # fmt: skip
    assert (await get(user, conversation_id)).message_count == 2
    # What was replaced is not told to the model, neither then nor later.
    await user.create("Another", conversation_id=conversation_id)
    asked = [[text for _, text in one] for one in await inputs(simulator)]
    assert asked == [["Say a number"], ["Say a number"], ["Say a number", "Two.", "Another"]]
    assert (await user.delete(conversation_id)).deleted_messages == 4


async def test_the_last_message_is_said_anew_and_answered(user: User, simulator: Running) -> None:
    before = await user.create("My name is Ana.")
    conversation_id = before.conversation_id
    old = await user.create("What is my nam?", conversation_id=conversation_id, metadata={"from": "test"})
    await simulator.control.script(ScriptedAnswer(text="Ana, of course."))
    events = await user.edit(old.user_message, "What is my name?", options={"instructions": "Be brief."})
    messages = await user.messages(conversation_id)
    assert [one.text for one in messages] == ["My name is Ana.", before.message.text, "What is my name?", "Ana, of course."]
    said = messages[2]
    assert (said.id, said.version, dict(said.metadata)) == (events[0].started.user_message_id, 2, {"from": "test"})
    assert said.id != old.user_message.id
    assert [text for _, text in (await inputs(simulator))[-1]] == [
        "My name is Ana.",
        before.message.text,
        "What is my name?",
    ]
    bodies = [request.body for request in await simulator.control.requests("responses")]
    assert bodies[-1]["instructions"].startswith("Be brief.")
    assert [(one.sequence, one.version, one.is_superseded) for one in await user.versions(conversation_id)] == [
        (1, 1, False), (2, 1, False), (3, 1, True), (3, 2, False), (4, 1, True), (4, 2, False),
    ]  # fmt: skip
    assert (await get(user, conversation_id)).message_count == 4


async def test_editing_the_first_message_makes_the_title_anew_unless_it_is_the_users(user: User) -> None:
    first = await user.create("Helo")
    await user.edit(first.user_message, "Hello")
    assert (await get(user, first.conversation_id)).title == "Hello"
    asked = pb.UpdateConversationRequest(conversation_id=first.conversation_id, title="Mine")
    await user.conversations.UpdateConversation(asked, metadata=user.metadata, timeout=10)
    said = (await user.messages(first.conversation_id))[0]
    await user.edit(said, "Good evening")
    assert (await get(user, first.conversation_id)).title == "Mine"


@pytest.mark.parametrize("model", ["sim-9-0-0-cut-0", "sim-9-0-0-cut-3"])
async def test_a_turn_that_failed_can_be_answered_anew(user: User, model: str) -> None:
    failed = (await user.stream("Hi", model=model))[-1].failed.partial_message
    events = await user.regenerate(failed)
    assert events[-1].WhichOneof("event") == "completed"
    assert [one.status for one in await user.messages(failed.conversation_id)] == ["complete", "complete"]


async def test_a_call_that_is_repeated_attaches_to_the_turn(user: User, simulator: Running) -> None:
    first = await user.create("Hi")
    once = await user.regenerate(first.message, request_id="again")
    assert await user.regenerate(first.message, request_id="again") == once
    said = (await user.messages(first.conversation_id))[0]
    changed = await user.edit(said, "Ho", request_id="edit")
    assert await user.edit(said, "Ho", request_id="edit") == changed
    assert await user.regenerate(first.message, request_id="again") == once
    refused = [
        await refusal(read(user.open_edit(said, "Hu", request_id="edit"))),
        await refusal(read(user.open_regenerate(first.message, request_id="edit"))),
        await refusal(user.create("Ho", request_id="edit")),
    ]
    assert {(one.code, one.reason) for one in refused} == {(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")}
    assert len(await inputs(simulator)) == 3


async def test_a_regeneration_that_failed_is_tried_again_under_its_request_id(user: User, simulator: Running) -> None:
    first = await user.create("Hi")
    await simulator.control.script(ScriptedAnswer(text="One two", fault=Fault(kind="cut", after_tokens=1)))
    failed = await user.regenerate(first.message, request_id="again")
    assert failed[-1].WhichOneof("event") == "failed"
    await simulator.control.script(ScriptedAnswer(text="Whole."))
    events = await user.regenerate(first.message, request_id="again")
    assert events[-1].completed.message.text == "Whole."
    assert [(one.version, one.is_superseded) for one in await user.versions(first.conversation_id)] == [
        (1, False), (1, True), (2, False),
    ]  # fmt: skip
    # Once its reply is an earlier version itself, it is only told.
    await user.regenerate(events[-1].completed.message)
    assert await user.regenerate(first.message, request_id="again") == events


async def test_a_replacement_whose_process_stopped_is_tried_again(start_chat: Start, simulator: Running) -> None:
    async with start_chat(openai_background="off") as second:
        async with start_chat(openai_background="off") as first:
            user = first.user()
            answer = await user.create("Hi")
            await simulator.control.script(ScriptedAnswer(text="Never told.", hold_after_tokens=1))
            call = user.open_regenerate(answer.message, request_id="again")
            await anext(aiter(call))
            await held(simulator)
        call.cancel()
        await simulator.control.release()
        await simulator.control.script(ScriptedAnswer(text="Told."))
        for _ in range(50):
            end = (await user.at(second).regenerate(answer.message, request_id="again"))[-1]
            if end.WhichOneof("event") == "completed":
                break
            assert end.failed.reason == "GENERATION_INTERRUPTED"
            await asyncio.sleep(0.1)
        assert end.completed.message.text == "Told."
        messages = await user.at(second).messages(answer.conversation_id)
        assert [one.text for one in messages] == ["Hi", "Told."]
        assert [one.version for one in await user.at(second).versions(answer.conversation_id)] == [1, 1, 2]


async def test_only_the_last_turn_can_be_replaced(user: User) -> None:
    first = await user.create("First")
    last = await user.create("Last", conversation_id=first.conversation_id)
    for call in (user.open_edit(first.user_message, "x"), user.open_regenerate(first.message)):
        refused = await refusal(read(call))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_LAST_TURN")
    newer = (await user.regenerate(last.message))[-1].completed.message
    # Nor one of its earlier versions.
    assert (await refusal(read(user.open_regenerate(last.message)))).reason == "NOT_LAST_TURN"
    wrong = [user.open_edit(newer, "x"), user.open_regenerate(last.user_message), user.open_edit(last.user_message, "")]
    fields = [(await refusal(read(call))).fields for call in wrong]
    assert fields == [["message_id"], ["message_id"], ["message"]]
    assert (await get(user, first.conversation_id)).message_count == 4


async def test_nobody_elses_turn_can_be_replaced(chat: ChatProcess) -> None:
    owner, stranger = chat.user(), chat.user()
    theirs = await owner.create("Mine")
    own = await stranger.create("Own")
    for call in (stranger.open_edit(theirs.user_message, "x"), stranger.open_regenerate(theirs.message)):
        refused = await refusal(read(call))
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND")
    for message_id in (theirs.user_message.id, str(uuid.uuid4())):
        mixed = pb.Message(id=message_id, conversation_id=own.conversation_id)
        for call in (stranger.open_edit(mixed, "x"), stranger.open_regenerate(mixed)):
            refused = await refusal(read(call))
            assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "MESSAGE_NOT_FOUND")
    assert await owner.messages(theirs.conversation_id) == [theirs.user_message, theirs.message]


async def test_a_turn_that_runs_is_not_replaced(user: User, simulator: Running) -> None:
    await simulator.control.script(ScriptedAnswer(text="Slow.", hold_after_tokens=0))
    call = user.open_stream("Hi")
    started = (await anext(aiter(call))).started
    await held(simulator)
    reply = pb.Message(id=started.message_id, conversation_id=started.conversation_id)
    refused = await refusal(read(user.open_regenerate(reply)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "CONVERSATION_BUSY")
    await simulator.control.release()
    assert [one async for one in call][-1].completed.message.text == "Slow."
    assert len(await user.versions(started.conversation_id)) == 2


async def test_of_many_edits_at_once_there_is_never_more_than_one_current_version(chat: ChatProcess) -> None:
    user = chat.user()
    first = await user.create("Hi")

    async def attempt(number: int) -> str:
        try:
            call = user.open_edit(first.user_message, str(number)) if number % 2 else user.open_regenerate(first.message)
            return (await read(call))[-1].WhichOneof("event") or ""
        except grpc.aio.AioRpcError as error:
            return error.code().name

    outcomes = await asyncio.gather(*(attempt(number) for number in range(8)))
    # A regeneration may come before an edit: the message that this names is still the last then.
    assert 1 <= outcomes.count("completed") <= 2, outcomes
    assert set(outcomes) <= {"completed", "FAILED_PRECONDITION", "ABORTED"}
    versions = await user.versions(first.conversation_id)
    assert [one.sequence for one in versions if not one.is_superseded] == [1, 2]
    assert len({(one.sequence, one.version) for one in versions}) == len(versions)
    assert (await get(user, first.conversation_id)).message_count == 2


async def test_the_images_stay_when_the_message_is_said_anew(user: User) -> None:
    picture = b"\x89PNG\r\n\x1a\n" + b"\x00" * 100
    images = [chat_pb2.InputImage(url="https://example.com/a.png"), chat_pb2.InputImage(data=picture)]
    first = await user.create("What is it?", images=images)
    expected = [pb.MessageImage(url="https://example.com/a.png"), pb.MessageImage(media_type="image/png", size_bytes=108)]
    assert list(first.user_message.images) == expected
    await user.edit(first.user_message, "What is this?")
    versions = await user.versions(first.conversation_id)
    assert [list(one.images) for one in versions if one.role == "user"] == [expected, expected]
    assert [list(one.images) for one in versions if one.role == "assistant"] == [[], []]


async def test_memory_forgets_what_was_replaced_at_once_and_is_told_the_new(
    user: User, simulator: Running, memory: MemoryStandIn
) -> None:
    first = await user.create("First")
    conversation_id = first.conversation_id
    second = await user.create("Second", conversation_id=conversation_id)
    both = ["First", first.message.text, "Second", second.message.text]
    await told(memory, conversation_id, both)
    await simulator.control.script(ScriptedAnswer(text="Anew.", hold_after_tokens=0))
    call = user.open_edit(second.user_message, "Changed")
    await anext(aiter(call))
    await told(memory, conversation_id, both[:2])
    await simulator.control.release()
    await read(call)
    await told(memory, conversation_id, [*both[:2], "Changed", "Anew."])
    assert memory.ends_forgotten == [(conversation_id, 3)]


async def test_memory_that_was_away_is_told_rightly_in_the_end(
    user: User, simulator: Running, memory: MemoryStandIn
) -> None:
    first = await user.create("First")
    conversation_id = first.conversation_id
    await told(memory, conversation_id, ["First", first.message.text])
    memory.is_away = True
    await simulator.control.script(*(ScriptedAnswer(text=text) for text in ("Two.", "Three.", "Four.", "Five.")))
    reply = (await user.regenerate(first.message))[-1].completed.message
    await user.regenerate(reply)
    second = await user.create("Second", conversation_id=conversation_id)
    await user.edit(second.user_message, "Changed")
    memory.is_away = False
    texts = ["First", "Three.", "Changed", "Five."]
    await told(memory, conversation_id, texts)
    # However late or often the jobs come.
    await eventually(lambda: len(memory.ends_forgotten) >= 3, within_seconds=20)
    await told(memory, conversation_id, texts)
    await simulator.control.script(ScriptedAnswer(text="Six."))
    await user.create("Third", conversation_id=conversation_id)
    assert [text for _, text in (await inputs(simulator))[-1]] == [*texts, "Third"]


async def test_while_memory_holds_the_old_the_model_is_told_the_new(
    user: User, simulator: Running, memory: MemoryStandIn
) -> None:
    await simulator.control.script(*(ScriptedAnswer(text=text) for text in ("One.", "Two.", "Three.", "Four.", "Five.")))
    first = await user.create("First")
    conversation_id = first.conversation_id
    second = await user.create("Second", conversation_id=conversation_id)
    await told(memory, conversation_id, ["First", "One.", "Second", "Two."])
    memory.refuses_turns = True
    # As if memory had not been told to forget: it holds two turns of which both were replaced.
    held_by_memory = dict(memory.turns[conversation_id])
    newer = (await user.regenerate(second.message))[-1].completed.message
    await eventually(lambda: bool(memory.ends_forgotten))
    memory.turns[conversation_id] = held_by_memory
    await user.edit((await user.messages(conversation_id))[2], "Changed")
    await eventually(lambda: len(memory.ends_forgotten) == 2)
    memory.turns[conversation_id] = dict(held_by_memory)
    await user.create("Third", conversation_id=conversation_id)
    asked = [[text for _, text in one] for one in await inputs(simulator)]
    assert newer.text == "Three."
    assert asked[-1] == ["First", "One.", "Changed", "Four.", "Third"]


LISTS: list[Callable[[User, str], Awaitable[Any]]] = [
    page, full, lambda user, name: page(user, name, include_superseded=True),
]  # fmt: skip


@pytest.mark.parametrize("call", LISTS, ids=["messages", "full", "versions"])
async def test_versions_and_images_cost_no_statement_more(
    start_chat: Start, call: Callable[[User, str], Awaitable[Any]], memory: MemoryStandIn
) -> None:
    async with start_chat(job_concurrency=1) as chat:
        user = chat.user()
        first = await user.create("Hi")
        conversation_id, counts = first.conversation_id, []
        for round_ in range(2):
            await eventually(lambda: len(memory.turns.get(conversation_id, {})) == 2)
            await asyncio.sleep(0.3)
            chat.statements.clear()
            await call(user, conversation_id)
            counts.append(len([one for one in chat.statements if "message_images" in one]))
            # Without what the standing duty reads that tells memory.
            asked = [one for one in chat.statements if "unrecorded_turns" not in one]
            assert len([one for one in asked if "from messages" in one.lower()]) <= 1
            if round_ == 0:
                for number in range(4):
                    said = (await user.messages(conversation_id))[0]
                    await user.edit(said, str(number))
    assert counts == [1, 1]


async def test_pages_stay_stable_while_messages_are_edited_and_regenerated(user: User) -> None:
    conversation_id = (await user.create("0")).conversation_id
    last = await user.create("1", conversation_id=conversation_id)
    seen: list[pb.Message] = []
    everything: list[pb.Message] = []
    token = every_token = ""
    for step in range(30):
        if token or step == 0:
            got = await page(user, conversation_id, page_size=1, page_token=token)
            seen += got.messages
            token = got.next_page_token
        if every_token or step == 0:
            got = await page(user, conversation_id, page_size=1, page_token=every_token, include_superseded=True)
            everything += got.messages
            every_token = got.next_page_token
        if step == 1:
            edited = (await user.edit(last.user_message, "1 again"))[-1].completed.message
        if step == 2:
            await user.regenerate(edited)
            await user.create("2", conversation_id=conversation_id)
    # Each place once, and no place left out.
    assert [one.sequence for one in seen] == [1, 2, 3, 4, 5, 6]
    # Each version once, in their order.
    places = [(one.sequence, one.version) for one in everything]
    assert places == sorted(set(places))
    assert places == [(one.sequence, one.version) for one in await user.versions(conversation_id)]
    # A token belongs to its list.
    first = await page(user, conversation_id, page_size=1)
    refused = await refusal(page(user, conversation_id, page_token=first.next_page_token, include_superseded=True))
    assert refused.reason == "INVALID_PAGE_TOKEN"
