"""Memory is told of every turn that ended: soon, by many in one call, and whatever happens in between."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from services.chat.record_store import RecordStore, owe_turns
from services.runtime.database import Database, open_database
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.chat.conftest import Start
from tests.chat.peers import MemoryStandIn
from tests.chat.service import ChatProcess, User, eventually

MUCH = 1_000_000


@pytest.fixture
async def rows(database: ServiceDatabase) -> AsyncIterator[Database]:
    """The tables of chat, as the service sees them."""
    opened = open_database(database.url, pool_size=4)
    yield opened
    await opened.close()


async def owed_ids(rows: Database) -> set[str]:
    async with rows.service_transaction() as connection:
        found = await connection.execute(text("select cast(conversation_id as text) from unrecorded_turns"))
        return set(found.scalars())


async def make_due(rows: Database) -> None:
    async with rows.service_transaction() as connection:
        await connection.execute(text("update unrecorded_turns set due_time = now() - interval '1 second'"))


async def owe(rows: Database, conversation_id: str, first_sequence: int) -> None:
    async with rows.service_transaction() as connection:
        await owe_turns(connection, conversation_id, first_sequence=first_sequence)


async def settled(rows: Database) -> None:
    for _ in range(300):
        if not await owed_ids(rows):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("memory is still owed something")


async def untold(start_chat: Start, memory: MemoryStandIn, turns: int) -> list[str]:
    """Turns of which memory has heard nothing, since it was away and their process is gone."""
    memory.is_away = True
    async with start_chat() as process:
        users = [process.user() for _ in range(turns)]
        answers = await asyncio.gather(*(one.create("hello") for one in users))
    assert memory.turns == {}
    return [one.conversation_id for one in answers]


async def test_turns_of_many_users_are_told_in_few_calls(chat: ChatProcess, memory: MemoryStandIn, rows: Database) -> None:
    users = [chat.user() for _ in range(20)]
    answers = await asyncio.gather(*(one.create("hello") for one in users))
    await settled(rows)
    assert memory.users == {answer.conversation_id: user.id for answer, user in zip(answers, users, strict=True)}
    assert all(sorted(known) == [1, 2] for known in memory.turns.values())
    assert memory.record_calls < len(users)


async def test_a_turn_that_ends_while_memory_is_away_is_told_when_it_is_back(
    user: User, memory: MemoryStandIn, rows: Database
) -> None:
    memory.is_away = True
    answer = await user.create("hello")
    await eventually(lambda: memory.record_calls > 0)
    assert await owed_ids(rows) == {answer.conversation_id}
    memory.is_away = False
    await settled(rows)
    assert sorted(memory.turns[answer.conversation_id]) == [1, 2]


async def test_what_a_process_left_untold_is_told_by_another(
    start_chat: Start, memory: MemoryStandIn, rows: Database
) -> None:
    left = await untold(start_chat, memory, 3)
    assert await owed_ids(rows) == set(left)
    memory.is_away = False
    await make_due(rows)
    async with start_chat():
        await eventually(lambda: set(memory.turns) == set(left))
        await settled(rows)


async def test_replicas_share_what_is_due(start_chat: Start, memory: MemoryStandIn, rows: Database) -> None:
    left = await untold(start_chat, memory, 6)
    await make_due(rows)
    stores = [RecordStore(rows), RecordStore(rows), RecordStore(rows)]
    claimed = await asyncio.gather(*(store.claim_due(4) for store in stores))
    assert sorted(one for ids in claimed for one in ids) == sorted(left)
    assert await stores[0].claim_due(4) == []


async def test_a_turn_that_ends_while_memory_is_told_of_the_last_stays_owed(
    start_chat: Start, memory: MemoryStandIn, rows: Database
) -> None:
    [conversation_id] = await untold(start_chat, memory, 1)
    store = RecordStore(rows)
    read = await store.read_owed([conversation_id], most_bytes=MUCH)
    await owe(rows, conversation_id, 3)
    await store.settle(read)
    assert await owed_ids(rows) == {conversation_id}
    [again] = await store.read_owed([conversation_id], most_bytes=MUCH)
    assert [one.sequence for one in again.messages] == [1, 2]
    await store.settle([again])
    assert await owed_ids(rows) == set()


async def test_a_conversation_that_began_with_several_messages_is_told_whole(
    user: User, memory: MemoryStandIn, rows: Database
) -> None:
    said = [
        {"role": "user", "text": "one"},
        {"role": "assistant", "text": "two"},
        {"role": "user", "text": "three"},
    ]
    answer = await user.create(messages=said)
    await settled(rows)
    assert [memory.turns[answer.conversation_id][place].text for place in (1, 2, 3)] == ["one", "two", "three"]


async def test_what_is_read_at_once_is_bounded_and_the_rest_is_read_later(
    start_chat: Start, memory: MemoryStandIn, rows: Database
) -> None:
    [conversation_id] = await untold(start_chat, memory, 1)
    await add_messages(rows, conversation_id, 250)
    store, told = RecordStore(rows), list[int]()
    while owed := await store.read_owed([conversation_id], most_bytes=MUCH):
        assert len(owed[0].messages) <= 100
        told += [one.sequence for one in owed[0].messages]
        await store.settle(owed)
    assert sorted(set(told)) == list(range(1, 253))
    # No more bytes than asked for, but one message at least.
    await owe(rows, conversation_id, 3)
    [small] = await store.read_owed([conversation_id], most_bytes=10)
    assert 1 <= len(small.messages) <= 3
    assert not small.is_all


async def add_messages(rows: Database, conversation_id: str, count: int) -> None:
    statement = text(
        "insert into messages (user_id, conversation_id, sequence, role, text)"
        " select user_id, id, 2 + n, 'user', 'word' from conversations, generate_series(1, :count) n where id = :id"
    )
    async with rows.service_transaction() as connection:
        await connection.execute(statement, {"count": count, "id": conversation_id})


async def test_one_conversation_that_memory_refuses_does_not_keep_the_others_back(
    start_chat: Start, memory: MemoryStandIn, rows: Database
) -> None:
    bad, *good = await untold(start_chat, memory, 4)
    memory.is_away = False
    memory.invalid.add(bad)
    await make_due(rows)
    async with start_chat():
        await settled(rows)
    assert set(memory.turns) == set(good)


async def test_a_user_whose_memories_are_being_changed_is_told_of_later_and_keeps_nobody_back(
    start_chat: Start, memory: MemoryStandIn, rows: Database
) -> None:
    held, *free = await untold(start_chat, memory, 4)
    memory.is_away = False
    memory.busy.add(held)
    await make_due(rows)
    async with start_chat() as process:
        await eventually(lambda: set(memory.turns) == set(free))
        # What this process ends itself meanwhile goes by.
        answer = await process.user().create("hello")
        await eventually(lambda: answer.conversation_id in memory.turns)
        assert held not in memory.turns
        assert held in await owed_ids(rows)
        memory.busy.clear()
        await settled(rows)
    assert sorted(memory.turns[held]) == [1, 2]


async def test_what_is_put_off_is_due_again_soon(start_chat: Start, memory: MemoryStandIn, rows: Database) -> None:
    held, other = await untold(start_chat, memory, 2)
    await make_due(rows)
    store = RecordStore(rows)
    claimed = await store.claim_due(2)
    assert set(claimed) == {held, other}
    [read] = await store.read_owed([held], most_bytes=MUCH)
    await store.put_off([read])
    assert await owed_ids(rows) == {held, other}
    assert await store.claim_due(2) == []
    # A claim would have lasted ten times as long.
    await pass_by(rows, seconds=3)
    assert await store.claim_due(2) == [held]
    # Who knows an older state of it puts nothing off.
    await store.put_off([read])
    await pass_by(rows, seconds=10)
    assert await store.claim_due(2) == []


async def pass_by(rows: Database, *, seconds: int) -> None:
    """As if so much time had gone by."""
    statement = text("update unrecorded_turns set due_time = due_time - make_interval(secs => :seconds)")
    async with rows.service_transaction() as connection:
        await connection.execute(statement, {"seconds": seconds})


async def test_a_deleted_conversation_owes_nothing(
    start_chat: Start, memory: MemoryStandIn, rows: Database, simulator: Running
) -> None:
    memory.is_away = True
    async with start_chat() as process:
        user = process.user()
        answer = await user.create("hello")
        assert await owed_ids(rows) == {answer.conversation_id}
        await user.delete(answer.conversation_id)
        assert await owed_ids(rows) == set()
    assert len(await simulator.control.requests("responses")) == 1
