"""Turns are recorded once, in whatever order and however often they are told."""

import asyncio

import grpc
import pytest

from parley.memory.v1 import memory_pb2
from tests.memory.conftest import Start
from tests.memory.service import MemoryService, fields_of, message, new_id, reason_of, repeatable, turn
from tests.memory.statements import counted_statements


async def test_a_recorded_turn_comes_back_as_it_was_told(memory: MemoryService) -> None:
    conversation_id = new_id()
    told = [message(1, 'line\none\t"é漢😀"'), message(2, "reply", revision=3)]
    told[0].create_time.nanos = 123_456_000
    assert await memory.record(conversation_id, told) == 2
    for _ in range(2):  # from the working set, then from Postgres
        answer = await memory.assemble(conversation_id)
        assert list(answer.messages) == told
        assert answer.last_sequence == 2
        assert answer.token_count > 0
        await memory.forget(conversation_id, 3)


async def test_the_same_turn_twice_is_one_turn(memory: MemoryService) -> None:
    conversation_id, told = new_id(), turn(1)
    assert [await memory.record(conversation_id, told) for _ in range(3)] == [2, 2, 2]
    assert await memory.texts(conversation_id) == ["words 1", "words 2"]


async def test_a_newer_revision_replaces_and_an_older_never_does(memory: MemoryService) -> None:
    conversation_id, reply = new_id(), new_id()
    await memory.record(conversation_id, [message(1, "ask"), message(2, "", message_id=reply)])
    assert await memory.texts(conversation_id) == ["ask"]
    await memory.record(conversation_id, [message(2, "second", message_id=reply, revision=2)])
    await memory.record(conversation_id, [message(2, "first", message_id=reply, revision=1)])
    await memory.record(conversation_id, [message(2, "same", message_id=reply, revision=2)])
    assert await memory.texts(conversation_id) == ["ask", "second"]


async def test_turns_beyond_a_hole_wait_until_it_is_filled(memory: MemoryService) -> None:
    conversation_id = new_id()
    assert await memory.record(conversation_id, turn(1)) == 2
    assert await memory.record(conversation_id, turn(3)) == 2
    assert await memory.texts(conversation_id) == ["words 1", "words 2"]
    assert await memory.record(conversation_id, turn(2)) == 6
    assert await memory.texts(conversation_id) == [f"words {n}" for n in range(1, 7)]


async def test_rewriting_an_old_message_while_filling_a_hole_mixes_nothing_up(memory: MemoryService) -> None:
    conversation_id, reply = new_id(), new_id()
    await memory.record(conversation_id, [message(1, "1"), message(2, "2", message_id=reply)])
    assert await memory.record(conversation_id, [message(4, "4")]) == 2
    told = [message(2, "2 again", message_id=reply, revision=1), message(3, "3")]
    assert await memory.record(conversation_id, told) == 4
    assert await memory.texts(conversation_id) == ["1", "2 again", "3", "4"]


async def test_a_conversation_without_its_beginning_is_not_known(memory: MemoryService) -> None:
    conversation_id = new_id()
    assert await memory.record(conversation_id, turn(2)) == 0
    answer = await memory.assemble(conversation_id)
    assert (answer.last_sequence, list(answer.messages)) == (0, [])


async def test_of_two_messages_at_one_place_the_later_stays_in_any_order(memory: MemoryService) -> None:
    first, edited = message(1, "first", seconds=1), message(1, "edited", seconds=5)
    for order in ([first, edited], [edited, first], [first, edited, first]):
        conversation_id = new_id()
        fresh = {id(one): memory_pb2.ContextMessage() for one in (first, edited)}
        for one in (first, edited):
            fresh[id(one)].CopyFrom(one)
            fresh[id(one)].message_id = new_id()
        for one in order:
            assert await memory.record(conversation_id, [fresh[id(one)]]) == 1
        assert await memory.texts(conversation_id) == ["edited"]


async def test_a_message_keeps_its_place_and_its_conversation(memory: MemoryService) -> None:
    conversation_id, told = new_id(), message(1, "ask")
    await memory.record(conversation_id, [told])
    moved = message(2, "ask", message_id=told.message_id, revision=1)
    for where, field in ((conversation_id, "messages.sequence"), (new_id(), "messages.message_id")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await memory.record(where, [message(1) if where != conversation_id else message(3), moved])
        assert reason_of(refused.value) == "INVALID_REQUEST"
        assert fields_of(refused.value) == {field}
        assert (await memory.assemble(where)).last_sequence == (1 if where == conversation_id else 0)


async def test_parallel_repeated_out_of_order_telling_ends_in_the_same_state(start_memory: Start) -> None:
    turns = [turn(number) for number in range(1, 13)]
    retried = message(4, "tried again", message_id=turns[1][1].message_id, revision=1)
    tellings = [*turns, *turns, [retried]]
    async with start_memory() as one, start_memory() as other:
        other.user_id = one.user_id
        for seed in range(3):
            conversation_id = new_id()
            for told in turns:
                for each in told:
                    each.message_id = new_id()
            retried.message_id = turns[1][1].message_id
            shuffled = repeatable(seed).sample(tellings, len(tellings))
            calls = [(one, other)[place % 2].record(conversation_id, told) for place, told in enumerate(shuffled)]
            reached = await asyncio.gather(*calls)
            assert max(reached) == 24
            expected = [f"words {n}" if n != 4 else "tried again" for n in range(1, 25)]
            assert await one.texts(conversation_id) == expected
            assert await other.texts(conversation_id) == expected


async def test_the_largest_message_is_recorded_and_fits_no_context(memory: MemoryService) -> None:
    conversation_id = new_id()
    assert await memory.record(conversation_id, [message(1, "漢" * 400_000)]) == 1
    answer = await memory.assemble(conversation_id, budget=2**31 - 1)
    assert (answer.last_sequence, len(answer.messages), answer.token_count) == (1, 0, 0)


async def test_recording_takes_a_fixed_number_of_statements(memory: MemoryService) -> None:
    conversation_id, long = new_id(), [message(n) for n in range(1, 101)]
    with counted_statements() as first:
        await memory.record(conversation_id, long[:2])
    with counted_statements() as many:
        await memory.record(conversation_id, long)
    with counted_statements() as repeat:
        await memory.record(conversation_id, long)
    # Identity, the person (made at the first), conversation, what is known; then turns, last_sequence, what is owed, and
    # whether a summary is.
    assert (len(first), len(many), len(repeat)) == (9, 9, 4)
