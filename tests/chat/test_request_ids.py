"""The same request id: one turn, whatever happens in between and wherever the call comes in."""

import asyncio

import grpc
import psycopg

from simulator.control import Fault, ScriptedAnswer
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.chat.conftest import Start
from tests.chat.service import ChatProcess, Request, User, checked, eventually, held, refusal, text_of


async def calls(simulator: Running) -> int:
    return len(await simulator.control.requests("responses"))


async def test_a_repeated_call_returns_the_finished_turn(user: User, simulator: Running) -> None:
    first = await user.create("Hi", request_id="one")
    assert await user.create("Hi", request_id="one") == first
    events = await user.stream("Hi", request_id="one")
    assert text_of(events) == first.message.text
    assert events[-1].completed.message == first.message
    assert await calls(simulator) == 1
    assert len(await user.messages(first.conversation_id)) == 2


async def test_calls_at_once_share_one_turn_and_see_every_event(user: User, simulator: Running) -> None:
    asked = {"request_id": "same", "model": "sim-30-5-20"}
    told, (one, two, three, four) = await asyncio.gather(
        asyncio.gather(*(user.stream("Count", **asked) for _ in range(4))),
        asyncio.gather(*(user.create("Count", **asked) for _ in range(4))),
    )
    assert one == two == three == four
    assert {text_of(events) for events in told} == {one.message.text}
    assert {events[0].started.generation_id for events in told} == {one.generation_id}
    assert await calls(simulator) == 1
    assert len(await user.messages(one.conversation_id)) == 2


async def test_a_later_call_replays_a_running_stream_from_its_first_event(user: User) -> None:
    asked = {"request_id": "late", "model": "sim-30-10-0"}
    first = asyncio.create_task(user.stream("Count", **asked))
    await asyncio.sleep(0.15)
    assert await user.stream("Count", **asked) == await first


async def test_the_header_is_the_same_thing_as_the_field(user: User, simulator: Running) -> None:
    first = await user.create("Hi", request_id="named")
    metadata = (*user.metadata, ("idempotency-key", "named"))
    again = await user.chat.CreateCompletion(Request(message="Hi"), metadata=metadata, timeout=10)
    assert again == first
    refused = await refusal(
        user.chat.CreateCompletion(Request(message="Hi", request_id="other"), metadata=metadata, timeout=10)
    )
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["request_id"])
    assert await calls(simulator) == 1


async def test_another_request_under_the_same_id_is_refused(user: User) -> None:
    await user.create("Hi", request_id="one")
    refused = await refusal(user.create("Hello", request_id="one"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert refused.metadata == {"request_id": "one"}


async def test_request_ids_of_two_users_are_different_things(chat: ChatProcess) -> None:
    first, second = chat.user(), chat.user()
    one = await first.create("Hi", request_id="same")
    two = await second.create("Hi there", request_id="same")
    assert one.conversation_id != two.conversation_id


async def test_the_users_own_id_in_the_path_changes_nothing(user: User, simulator: Running) -> None:
    first = await user.create("Hi", request_id="one")
    assert await user.create("Hi", request_id="one", user_id="me") == first
    assert await calls(simulator) == 1


async def test_a_failed_turn_is_tried_again_as_the_same_two_messages(user: User, simulator: Running) -> None:
    await simulator.control.script(
        ScriptedAnswer(text="Half of it", fault=Fault(kind="cut", after_tokens=1)), ScriptedAnswer(text="All of it.")
    )
    failed = (await user.stream("Hi", request_id="one"))[-1].failed
    assert failed.partial_message.text
    again = await user.create("Hi", request_id="one")
    assert again.message.text == "All of it."
    assert (again.message.id, again.message.sequence) == (failed.partial_message.id, 2)
    assert again.generation_id != failed.partial_message.generation_id
    assert list(await user.messages(again.conversation_id)) == [again.user_message, again.message]
    assert await user.create("Hi", request_id="one") == again
    assert await calls(simulator) == 2


async def test_many_repeats_of_a_failed_turn_at_once_are_one_attempt(user: User, simulator: Running) -> None:
    await simulator.control.script(ScriptedAnswer(fault=Fault(kind="cut")), ScriptedAnswer(text="Well."))
    await refusal(user.create("Hi", request_id="one"))
    answers = await asyncio.gather(*(user.create("Hi", request_id="one") for _ in range(6)))
    assert {one.message.text for one in answers} == {"Well."}
    assert await calls(simulator) == 2


async def test_a_request_that_the_provider_refused_is_not_asked_again(user: User, simulator: Running) -> None:
    first = await refusal(user.create("Hi", model="sim-status-400", request_id="bad"))
    second = await refusal(user.create("Hi", model="sim-status-400", request_id="bad"))
    assert first == second
    assert await calls(simulator) == 1


async def test_a_failed_turn_is_not_tried_again_once_another_followed(user: User, simulator: Running) -> None:
    await simulator.control.script(ScriptedAnswer(text="Half of it", fault=Fault(kind="cut", after_tokens=1)))
    events = await user.stream("Hi", request_id="one")
    await user.create("Next", conversation_id=events[0].started.conversation_id)
    again = await user.stream("Hi", request_id="one")
    assert again[-1].failed == events[-1].failed
    assert await calls(simulator) == 2


async def test_two_processes_answer_one_turn(start_chat: Start, simulator: Running) -> None:
    async with start_chat() as here, start_chat() as there:
        user = here.user()
        asked = {"request_id": "both", "model": "sim-40-10-0"}
        one, two, three, events = await asyncio.gather(
            user.create("Count", **asked),
            user.at(there).create("Count", **asked),
            user.create("Count", **asked),
            user.at(there).stream("Count", **asked),
        )
        assert one == two == three
        assert text_of(events) == one.message.text
        assert await user.at(there).create("Count", **asked) == one
    assert await calls(simulator) == 1


async def test_another_process_tells_every_event_as_it_comes(start_chat: Start) -> None:
    async with start_chat(heartbeat_seconds=0.15) as here, start_chat(heartbeat_seconds=0.15) as there:
        user = here.user()
        asked = {"request_id": "both", "model": "sim-40-20-0-cut-38"}
        running = asyncio.create_task(user.stream("Count", **asked))
        await asyncio.sleep(0.2)
        followed = [one async for one in user.at(there).open_stream("Count", **asked)]
        events = await running
    assert checked(followed) == events
    assert text_of(followed) != ""


async def left_by_a_dead_process(database: ServiceDatabase, *, lease_seconds: float, text: str) -> None:
    """What a killed process leaves behind: a running row that nobody renews. The process must be gone."""
    async with await psycopg.AsyncConnection.connect(database.migration_url) as connection:
        await connection.execute("select set_config('parley.scope', 'service', true)")
        await connection.execute(
            "update generations set status = 'running', end_time = null, owner = 'dead',"
            " lease_expire_time = now() + make_interval(secs => %s)",
            [lease_seconds],
        )
        await connection.execute("update messages set status = 'generating', text = %s where role = 'assistant'", [text])


async def test_a_turn_whose_process_died_is_tried_again_by_whoever_is_asked(
    start_chat: Start, database: ServiceDatabase, simulator: Running
) -> None:
    async with start_chat() as gone:
        user = gone.user()
        first = await user.create("Hi", request_id="one")
    await left_by_a_dead_process(database, lease_seconds=-1, text="")
    async with start_chat(lease_seconds=1, lease_renew_seconds=0.3) as chat:
        user = user.at(chat)
        again = await user.create("Hi", request_id="one")
        assert (again.message.id, again.message.text) == (first.message.id, first.message.text)
        assert len(await user.messages(again.conversation_id)) == 2
        assert await calls(simulator) == 2


async def test_the_sweeper_closes_what_a_dead_process_left(start_chat: Start, database: ServiceDatabase) -> None:
    async with start_chat() as gone:
        user = gone.user()
        first = await user.create("Hi")
    await left_by_a_dead_process(database, lease_seconds=0.5, text=first.message.text)
    async with start_chat(lease_seconds=0.6, lease_renew_seconds=0.2) as chat:
        user = user.at(chat)
        for _ in range(100):
            reply = (await user.messages(first.conversation_id))[1]
            if reply.status != "generating":
                break
            await asyncio.sleep(0.05)
        assert (reply.status, reply.incomplete_reason) == ("incomplete", "GENERATION_INTERRUPTED")
        assert reply.text == first.message.text
        # The conversation is free again.
        assert (await user.create("More", conversation_id=first.conversation_id)).message.status == "complete"


async def test_what_nobody_keeps_alive_is_closed_with_what_was_told(
    start_chat: Start, database: ServiceDatabase, simulator: Running
) -> None:
    async with start_chat(lease_seconds=1, lease_renew_seconds=0.2) as chat:
        user = chat.user()
        await simulator.control.script(ScriptedAnswer(text="Never saved", hold_after_tokens=1))
        running = asyncio.create_task(user.stream("Hi", request_id="one"))
        await held(simulator)
        async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as connection:
            await connection.execute("select set_config('parley.scope', 'service', false)")
            # Somebody took it over, and died.
            await connection.execute("update generations set owner = 'another', epoch = epoch + 1, status = 'running'")
        events = await running
        assert events[-1].failed.reason == "GENERATION_INTERRUPTED"
        reply = (await user.messages(events[0].started.conversation_id))[1]
        assert reply == events[-1].failed.partial_message
        assert reply.text == text_of(events) == "Never"
        await eventually(lambda: chat.generations.find(events[0].started.generation_id) is None)
