"""The turns of many conversations, told at once."""

import asyncio

import grpc
import pytest

from parley.memory.v1 import memory_pb2
from suite.databases import ServiceDatabase
from tests.memory.database import holding_person, somebody_waits
from tests.memory.service import MemoryService, fields_of, message, new_id, reason_of, turn
from tests.memory.statements import counted_statements


def told(conversation_id: str, messages: list[memory_pb2.ContextMessage], *, user_id: str) -> memory_pb2.ConversationTurns:
    return memory_pb2.ConversationTurns(user_id=user_id, conversation_id=conversation_id, messages=messages)


async def record(memory: MemoryService, *conversations: memory_pb2.ConversationTurns) -> list[str]:
    return list((await answered(memory, *conversations)).refused_conversation_ids)


async def answered(
    memory: MemoryService, *conversations: memory_pb2.ConversationTurns, skip_busy: bool = False
) -> memory_pb2.RecordTurnsResponse:
    return await memory.stub.RecordTurns(
        memory_pb2.RecordTurnsRequest(conversations=conversations, skip_busy=skip_busy),
        metadata=memory.issuer.as_service("chat", audience="memory"),
        timeout=10,
    )


async def test_turns_of_several_users_are_recorded_each_for_its_own(memory: MemoryService) -> None:
    users, conversations = [new_id(), new_id(), new_id()], [new_id(), new_id(), new_id()]
    for number in (1, 2):
        batch = [told(c, turn(number, f"of {u}"), user_id=u) for u, c in zip(users, conversations, strict=True)]
        assert await record(memory, *batch) == []
    for user_id, conversation_id in zip(users, conversations, strict=True):
        words = [f"of {user_id} {place}" for place in range(1, 5)]
        assert await memory.texts(conversation_id, user_id=user_id) == words
        assert await memory.texts(conversation_id, user_id=new_id()) == []


async def test_what_contradicts_is_refused_and_takes_nothing_with_it(memory: MemoryService) -> None:
    first, stolen, moved, good = new_id(), new_id(), new_id(), new_id()
    taken = message(1, "first")
    await record(memory, told(first, [taken], user_id=memory.user_id), told(moved, turn(1), user_id=memory.user_id))
    elsewhere = memory_pb2.ContextMessage()
    elsewhere.CopyFrom((await memory.assemble(moved)).messages[0])
    elsewhere.sequence = 3
    refused = await record(
        memory,
        told(stolen, [taken, message(2)], user_id=memory.user_id),
        told(moved, [elsewhere], user_id=memory.user_id),
        told(good, turn(1), user_id=memory.user_id),
    )
    assert sorted(refused) == sorted([stolen, moved])
    assert await memory.texts(first) == ["first"]
    assert await memory.texts(stolen) == []
    assert await memory.texts(moved) == ["words 1", "words 2"]
    assert await memory.texts(good) == ["words 1", "words 2"]


async def test_a_repeat_changes_nothing_and_a_deleted_conversation_stays_deleted(memory: MemoryService) -> None:
    kept, deleted = new_id(), new_id()
    batch = [told(kept, turn(1), user_id=memory.user_id), told(deleted, turn(1), user_id=memory.user_id)]
    await record(memory, *batch)
    await memory.forget(deleted)
    assert await record(memory, *batch) == []
    assert await memory.texts(kept) == ["words 1", "words 2"]
    assert await memory.texts(deleted) == []


@pytest.mark.parametrize("skip_busy", [False, True])
async def test_many_conversations_take_no_more_statements_than_one(memory: MemoryService, *, skip_busy: bool) -> None:
    with counted_statements() as one:
        await answered(memory, told(new_id(), turn(1), user_id=new_id()), skip_busy=skip_busy)
    batch = [told(new_id(), turn(1), user_id=new_id()) for _ in range(200)]
    with counted_statements() as many:
        await answered(memory, *batch, skip_busy=skip_busy)
    assert len(one) == len(many) == 9


async def test_nobody_waits_for_a_user_whose_memories_somebody_else_is_changing(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    mine, known = new_id(), new_id()
    await memory.add_memory("likes tea")
    await memory.add_memory("likes coffee", user_id=known)
    batch = [
        told(mine, turn(1), user_id=memory.user_id),
        told(new_id(), turn(1), user_id=known),
        told(new_id(), turn(1), user_id=new_id()),
    ]
    async with holding_person(database, memory.user_id):
        answer = await answered(memory, *batch, skip_busy=True)
        assert list(answer.busy_conversation_ids) == [mine]
        assert list(answer.refused_conversation_ids) == []
        assert await memory.texts(mine) == []
        for one in batch[1:]:
            assert await memory.texts(one.conversation_id, user_id=one.user_id) == ["words 1", "words 2"]
        alone = await answered(memory, batch[0], skip_busy=True)
        assert list(alone.busy_conversation_ids) == [mine]
    assert list((await answered(memory, *batch, skip_busy=True)).busy_conversation_ids) == []
    assert await memory.texts(mine) == ["words 1", "words 2"]


async def test_a_caller_who_skips_nobody_waits(memory: MemoryService, database: ServiceDatabase) -> None:
    mine = new_id()
    await memory.add_memory("likes tea")
    async with asyncio.TaskGroup() as group, holding_person(database, memory.user_id):
        call = group.create_task(answered(memory, told(mine, turn(1), user_id=memory.user_id)))
        await somebody_waits(database)
        assert not call.done()
    assert list(call.result().busy_conversation_ids) == []
    assert await memory.texts(mine) == ["words 1", "words 2"]


async def test_the_held_blocks_follow(memory: MemoryService) -> None:
    conversations = [new_id() for _ in range(3)]
    for number in (1, 2):
        await record(memory, *(told(one, turn(number), user_id=memory.user_id) for one in conversations))
    with counted_statements() as statements:
        assert len((await memory.assemble(conversations[0])).messages) == 4
    # Whose it is, and the head: the turns came from the working set.
    assert len(statements) == 2


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ("conversation", "conversations[1].conversation_id"),
        ("message", "conversations[1].messages"),
        ("place", "conversations[0].messages[1].sequence"),
    ],
)
async def test_each_conversation_message_and_place_is_named_once(memory: MemoryService, wrong: str, field: str) -> None:
    one, other = turn(1), turn(1)
    second_id = new_id()
    first = told(second_id if wrong == "conversation" else new_id(), one, user_id=memory.user_id)
    second = told(second_id, other, user_id=memory.user_id)
    if wrong == "message":
        second.messages[0].message_id = one[0].message_id
    if wrong == "place":
        first.messages[1].sequence = 1
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await record(memory, first, second)
    assert reason_of(refusal.value) == "INVALID_REQUEST"
    assert field in fields_of(refusal.value)


async def test_a_call_with_a_user_behind_it_may_not_speak_for_others(memory: MemoryService) -> None:
    request = memory_pb2.RecordTurnsRequest(conversations=[told(new_id(), turn(1), user_id=new_id())])
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await memory.stub.RecordTurns(request, metadata=memory.as_chat(), timeout=10)
    assert refusal.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert reason_of(refusal.value) == "ACCESS_DENIED"
