"""What DeleteMemories deletes is gone, everywhere, and nothing else is."""

import asyncio
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from redis.asyncio import Redis
from sqlalchemy import Connection, Engine, event

from parley.memory.v1 import memory_pb2
from services.memory.evictions import sweep_evictions
from services.memory.postings.chore import index
from services.memory.postings.store import PostingStore
from services.runtime.database import open_database
from services.runtime.duties import beside
from services.runtime.ids import new_id as new_time_id
from suite.databases import ServiceDatabase
from suite.redis import RedisServer, running_redis
from tests.memory.conftest import Start
from tests.memory.database import fetch, run
from tests.memory.service import BEGAN, MemoryService, eventually, message, new_id, turn
from tests.memory.statements import counted_statements
from tests.memory.traces import CANARY, keys_with, rows_with

TABLES = ("turns", "facts", "fact_sources", "embeddings", "summaries", "upkeep", "segments", "postings")


async def erase(memory: MemoryService, **filters: object) -> tuple[int, int]:
    """How many facts and messages went."""
    request = memory_pb2.DeleteMemoriesRequest(**filters)  # type: ignore[arg-type] # fields by their names
    answer = await memory.stub.DeleteMemories(request, metadata=memory.as_user(), timeout=30)
    return answer.deleted_facts, answer.deleted_messages


async def remember(memory: MemoryService, text: str, conversation_id: str, message_id: str) -> memory_pb2.Memory:
    """A fact that the model's tool remembers of a message."""
    source = memory_pb2.MemorySource(conversation_id=conversation_id, message_id=message_id)
    return await memory.add_memory(text, source=source, metadata=memory.as_chat())


async def embedded(database: ServiceDatabase, user_id: str) -> None:
    """As after the upkeep: everything has a vector, every conversation and the person a summary with the canary."""
    await run(
        database,
        "insert into embeddings (user_id, item_id, kind, conversation_id, sequence, model, body)"
        " select user_id, message_id, 'turn', conversation_id, sequence, 'm', cast('[1,2]' as halfvec)"
        " from turns where user_id = %s"
        " union all select user_id, id, 'fact', null, null, 'm', cast('[1,2]' as halfvec) from facts where user_id = %s",
        user_id,
        user_id,
    )
    await run(
        database,
        "insert into summaries (user_id, scope_id, kind, body, last_sequence)"
        " select user_id, conversation_id, 'conversation', 'spoke of ' || %s, last_sequence from conversations"
        " where user_id = %s union all values (%s::uuid, %s::uuid, 'person', 'owns a ' || %s, 0)",
        CANARY,
        user_id,
        user_id,
        user_id,
        CANARY,
    )


async def indexed(database: ServiceDatabase, user_id: str) -> None:
    """As after much was said: the messages stand in lists of their words, three in each."""
    opened = open_database(database.url, pool_size=1)
    await index(PostingStore(opened, segment_messages=3), user_id)
    await opened.close()


async def planted(memory: MemoryService, database: ServiceDatabase) -> list[str]:
    """The canary through every door; two conversations."""
    conversations = [new_id(), new_id()]
    for name, conversation_id in zip(("the first", "the second"), conversations, strict=True):
        told = turn(1, f"my {CANARY}")
        await memory.record(conversation_id, [*told, message(3, f"and {CANARY} again"), message(5, CANARY)])
        await memory.assemble(conversation_id)
        await remember(memory, f"has a {CANARY} of {name}", conversation_id, told[0].message_id)
    stated = await memory.add_memory(f"likes {CANARY}", subject=CANARY, attribute=CANARY, request_id=new_id())
    await memory.update_memory(stated.id, text="likes owls")
    await memory.update_memory(stated.id, text="likes eagles")
    await embedded(database, memory.user_id)
    await indexed(database, memory.user_id)
    return conversations


async def counts(database: ServiceDatabase, user_id: str) -> dict[str, int]:
    found = {}
    for table in TABLES:
        rows = await fetch(database, f"select count(*) from {table} where user_id = %s", user_id)  # noqa: S608 - of constants
        found[table] = rows[0][0]
    return found


@contextmanager
def deleted_rows() -> Iterator[Mapping[str, Sequence[int]]]:
    """How many rows each statement deletes, by its table."""
    found: dict[str, list[int]] = {}

    def note(_connection: Connection, cursor: Any, statement: str, *_rest: object) -> None:
        if statement.startswith("delete from "):
            found.setdefault(statement.split()[2], []).append(cursor.rowcount)

    event.listen(Engine, "after_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "after_cursor_execute", note)


@pytest.fixture(autouse=True)
async def empty_redis(redis_url: str) -> None:
    """The tests of a run share one."""
    async with Redis.from_url(redis_url) as redis:
        await redis.flushall()


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A Redis that a test may stop."""
    async with running_redis(tmp_path / "redis") as server:
        if not server.is_real:
            pytest.skip("needs a real Redis; this machine has only fakeredis")
        yield server


async def test_everything_means_every_table_and_key(
    memory: MemoryService, database: ServiceDatabase, redis_url: str
) -> None:
    await planted(memory, database)
    left = await rows_with(database)
    assert {row.split(":")[0] for row in left} == {"public.turns", "public.facts", "public.summaries", "public.postings"}
    assert len(await keys_with(redis_url)) == 2
    assert await erase(memory) == (5, 8)
    assert await rows_with(database) == []
    assert await keys_with(redis_url) == []
    assert await counts(database, memory.user_id) == dict.fromkeys(TABLES, 0)
    assert await erase(memory) == (0, 0)


async def test_somebody_elses_memories_stay(memory: MemoryService, database: ServiceDatabase) -> None:
    other = MemoryService(memory.issuer, memory.stub, memory.memory, memory.upkeep)
    conversations = await planted(other, database)
    before = await counts(database, other.user_id)
    await planted(memory, database)
    await erase(memory)
    # Of another's conversation too: it names nothing of the caller's.
    assert await erase(memory, conversation_id=conversations[0]) == (0, 0)
    after = await counts(database, other.user_id)
    assert after == before
    assert len(await other.texts(conversations[0])) == 3


async def test_what_was_said_before_is_not_taken_any_more_and_what_is_said_later_is(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    conversation_id, late = new_id(), [message(3, CANARY), message(4, CANARY)]
    await memory.record(conversation_id, turn(1, CANARY))
    await erase(memory)
    assert await memory.record(conversation_id, late) == 0
    assert await memory.record(new_id(), turn(1, CANARY)) == 0
    assert await rows_with(database) == []
    # What is missing before it chat has in its own tables: last_sequence says that nothing is known.
    new = message(5, "hello again", seconds=int(time.time()) + 5)
    assert await memory.record(conversation_id, [new]) == 0
    answer = await memory.assemble(conversation_id)
    assert (answer.last_sequence, list(answer.messages)) == (0, [])
    fresh = [message(n, f"new {n}", seconds=int(time.time()) + n) for n in (1, 2)]
    other = new_id()
    assert await memory.record(other, fresh) == 2
    assert await memory.texts(other) == ["new 1", "new 2"]


async def test_a_message_whose_clock_runs_ahead_does_not_come_back_either(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    conversation_id, ahead = new_id(), message(1, CANARY, seconds=int(time.time()) + 3600)
    await memory.record(conversation_id, [ahead])
    await erase(memory)
    assert await memory.record(conversation_id, [ahead]) == 0
    assert await rows_with(database) == []


async def test_with_redis_away_the_eviction_is_owed_and_made_up_for(
    start_memory: Start, own_redis: RedisServer, database: ServiceDatabase
) -> None:
    async with start_memory(
        redis_url=own_redis.url, redis_retry_seconds=0.01, redis_timeout_seconds=0.3, eviction_sweep_seconds=600
    ) as memory:
        conversations = await planted(memory, database)
        assert len(await keys_with(own_redis.url)) == 2
        own_redis.process.send_signal(signal.SIGSTOP)
        assert await erase(memory) == (5, 8)
        assert await memory.texts(conversations[0]) == []
        assert len(await memory.memory._store.owed_evictions(10)) == 2
        own_redis.process.send_signal(signal.SIGCONT)
        async with beside(sweep_evictions(memory.memory, interval_seconds=0.05)):
            async for _ in eventually():
                if not await memory.memory._store.owed_evictions(10):
                    break
        assert await keys_with(own_redis.url) == []
        assert await rows_with(database) == []


async def test_nothing_slips_past_an_erasure_that_meets_writers(
    start_memory: Start, provider: dict[str, object], database: ServiceDatabase, redis_url: str
) -> None:
    settings = {"summary_after_messages": 2, "summary_every_messages": 2, "summary_delay_seconds": 0}
    async with start_memory(**provider, **settings) as memory:
        conversations = await planted(memory, database)
        done = asyncio.Event()
        writers = [asyncio.create_task(_write(memory, conversations[n % 2], n, done)) for n in range(6)]
        for _ in range(4):
            await asyncio.sleep(0.1)
            await erase(memory)
        done.set()
        assert all(count > 0 for count in await asyncio.gather(*writers))
        memory.upkeep.look()
        await asyncio.sleep(0.5)
        assert await rows_with(database) == []
        assert await keys_with(redis_url) == []
        assert (await counts(database, memory.user_id))["embeddings"] == 0


async def _write(memory: MemoryService, conversation_id: str, number: int, done: asyncio.Event) -> int:
    """Says and remembers the canary, as of before the erasure, until it is over; how often it was tried."""
    tries, at = 0, 1000 * (number + 1)
    while not done.is_set():
        tries += 1
        told = message(at + tries, f"{CANARY} {tries}", message_id=_old_id())
        if number % 3 == 0:
            await _record_many(memory, told, new_id())
        elif number % 3 == 1:
            await memory.record(conversation_id, [told])
            await memory.assemble(conversation_id)
        else:
            await _remember_if_it_stands(memory, conversation_id, told)
    return tries


def _old_id() -> str:
    """An id as of the time when the message was written, as chat gives them: version 7."""
    return str(uuid.UUID(int=BEGAN * 1000 << 80 | uuid.UUID(new_time_id()).int & (1 << 80) - 1))


async def _record_many(memory: MemoryService, told: memory_pb2.ContextMessage, conversation_id: str) -> None:
    one = memory_pb2.ConversationTurns(user_id=memory.user_id, conversation_id=conversation_id, messages=[told])
    told_other = message(1, "another's", seconds=int(time.time()))
    other = memory_pb2.ConversationTurns(user_id=new_id(), conversation_id=new_id(), messages=[told_other])
    request = memory_pb2.RecordTurnsRequest(conversations=[one, other])
    await memory.stub.RecordTurns(request, metadata=memory.issuer.as_service("chat", audience="memory"), timeout=20)


async def _remember_if_it_stands(memory: MemoryService, conversation_id: str, told: memory_pb2.ContextMessage) -> None:
    await memory.record(conversation_id, [told])
    try:
        await remember(memory, f"{told.text} {told.message_id}", conversation_id, told.message_id)
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error  # noqa: PT017 - the source was erased meanwhile


async def test_a_conversation_is_forgotten_with_what_was_learned_from_nothing_else(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    first, second = await planted(memory, database)
    both = await remember(memory, "owns a boat", first, (await memory.assemble(first)).messages[0].message_id)
    kept = (await memory.assemble(second)).messages[0].message_id
    await remember(memory, "Owns a boat!", second, kept)
    assert await erase(memory, conversation_id=first) == (1, 4)
    assert await memory.texts(first) == []
    assert len(await memory.texts(second)) == 3
    texts = {one.text for one in await memory.memories()}
    assert texts == {f"has a {CANARY} of the second", "likes eagles", "owns a boat"}
    assert [source.message_id for source in (await memory.get_memory(both.id)).sources] == [kept]
    assert await memory.record(first, turn(1, CANARY)) == 0
    assert await fetch(database, "select scope_id::text from summaries") == [(second,)]
    owed = await fetch(database, "select task from upkeep where scope_id = %s", first)
    assert owed == []
    later = message(1, "from now on", seconds=int(time.time()) + 60)
    assert await memory.record(first, [later]) == 1


async def test_facts_alone_are_forgotten_with_their_history(memory: MemoryService, database: ServiceDatabase) -> None:
    first, _ = await planted(memory, database)
    assert await erase(memory, kind="fact") == (5, 0)
    assert await memory.memories(include_closed=True) == []
    assert len(await memory.texts(first)) == 3
    # What they were learned from is not learned from again.
    assert {one for (one,) in await fetch(database, "select extracted_sequence from conversations")} == {5}
    assert await fetch(database, "select kind, count(*) from summaries group by kind") == [("conversation", 2)]
    assert (await counts(database, memory.user_id))["embeddings"] == 8
    assert (await memory.add_memory("likes bread")).text == "likes bread"


async def test_messages_alone_are_forgotten_with_what_was_learned_from_them(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    first, _ = await planted(memory, database)
    assert await erase(memory, kind="message") == (2, 8)
    assert [one.text for one in await memory.memories()] == ["likes eagles"]
    assert len(await memory.history((await memory.memories())[0].id)) == 2
    assert await memory.record(first, turn(1, CANARY)) == 0
    assert await fetch(database, "select * from summaries") == []
    assert {row.split(":")[0] for row in await rows_with(database)} == {"public.facts"}


async def test_only_what_was_recorded_before_a_time(memory: MemoryService, database: ServiceDatabase) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, old := turn(1, "old"))
    await remember(memory, "likes tea", conversation_id, old[0].message_id)
    await memory.add_memory("likes milk")
    await asyncio.sleep(0.01)
    cut = Timestamp()
    cut.GetCurrentTime()
    await asyncio.sleep(0.01)
    await memory.record(conversation_id, turn(2, "new"))
    await memory.add_memory("likes coffee")
    assert await erase(memory, before_time=cut) == (2, 2)
    assert [one.text for one in await memory.memories()] == ["likes coffee"]
    # The beginning is missing, so memory knows nothing without a hole; the old do not come back.
    assert await memory.record(conversation_id, old) == 0
    rows = await fetch(database, "select body from turns order by sequence")
    assert rows == [("new 3",), ("new 4",)]
    assert (await memory.assemble(conversation_id)).last_sequence == 0


async def test_filters_narrow_each_other(memory: MemoryService, database: ServiceDatabase) -> None:
    first, second = await planted(memory, database)
    cut = Timestamp()
    cut.GetCurrentTime()
    assert await erase(memory, conversation_id=first, kind="fact") == (1, 0)
    assert await erase(memory, conversation_id=second, kind="message", before_time=cut) == (1, 4)
    await memory.record(second, [message(6, "later", seconds=int(time.time()))])
    assert await erase(memory, conversation_id=second, before_time=cut) == (0, 0)
    assert len(await memory.texts(first)) == 3
    assert [one.text for one in await memory.memories()] == ["likes eagles"]


async def test_a_deleted_conversation_takes_what_was_made_of_it(
    memory: MemoryService, database: ServiceDatabase, redis_url: str
) -> None:
    conversation_id = new_id()
    told = turn(1, CANARY)
    await memory.record(conversation_id, told)
    fact = await remember(memory, f"has {CANARY}", conversation_id, told[0].message_id)
    await memory.update_memory(fact.id, importance=9)
    await memory.add_memory("likes bread")
    await embedded(database, memory.user_id)
    await indexed(database, memory.user_id)
    await memory.assemble(conversation_id)
    assert await memory.forget(conversation_id) == 2
    assert await rows_with(database) == []
    assert await keys_with(redis_url) == []
    found = await counts(database, memory.user_id)
    assert (found["turns"], found["facts"], found["fact_sources"], found["embeddings"]) == (0, 1, 0, 1)
    owed = await fetch(database, "select task, scope_id::text from upkeep order by task")
    assert owed == [("embed", memory.user_id), ("portray", memory.user_id)]


async def test_an_edited_end_takes_what_was_made_of_it_and_leaves_the_rest(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    conversation_id = new_id()
    told = [*turn(1, "plain"), *turn(2, CANARY)]
    await memory.record(conversation_id, told)
    await run(database, "update conversations set extracted_sequence = 4")
    await remember(memory, f"has {CANARY}", conversation_id, told[2].message_id)
    await remember(memory, "likes bread", conversation_id, told[0].message_id)
    # Of the turn under way, whose message memory has not heard of yet.
    await remember(memory, "likes rain", conversation_id, new_time_id())
    await embedded(database, memory.user_id)
    assert await memory.forget(conversation_id, 3) == 2
    assert await rows_with(database) == []
    assert {one.text for one in await memory.memories()} == {"likes bread", "likes rain"}
    assert await fetch(database, "select extracted_sequence from conversations") == [(2,)]
    assert (await counts(database, memory.user_id))["embeddings"] == 4
    tasks = await fetch(database, "select distinct task from upkeep where task in ('summarize', 'portray') order by task")
    assert tasks == [("portray",), ("summarize",)]


async def test_a_summary_of_what_came_before_an_edit_stays(memory: MemoryService, database: ServiceDatabase) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, [*turn(1), *turn(2)])
    await embedded(database, memory.user_id)
    await run(database, "update summaries set last_sequence = 2 where kind = 'conversation'")
    await memory.forget(conversation_id, 3)
    assert len(await fetch(database, "select * from summaries")) == 2


async def test_a_message_that_another_displaces_takes_what_was_made_of_it(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    conversation_id = new_id()
    told = message(1, CANARY)
    await memory.record(conversation_id, [told])
    await remember(memory, f"has {CANARY}", conversation_id, told.message_id)
    await embedded(database, memory.user_id)
    await memory.record(conversation_id, [message(1, "edited", seconds=1_800_000_000)])
    assert await rows_with(database) == []
    assert await memory.memories() == []
    assert (await counts(database, memory.user_id))["embeddings"] == 0


async def test_erasing_takes_a_fixed_number_of_statements(memory: MemoryService) -> None:
    numbers = []
    for size in (2, 60):
        for _ in range(size // 2):
            await memory.record(new_id(), [message(n, seconds=int(time.time()) + 60) for n in range(1, size)])
        with counted_statements() as seen:
            await erase(memory)
        numbers.append(len(seen))
    assert numbers[0] == numbers[1]


async def test_everything_goes_by_batches_so_that_no_statement_comes_near_its_time(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    await memory.record(new_id(), turn(1))
    await run(
        database,
        "insert into embeddings (user_id, item_id, kind, model, body)"
        " select %s, gen_random_uuid(), 'fact', 'm', cast('[1,2]' as halfvec) from generate_series(1, 4500)",
        memory.user_id,
    )
    await run(
        database,
        "insert into segments (user_id, first_number, last_number)"
        " select %s, 10 * n, 10 * n + 9 from generate_series(1, 45) n",
        memory.user_id,
    )
    with deleted_rows() as deleted:
        await erase(memory)
    assert deleted["embeddings"] == [2000, 2000, 500, 0]
    assert deleted["segments"] == [20, 20, 5, 0]
    assert await counts(database, memory.user_id) == dict.fromkeys(TABLES, 0)


async def test_a_kind_that_is_none_is_refused(memory: MemoryService) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await erase(memory, kind="summary")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
