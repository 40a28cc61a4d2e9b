"""What is forgotten is gone from every tier and does not come back."""

import asyncio

import psycopg
import pytest
from psycopg import sql
from redis.asyncio import Redis

from services.memory.turns import ConversationKey
from services.memory.working_set import Growth
from suite.databases import ServiceDatabase
from tests.memory.conftest import Start
from tests.memory.service import MemoryService, message, new_id, turn

CANARY = "canary-7d1f"
TABLES = ("conversations", "turns", "forgotten_turns", "pending_evictions")


async def rows_with(database: ServiceDatabase, text: str) -> list[str]:
    """Every row of every table, of all users, that holds the text."""
    admin = await psycopg.AsyncConnection.connect(database.migration_url)
    async with admin:
        await admin.execute("select set_config('parley.scope', 'service', true)")
        found = []
        for table in TABLES:
            cursor = await admin.execute(sql.SQL("select t::text from {} t").format(sql.Identifier(table)))
            found += [row[0] for row in await cursor.fetchall()]
    assert found, "nothing was looked at"
    return [row for row in found if text in row]


async def keys_with(url: str, text: str) -> list[object]:
    """Every key of memory in Redis that holds the text; all of them are strings."""
    async with Redis.from_url(url) as redis:
        values = {key: await redis.get(key) for key in await redis.keys("parley:memory:*")}
    return [key for key, value in values.items() if value is not None and text.encode() in value]


async def test_a_deleted_conversation_is_gone_from_every_tier(
    memory: MemoryService, database: ServiceDatabase, redis_url: str
) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, turn(1, CANARY))
    await memory.record(conversation_id, [message(3, f"{CANARY} edited")])
    await memory.forget(conversation_id, 3)
    await memory.assemble(conversation_id)
    assert await rows_with(database, CANARY)
    assert await keys_with(redis_url, CANARY)
    assert await memory.forget(conversation_id) == 2
    assert await rows_with(database, CANARY) == []
    assert await keys_with(redis_url, CANARY) == []
    answer = await memory.assemble(conversation_id)
    assert (list(answer.messages), answer.last_sequence) == ([], 0)


async def test_a_late_turn_of_a_deleted_conversation_is_dropped(
    memory: MemoryService, database: ServiceDatabase, redis_url: str
) -> None:
    conversation_id, told = new_id(), turn(1, CANARY)
    await memory.record(conversation_id, told)
    await memory.forget(conversation_id)
    assert await memory.record(conversation_id, told) == 0
    assert await memory.record(conversation_id, turn(2, CANARY)) == 0
    assert await memory.texts(conversation_id) == []
    assert await rows_with(database, CANARY) == []
    assert await keys_with(redis_url, CANARY) == []


async def test_a_deletion_that_overtakes_the_first_turn_still_holds(memory: MemoryService) -> None:
    conversation_id = new_id()
    assert await memory.forget(conversation_id) == 0
    assert await memory.record(conversation_id, turn(1)) == 0


async def test_deleting_twice_is_deleting_once(memory: MemoryService) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, turn(1))
    assert [await memory.forget(conversation_id) for _ in range(2)] == [2, 0]


async def test_deletion_and_recording_at_once_leave_nothing(
    memory: MemoryService, database: ServiceDatabase, redis_url: str
) -> None:
    for _ in range(10):
        conversation_id = new_id()
        calls = [memory.record(conversation_id, turn(number, CANARY)) for number in range(1, 5)]
        await asyncio.gather(
            *calls[:2],
            memory.texts(conversation_id),
            memory.forget(conversation_id),
            memory.texts(conversation_id),
            *calls[2:],
        )
        assert await memory.texts(conversation_id) == []
    assert await rows_with(database, CANARY) == []
    assert await keys_with(redis_url, CANARY) == []


async def test_an_end_that_was_edited_away_is_forgotten(
    memory: MemoryService, database: ServiceDatabase, redis_url: str
) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, turn(1))
    gone = turn(2, CANARY)
    await memory.record(conversation_id, gone)
    assert await memory.forget(conversation_id, 3) == 2
    assert await memory.forget(conversation_id, 3) == 0
    assert await rows_with(database, CANARY) == []
    assert await keys_with(redis_url, CANARY) == []
    answer = await memory.assemble(conversation_id)
    assert ([one.text for one in answer.messages], answer.last_sequence) == (["words 1", "words 2"], 2)
    assert await memory.record(conversation_id, turn(2, "anew")) == 4
    assert await memory.texts(conversation_id) == ["words 1", "words 2", "anew 3", "anew 4"]


async def test_a_late_repeat_brings_no_edited_message_back(memory: MemoryService) -> None:
    conversation_id, told = new_id(), [*turn(1), *turn(2)]
    await memory.record(conversation_id, told)
    await memory.forget(conversation_id, 3)
    assert await memory.record(conversation_id, told) == 2
    told[2].revision = 1
    assert await memory.record(conversation_id, told) == 3


async def test_forgetting_the_end_of_an_unknown_conversation_forgets_nothing(memory: MemoryService) -> None:
    conversation_id = new_id()
    assert await memory.forget(conversation_id, 5) == 0
    assert await memory.record(conversation_id, turn(1)) == 2


@pytest.mark.parametrize("from_sequence", [0, 2])
async def test_a_reader_that_was_overtaken_by_a_deletion_cannot_put_the_text_back(
    memory: MemoryService, redis_url: str, from_sequence: int
) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, [message(1, "kept"), message(2, CANARY)])
    await memory.forget(conversation_id, 3)  # the working set is empty: the reader goes to Postgres
    key = ConversationKey(memory.user_id, conversation_id)
    found = await memory.memory._store.latest(key, most_messages=500, most_tokens=4000)
    assert found is not None
    await memory.forget(conversation_id, from_sequence)
    head, block = found
    await memory.memory._working_set.put(key, head.version, block)
    assert await keys_with(redis_url, CANARY) == []
    assert CANARY not in await memory.texts(conversation_id)


async def test_a_recorder_that_was_overtaken_by_a_deletion_cannot_put_the_text_back(
    memory: MemoryService, redis_url: str
) -> None:
    conversation_id = new_id()
    key = ConversationKey(memory.user_id, conversation_id)
    await memory.record(conversation_id, turn(1, CANARY))
    held = await memory.memory._store.head(key)
    assert held is not None
    await memory.forget(conversation_id)
    found = await memory.memory._working_set.read(key, held.version)
    assert found is None
    late = (await memory.memory._store.record({key: []}, user_id=key.user_id))[key]
    assert late is None
    grown = Growth(key, from_version=held.version, version=held.version + 1, turns=[])
    await memory.memory._working_set.follow([grown])
    assert await keys_with(redis_url, CANARY) == []


async def test_deletions_race_with_readers_of_two_processes(start_memory: Start, redis_url: str) -> None:
    async with start_memory() as one, start_memory() as other:
        other.user_id = one.user_id
        for _ in range(15):
            conversation_id = new_id()
            await one.record(conversation_id, turn(1, CANARY))
            readers = [(one, other)[place % 2].texts(conversation_id) for place in range(6)]
            await asyncio.gather(*readers[:3], one.forget(conversation_id), *readers[3:])
        assert await keys_with(redis_url, CANARY) == []
