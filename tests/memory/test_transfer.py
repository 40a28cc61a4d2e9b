"""What leaves with ExportMemories arrives with ImportMemories."""

import asyncio
import time
from collections.abc import Sequence

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from parley.memory.v1 import memory_pb2
from services.memory.transfer.export_store import ExportLimits, ExportStore
from services.runtime.database import open_database
from suite.databases import ServiceDatabase
from tests.memory.conftest import Start
from tests.memory.database import fetch
from tests.memory.service import MemoryService, eventually, fields_of, message, new_id, reason_of, turn

Record = memory_pb2.MemoryRecord


async def exported(memory: MemoryService) -> list[Record]:
    call = memory.stub.ExportMemories(memory_pb2.ExportMemoriesRequest(), metadata=memory.as_user(), timeout=60)
    return [record async for record in call]


async def imported(memory: MemoryService, records: Sequence[Record]) -> tuple[int, int]:
    """How many facts and messages are new."""
    request = memory_pb2.ImportMemoriesRequest(records=records)
    answer = await memory.stub.ImportMemories(request, metadata=memory.as_user(), timeout=60)
    return answer.imported_facts, answer.imported_messages


def fresh(memory: MemoryService) -> MemoryService:
    """Another account."""
    return MemoryService(memory.issuer, memory.stub, memory.memory, memory.upkeep)


def fact(text: str, **fields: object) -> Record:
    return Record(fact=memory_pb2.FactRecord(id=new_id(), text=text, **fields))  # type: ignore[arg-type] # fields by name


def said(conversation_id: str, one: memory_pb2.ContextMessage) -> Record:
    return Record(message=memory_pb2.MessageRecord(conversation_id=conversation_id, message=one))


def kinds(records: Sequence[Record]) -> list[str | None]:
    return [record.WhichOneof("record") for record in records]


async def filled(memory: MemoryService) -> list[str]:
    """Two conversations; facts with history and sources, one of them closed."""
    conversations = sorted([new_id(), new_id()])
    for name, conversation_id in zip(("the first", "the second"), conversations, strict=True):
        told = [*turn(1, "my dog is called Bella"), *turn(2, "we live in Porto")]
        await memory.record(conversation_id, told)
        source = memory_pb2.MemorySource(conversation_id=conversation_id, message_id=told[0].message_id)
        await memory.add_memory(f"has a dog of {name}", source=source, metadata=memory.as_chat())
    stated = await memory.add_memory("lives in Lisbon", attribute="home city", importance=8)
    await memory.update_memory(stated.id, text="lives in Porto")
    return conversations


async def test_an_export_is_ordered_and_says_that_it_is_whole(memory: MemoryService) -> None:
    conversations = await filled(memory)
    await filled(fresh(memory))
    records = await exported(memory)
    assert kinds(records) == ["message"] * 8 + ["fact"] * 4 + ["end"]
    places = [(one.message.conversation_id, one.message.message.sequence) for one in records[:8]]
    assert places == [(conversation_id, n) for conversation_id in conversations for n in range(1, 5)]
    assert (records[-1].end.message_count, records[-1].end.fact_count) == (8, 4)
    facts = [one.fact for one in records[8:12]]
    assert [bool(one.superseded_by) for one in facts] == [False, False, False, True]
    assert facts[3].superseded_by in {one.id for one in facts[:3]}
    assert facts[3].text == "lives in Lisbon"
    assert sum(len(one.sources) for one in facts) == 2


async def test_an_account_without_memories_exports_the_end_alone(memory: MemoryService) -> None:
    assert kinds(await exported(memory)) == ["end"]


async def test_an_export_into_a_fresh_account_is_the_same_export_there(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    conversations = await filled(memory)
    records = await exported(memory)
    other = fresh(memory)
    assert await imported(other, records) == (4, 8)
    assert await exported(other) == records
    assert await other.texts(conversations[0]) == await memory.texts(conversations[0])
    assert [one.text for one in await other.memories()] == [one.text for one in await memory.memories()]
    origins = await fetch(database, "select origin, count(*) from facts where user_id = %s group by 1", other.user_id)
    assert dict(origins) == {"extracted": 2, "imported": 2}
    owed = await fetch(database, "select task, scope_id::text from upkeep where user_id = %s", other.user_id)
    whole = [("embed", other.user_id), ("portray", other.user_id)]
    assert set(owed) == {*whole, *(("embed", one) for one in conversations)}
    extracted = await fetch(database, "select extracted_sequence from conversations where user_id = %s", other.user_id)
    assert extracted == [(4,), (4,)]


async def test_the_same_search_finds_the_same_after_a_move(start_memory: Start, provider: dict[str, object]) -> None:
    async with start_memory(**provider) as memory:
        await filled(memory)
        await memory.add_memory("plays the cello on Sundays")
        other = fresh(memory)
        await imported(other, await exported(memory))
        for one in (memory, other):
            await _embedded(one)
        for query in ("the dog", "where do we live", "who plays the cello", "what did I say about Lisbon before"):
            request = memory_pb2.SearchMemoriesRequest(query=query, limit=20)
            first = await memory.stub.SearchMemories(request, metadata=memory.as_user(), timeout=20)
            second = await other.stub.SearchMemories(request, metadata=other.as_user(), timeout=20)
            assert first.memories, query
            assert list(first.degraded) == list(second.degraded) == []
            assert [one.memory.id for one in second.memories] == [one.memory.id for one in first.memories]
            assert [one.memory.text for one in second.memories] == [one.memory.text for one in first.memories]


async def _embedded(memory: MemoryService) -> None:
    store = memory.memory._store._database
    for _ in range(500):
        memory.upkeep.look()
        async with store.transaction(user_id=memory.user_id) as connection:
            owed = await connection.exec_driver_sql("select count(*) from upkeep where task = 'embed'")
            if owed.scalar_one() == 0:
                return
        await asyncio.sleep(0.02)
    raise AssertionError("nothing was embedded")


async def test_importing_twice_changes_nothing(memory: MemoryService) -> None:
    await filled(memory)
    records = await exported(memory)
    assert await imported(memory, records) == (0, 0)
    other = fresh(memory)
    assert await imported(other, records[:5]) == (0, 5)
    assert await imported(other, records) == (4, 3)
    assert await imported(other, records) == (0, 0)
    assert await exported(other) == records


async def test_a_later_call_brings_the_history_of_a_fact_of_an_earlier_one(memory: MemoryService) -> None:
    await filled(memory)
    records = await exported(memory)
    other = fresh(memory)
    for record in records:
        await imported(other, [record])
    assert await exported(other) == records


async def test_what_was_deleted_here_is_not_taken(memory: MemoryService, database: ServiceDatabase) -> None:
    first, second = await filled(memory)
    records = await exported(memory)
    await memory.forget(first)
    await memory.forget(second, 3)
    # Sources that are not there any more do not count: such a fact was imported.
    assert await imported(memory, records) == (1, 0)
    assert (await memory.assemble(second)).last_sequence == 2
    await memory.stub.DeleteMemories(memory_pb2.DeleteMemoriesRequest(), metadata=memory.as_user(), timeout=20)
    assert await imported(memory, records) == (0, 0)
    assert await fetch(database, "select 1 from facts") == []
    assert await imported(memory, [fact("likes tea")]) == (1, 0)


async def test_a_fact_with_the_words_of_a_current_one_is_that_one(memory: MemoryService) -> None:
    mine = await memory.add_memory("likes tea")
    head = fact("Likes tea!")
    moment = head.fact.record_time
    moment.FromSeconds(int(time.time()) - 100)
    version = fact("likes milk", superseded_by=head.fact.id, invalidate_time=moment, record_time=moment)
    assert await imported(memory, [head, version]) == (1, 0)
    assert [one.id for one in await memory.memories()] == [mine.id]
    assert [one.text for one in await memory.history(mine.id)] == ["likes milk"]


async def test_a_version_of_nothing_stays_as_a_closed_fact(memory: MemoryService) -> None:
    version = fact("likes milk", superseded_by=new_id())
    version.fact.invalidate_time.FromSeconds(int(time.time()) - 100)
    assert await imported(memory, [version]) == (1, 0)
    assert await memory.memories() == []
    assert [one.text for one in await memory.memories(include_closed=True)] == ["likes milk"]


async def test_what_has_expired_is_neither_exported_nor_imported(memory: MemoryService) -> None:
    old = fact("stays at a hotel")
    old.fact.expire_time.FromSeconds(int(time.time()) - 1)
    assert await imported(memory, [old]) == (0, 0)
    assert kinds(await exported(memory)) == ["end"]


async def test_a_message_that_is_known_elsewhere_is_refused_and_nothing_is_taken(memory: MemoryService) -> None:
    conversation_id, one = new_id(), message(1)
    await memory.record(conversation_id, [one])
    moved = message(2, message_id=one.message_id)
    for record in (said(new_id(), one), said(conversation_id, moved)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await imported(memory, [fact("likes tea"), said(new_id(), message(1)), record])
        assert fields_of(refused.value) == {"records[2].message.message.message_id"}
    assert len(await exported(memory)) == 2


async def test_a_place_that_is_taken_stays_with_who_has_it(memory: MemoryService) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, [message(1, "mine")])
    assert await imported(
        memory, [said(conversation_id, message(1, "other")), said(conversation_id, message(2, "new"))]
    ) == (0, 1)
    assert await memory.texts(conversation_id) == ["mine", "new"]


async def test_records_that_break_rules_are_refused_by_their_paths(memory: MemoryService) -> None:
    ahead = message(3, seconds=int(time.time()) + 3600)
    conversation_id, twice, future = new_id(), fact("twice"), fact("future")
    future.fact.record_time.FromSeconds(int(time.time()) + 3600)
    wrong = [
        Record(),
        said(conversation_id, message(1)),
        said(conversation_id, message(1)),
        said(conversation_id, ahead),
        twice,
        twice,
        fact("   "),
        fact("a version", superseded_by=new_id()),
        future,
    ]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await imported(memory, wrong)
    assert fields_of(refused.value) == {
        "records[0]",
        "records[2].message.message.sequence",
        "records[3].message.message.create_time",
        "records[5].fact.id",
        "records[6].fact.text",
        "records[7].fact.invalidate_time",
        "records[8].fact.record_time",
    }
    for records in ([], [twice] * 1001, [fact("x" * 1001)], [said("no", message(1))]):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await imported(memory, records)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_no_more_is_taken_than_a_user_may_have(start_memory: Start) -> None:
    async with start_memory(facts_limit=2, imported_messages_limit=3) as memory:
        conversation_id = new_id()
        too_many = ([fact(f"fact {n}") for n in range(3)], [said(conversation_id, message(n)) for n in range(1, 5)])
        for records in too_many:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await imported(memory, records)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert reason_of(refused.value) == "LIMIT_REACHED"
        assert kinds(await exported(memory)) == ["end"]
        assert await imported(memory, [*too_many[0][:2], *too_many[1][:3]]) == (2, 3)


async def test_what_was_imported_can_be_talked_on_about(memory: MemoryService, database: ServiceDatabase) -> None:
    conversation_id = new_id()
    await imported(memory, [said(conversation_id, message(n, f"words {n}")) for n in (1, 2)])
    await memory.record(conversation_id, turn(2))
    assert await memory.texts(conversation_id) == ["words 1", "words 2", "words 3", "words 4"]
    assert await fetch(database, "select extracted_sequence from conversations") == [(2,)]


async def test_an_export_is_of_one_moment_in_bounded_pages(memory: MemoryService, database: ServiceDatabase) -> None:
    conversation_id = new_id()
    for number in range(1, 9):
        await memory.record(conversation_id, [message(number, "x" * 1000)])
    await memory.add_memory("likes tea")
    limits = ExportLimits(page_records=3, page_bytes=2500)
    opened = open_database(database.url, pool_size=2)
    pages = ExportStore(opened, limits).pages(memory.user_id)
    sizes, told = list[int](), 0
    async for page in pages:
        if not sizes:
            await memory.stub.DeleteMemories(memory_pb2.DeleteMemoriesRequest(), metadata=memory.as_user(), timeout=20)
        sizes.append(len(page))
        told += len(page)
    await opened.close()
    assert sizes == [3, 3, 2, 1]
    assert told == 9
    assert kinds(await exported(memory)) == ["end"]


async def test_a_reader_who_stops_reading_is_cut_off_and_holds_no_snapshot(
    start_memory: Start, database: ServiceDatabase
) -> None:
    async with start_memory(export_stall_seconds=2) as memory:
        conversation_id = new_id()
        for first in (1, 11, 21, 31):
            await memory.record(conversation_id, [message(n, "word " * 60_000) for n in range(first, first + 10)])
        call = memory.stub.ExportMemories(memory_pb2.ExportMemoriesRequest(), metadata=memory.as_user(), timeout=60)
        records = aiter(call)
        await anext(records)
        # What a role may see of another's session: not its state, but its locks, which a snapshot keeps to its end.
        held = "select from pg_locks where relation = 'turns'::regclass and pid <> pg_backend_pid()"
        assert await fetch(database, held)
        async for _ in eventually():
            if not await fetch(database, held):
                break
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            async for _ in records:
                pass
        assert cut.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "too slowly" in (cut.value.details() or "")


async def test_few_exports_run_at_once(memory: MemoryService, database: ServiceDatabase) -> None:
    await memory.record(new_id(), turn(1))
    opened = open_database(database.url, pool_size=2)
    exports = ExportStore(opened, ExportLimits(at_once=1, wait_seconds=0.05))
    first = exports.pages(memory.user_id)
    await anext(first)
    with pytest.raises(Exception, match="Other exports are under way"):
        await anext(exports.pages(memory.user_id))
    await first.aclose()
    assert len([page async for page in exports.pages(memory.user_id)]) == 1
    await opened.close()


async def test_one_users_exports_leave_room_for_anothers(memory: MemoryService, database: ServiceDatabase) -> None:
    other = fresh(memory)
    for one in (memory, other):
        await one.record(new_id(), turn(1))
    opened = open_database(database.url, pool_size=2)
    exports = ExportStore(opened, ExportLimits(at_once=2, wait_seconds=0.05))
    first = exports.pages(memory.user_id)
    await anext(first)
    with pytest.raises(Exception, match="Other exports are under way"):
        await anext(exports.pages(memory.user_id))
    assert len([page async for page in exports.pages(other.user_id)]) == 1
    await first.aclose()
    assert len([page async for page in exports.pages(memory.user_id)]) == 1
    await opened.close()


async def test_ids_of_another_account_are_ones_own_here(memory: MemoryService, database: ServiceDatabase) -> None:
    await filled(memory)
    records, other = await exported(memory), fresh(memory)
    await imported(other, records)
    await memory.stub.DeleteMemories(memory_pb2.DeleteMemoriesRequest(), metadata=memory.as_user(), timeout=20)
    assert await exported(other) == records
    assert await fetch(database, "select 1 from turns where user_id = %s", memory.user_id) == []


async def test_a_fact_that_ends_does_not_begin_later(memory: MemoryService) -> None:
    [june, july, august] = [Timestamp(seconds=1_780_272_000 + month * 2_678_400) for month in range(3)]
    record = fact("rents a room in Porto", valid_to_time=july)
    await imported(memory, [record])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await memory.update_memory(record.fact.id, valid_from_time=august)
    assert (refused.value.code(), fields_of(refused.value)) == (grpc.StatusCode.INVALID_ARGUMENT, {"valid_from_time"})
    assert (await memory.update_memory(record.fact.id, valid_from_time=june)).valid_from_time == june
