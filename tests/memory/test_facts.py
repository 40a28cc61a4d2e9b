"""Facts through the public door: remembered, listed, changed with their history, deleted."""

import asyncio
import time
from collections.abc import Awaitable
from datetime import UTC, datetime

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from parley.memory.v1 import memory_pb2
from suite.databases import ServiceDatabase
from tests.memory.conftest import Start
from tests.memory.database import fetch, run
from tests.memory.service import MemoryService, message, new_id, reason_of, turn

YEAR_2024 = Timestamp(seconds=1_704_067_200)
YEAR_2025 = Timestamp(seconds=1_735_689_600)


def in_seconds(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime.fromtimestamp(time.time() + seconds, UTC))
    return stamp


def source(conversation_id: str | None = None, message_id: str | None = None) -> memory_pb2.MemorySource:
    return memory_pb2.MemorySource(conversation_id=conversation_id or new_id(), message_id=message_id or new_id())


def texts(memories: list[memory_pb2.Memory]) -> list[str]:
    return [one.text for one in memories]


async def refusal(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), reason_of(refused.value)


NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "MEMORY_NOT_FOUND")


async def test_what_a_user_states_is_remembered_as_the_users_own(memory: MemoryService) -> None:
    before = time.time()
    added = await memory.add_memory("  Has a dog\n called Rex. ", attribute=" pet ", importance=7, valid_from_time=YEAR_2024)
    assert added == memory_pb2.Memory(
        id=added.id,
        kind="fact",
        text="Has a dog called Rex.",
        subject="user",
        attribute="pet",
        importance=7,
        stamped_by="user",
        valid_from_time=YEAR_2024,
        record_time=added.record_time,
    )
    assert abs(added.record_time.ToMicroseconds() / 1e6 - before) < 60
    assert await memory.memories() == [added]
    assert await memory.get_memory(added.id.upper()) == added
    assert await memory.history(added.id) == []


async def test_a_service_says_what_it_learned_and_from_which_message(memory: MemoryService) -> None:
    told = source()
    learned = await memory.add_memory("Likes tea", metadata=memory.as_chat(), source=told)
    grounded = await memory.add_memory("Likes rain", metadata=memory.as_chat(), source=told, stamped_by="user")
    assert (learned.stamped_by, list(learned.sources)) == ("assistant", [told])
    assert grounded.stamped_by == "user"
    assert await memory.memories() == [grounded, learned]


async def test_the_same_words_twice_are_one_fact(memory: MemoryService) -> None:
    first = await memory.add_memory("Likes green tea.", importance=3)
    again = await memory.add_memory("likes  GREEN tea", importance=8, attribute="drink", valid_from_time=YEAR_2024)
    assert again.id == first.id
    assert (again.text, again.importance, again.attribute) == ("Likes green tea.", 8, "drink")
    assert again.valid_from_time == YEAR_2024
    assert again.record_time == first.record_time
    assert len(await memory.memories()) == 1
    assert await memory.history(first.id) == []


async def test_what_comes_from_several_has_the_least_trusted_stamp(memory: MemoryService) -> None:
    one, other = source(), source()
    await memory.add_memory("Likes tea")
    await memory.add_memory("Likes tea", metadata=memory.as_chat(), source=one, stamped_by="tool")
    merged = await memory.add_memory("Likes tea", metadata=memory.as_chat(), source=other, stamped_by="assistant")
    assert merged.stamped_by == "tool"
    assert {one.message_id for one in merged.sources} == {one.message_id, other.message_id}
    assert (await memory.add_memory("Likes tea")).stamped_by == "tool"


async def test_facts_of_one_sentence_added_at_once_are_one_with_all_sources(start_memory: Start) -> None:
    async with start_memory() as one, start_memory() as other:
        other.user_id = one.user_id
        sources = [source() for _ in range(20)]
        added = await asyncio.gather(
            *(
                service.add_memory("Likes tea", metadata=service.as_chat(), source=told)
                for told, service in zip(sources, [one, other] * 10, strict=True)
            )
        )
        assert len({fact.id for fact in added}) == 1
        [fact] = await one.memories()
        assert {told.message_id for told in fact.sources} == {told.message_id for told in sources}


async def test_a_repeated_request_returns_the_fact_first_remembered(memory: MemoryService) -> None:
    added = await memory.add_memory("Lives in Lisbon", request_id="r")
    changed = await memory.update_memory(added.id, text="Lives in Porto")
    assert await memory.add_memory("Lives in Lisbon", request_id="r") == changed
    header = (*memory.as_user(), ("idempotency-key", "r"))
    assert await memory.add_memory("Lives in Lisbon", metadata=header) == changed
    assert len(await memory.memories()) == 1
    reused = await refusal(memory.add_memory("Lives in Faro", request_id="r"))
    assert reused == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    differs = await refusal(memory.add_memory("Lives in Lisbon", metadata=header, request_id="other"))
    assert differs == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    other = await memory.add_memory("Lives in Lisbon", request_id="r", user_id=new_id())
    assert other.id != added.id


async def test_one_request_made_many_times_at_once_is_one_fact(memory: MemoryService) -> None:
    added = await asyncio.gather(*(memory.add_memory("Lives in Lisbon", request_id="r") for _ in range(10)))
    assert len({fact.id for fact in added}) == 1
    assert len(await memory.memories()) == 1


async def test_a_move_leaves_the_old_city_in_the_history_with_its_dates(memory: MemoryService) -> None:
    lisbon = await memory.add_memory("Lives in Lisbon", attribute="home city", valid_from_time=YEAR_2024)
    porto = await memory.update_memory(lisbon.id, text="Lives in Porto", valid_from_time=YEAR_2025)
    assert (porto.id, porto.text, porto.valid_from_time) == (lisbon.id, "Lives in Porto", YEAR_2025)
    assert not porto.HasField("valid_to_time")
    assert not porto.HasField("invalidate_time")
    assert porto.attribute == "home city"
    assert porto.record_time.ToMicroseconds() > lisbon.record_time.ToMicroseconds()
    [before] = await memory.history(lisbon.id)
    assert (before.text, before.superseded_by) == ("Lives in Lisbon", lisbon.id)
    assert (before.valid_from_time, before.valid_to_time) == (YEAR_2024, YEAR_2025)
    assert (before.record_time, before.invalidate_time) == (lisbon.record_time, porto.record_time)
    assert await memory.get_memory(before.id) == before
    assert await memory.memories() == [porto]
    assert await memory.history(before.id) == []


async def test_changes_made_at_once_are_all_in_the_history(start_memory: Start) -> None:
    async with start_memory() as one, start_memory() as other:
        other.user_id = one.user_id
        fact = await one.add_memory("Lives in city 0")
        said = [f"Lives in city {number}" for number in range(1, 13)]
        await asyncio.gather(
            *(service.update_memory(fact.id, text=text) for text, service in zip(said, [one, other] * 6, strict=True))
        )
        [current] = await one.memories()
        history = await one.history(fact.id)
        assert sorted([current.text, *texts(history)]) == sorted(["Lives in city 0", *said])
        assert texts(history)[-1] == "Lives in city 0"
        times = [version.invalidate_time.ToMicroseconds() for version in history]
        assert times == sorted(times, reverse=True)
        assert len(set(times)) == len(times)


async def test_an_update_changes_the_fields_that_are_set_or_named(memory: MemoryService) -> None:
    fact = await memory.add_memory(
        "Likes tea", attribute="drink", importance=9, valid_from_time=YEAR_2024, expire_time=in_seconds(3600)
    )
    assert await memory.update_memory(fact.id) == fact
    assert (await memory.update_memory(fact.id, importance=2)).importance == 2
    kept = await memory.update_memory(fact.id, mask=["expire_time"])
    assert not kept.HasField("expire_time")
    assert await memory.history(fact.id) == []
    bare = await memory.update_memory(
        fact.id, mask=["attribute", "valid_from_time", "importance", "subject"], text="Likes coffee", subject="Ana"
    )
    assert (bare.text, bare.subject, bare.attribute, bare.importance) == ("Likes tea", "Ana", "", 5)
    assert not bare.HasField("valid_from_time")
    [before] = await memory.history(fact.id)
    assert (before.subject, before.attribute, before.valid_from_time) == ("user", "drink", YEAR_2024)


async def test_words_of_the_user_are_trusted_and_need_no_message(memory: MemoryService) -> None:
    told = source()
    fact = await memory.add_memory("Likes tea", metadata=memory.as_chat(), source=told, stamped_by="tool")
    weighed = await memory.update_memory(fact.id, importance=9, attribute="drink")
    assert (weighed.stamped_by, list(weighed.sources)) == ("tool", [told])
    by_chat = await memory.update_memory(fact.id, text="Likes white tea", metadata=memory.as_chat())
    assert (by_chat.stamped_by, list(by_chat.sources)) == ("tool", [told])
    edited = await memory.update_memory(fact.id, text="Likes black tea")
    assert (edited.stamped_by, list(edited.sources)) == ("user", [])
    versions = await memory.history(fact.id)
    assert [(version.stamped_by, list(version.sources)) for version in versions] == [("tool", [told])] * 3
    by_chat = await memory.update_memory(fact.id, text="Likes red tea", metadata=memory.as_chat())
    assert by_chat.stamped_by == "assistant"


async def test_a_fact_cannot_say_what_another_says(memory: MemoryService) -> None:
    tea, coffee = await memory.add_memory("Likes tea"), await memory.add_memory("Likes coffee")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await memory.update_memory(coffee.id, text="likes TEA!")
    assert (refused.value.code(), reason_of(refused.value)) == (grpc.StatusCode.ALREADY_EXISTS, "MEMORY_EXISTS")
    assert tea.id in (refused.value.details() or "")
    assert await memory.get_memory(coffee.id) == coffee
    spelled = await memory.update_memory(tea.id, text="Likes TEA!")
    assert (spelled.id, spelled.text) == (tea.id, "Likes TEA!")


async def test_two_facts_that_are_to_say_the_same_at_once_do_not(memory: MemoryService) -> None:
    facts = [await memory.add_memory(f"Likes drink {number}") for number in range(6)]
    done = await asyncio.gather(*(memory.update_memory(fact.id, text="Likes tea") for fact in facts), return_exceptions=True)
    refused = [one for one in done if isinstance(one, grpc.aio.AioRpcError)]
    assert [reason_of(one) for one in refused] == ["MEMORY_EXISTS"] * 5
    assert texts(await memory.memories()).count("Likes tea") == 1


async def test_what_is_not_there_or_somebody_elses_is_not_found(memory: MemoryService) -> None:
    fact = await memory.add_memory("Likes tea")
    await memory.update_memory(fact.id, text="Likes coffee")
    [version] = await memory.history(fact.id)
    conversation_id, said = new_id(), message(1, "hello")
    await memory.record(conversation_id, [said])
    stranger = new_id()
    for memory_id in (fact.id, version.id, said.message_id):
        assert await refusal(memory.get_memory(memory_id, user_id=stranger)) == NOT_FOUND
        assert await refusal(memory.delete_memory(memory_id, user_id=stranger)) == NOT_FOUND
        assert await refusal(memory.history(memory_id, user_id=stranger)) == NOT_FOUND
        edit = memory.update_memory(memory_id, text="Mine", metadata=memory.as_user(stranger))
        assert await refusal(edit) == NOT_FOUND
    assert await memory.memories(user_id=stranger) == []
    assert await refusal(memory.get_memory(new_id())) == NOT_FOUND
    for memory_id in (said.message_id, new_id()):
        assert await refusal(memory.history(memory_id)) == NOT_FOUND
        assert await refusal(memory.delete_memory(memory_id)) == NOT_FOUND
    for memory_id in (said.message_id, version.id):
        assert await refusal(memory.update_memory(memory_id, text="Else")) == NOT_FOUND
    assert texts(await memory.memories()) == ["Likes coffee"]


async def test_a_message_is_found_by_its_id(memory: MemoryService) -> None:
    conversation_id, (asked, answered) = new_id(), turn(1)
    await memory.record(conversation_id, [asked, answered])
    found = await memory.get_memory(answered.message_id)
    assert found == memory_pb2.Memory(
        id=answered.message_id,
        kind="message",
        text=answered.text,
        stamped_by="assistant",
        valid_from_time=answered.create_time,
        record_time=found.record_time,
        conversation_id=conversation_id,
        sequence=2,
        role="assistant",
    )
    assert found.HasField("record_time")


async def test_a_deleted_fact_leaves_nothing(memory: MemoryService, database: ServiceDatabase) -> None:
    fact = await memory.add_memory("Has the canary word quetzalcoatl", metadata=memory.as_chat(), source=source())
    other = await memory.add_memory("Likes tea")
    await memory.update_memory(fact.id, text="Has the canary word tlaloc")
    for memory_id in (fact.id, (await memory.history(fact.id))[0].id, other.id):
        await embed(database, memory.user_id, memory_id)
    await write_person_summary(database, memory.user_id)
    await memory.delete_memory(fact.id)
    assert await memory.memories() == [other]
    assert await refusal(memory.history(fact.id)) == NOT_FOUND
    assert await refusal(memory.delete_memory(fact.id)) == NOT_FOUND
    assert await fetch(database, "select id::text from facts") == [(other.id,)]
    assert await fetch(database, "select item_id::text from embeddings") == [(other.id,)]
    assert await fetch(database, "select fact_id from fact_sources") == []
    assert await fetch(database, "select body from summaries") == []
    assert await fetch(database, "select true from upkeep where task = 'portray' and due_time <= now()") == [(True,)]


async def test_one_version_is_deleted_alone(memory: MemoryService, database: ServiceDatabase) -> None:
    fact = await memory.add_memory("Lives in Lisbon")
    await memory.update_memory(fact.id, text="Lives in Porto")
    await memory.update_memory(fact.id, text="Lives in Faro")
    await write_person_summary(database, memory.user_id)
    porto, lisbon = await memory.history(fact.id)
    await memory.delete_memory(porto.id)
    assert await memory.history(fact.id) == [lisbon]
    assert texts(await memory.memories()) == ["Lives in Faro"]
    assert await fetch(database, "select body from summaries") == []


async def embed(database: ServiceDatabase, user_id: str, memory_id: str) -> None:
    statement = "insert into embeddings (user_id, item_id, kind, model, body) values (%s, %s, 'fact', 'm', '[1,2]')"
    await run(database, statement, user_id, memory_id)


async def write_person_summary(database: ServiceDatabase, user_id: str) -> None:
    statement = "insert into summaries (user_id, scope_id, kind, body) values (%s, %s, 'person', 'knows quetzalcoatl')"
    await run(database, statement, user_id, user_id)


async def test_pages_stay_stable_while_facts_are_added(memory: MemoryService) -> None:
    known = [await memory.add_memory(f"Fact {number}") for number in range(7)]
    seen: list[str] = []
    token = ""
    for number in range(100, 104):
        request = memory_pb2.ListMemoriesRequest(page_size=2, page_token=token)
        answer = await memory.stub.ListMemories(request, metadata=memory.as_user(), timeout=10)
        seen += texts(list(answer.memories))
        token = answer.next_page_token
        await memory.add_memory(f"Fact {number}")
    assert token == ""
    assert seen == [fact.text for fact in reversed(known)]
    assert len(await memory.memories(page_size=1000)) == 11


async def test_the_history_has_pages(memory: MemoryService) -> None:
    fact = await memory.add_memory("Is 0 years old")
    for age in range(1, 6):
        await memory.update_memory(fact.id, text=f"Is {age} years old")
    seen: list[str] = []
    token = ""
    for _ in range(3):
        request = memory_pb2.ListMemoryHistoryRequest(memory_id=fact.id, page_size=2, page_token=token)
        answer = await memory.stub.ListMemoryHistory(request, metadata=memory.as_user(), timeout=10)
        seen += texts(list(answer.memories))
        token = answer.next_page_token
    assert token == ""
    assert seen == [f"Is {age} years old" for age in (4, 3, 2, 1, 0)]


async def test_a_list_can_be_about_one_subject(memory: MemoryService) -> None:
    mine, anas = await memory.add_memory("Likes tea"), await memory.add_memory("Ana likes rain", subject="Ana")
    assert await memory.memories(subject="ana") == [anas]
    assert await memory.memories(subject=" USER ") == [mine]
    assert await memory.memories(subject="Bob") == []


@pytest.mark.parametrize("name", ["ListMemories", "ListMemoryHistory"])
async def test_a_page_token_of_another_list_is_refused(memory: MemoryService, name: str) -> None:
    fact = await memory.add_memory("Likes tea")
    await memory.add_memory("Likes rain")
    request = memory_pb2.ListMemoriesRequest(page_size=1)
    token = (await memory.stub.ListMemories(request, metadata=memory.as_user(), timeout=10)).next_page_token
    refused = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")
    # In turn: of no list; of a list, but a time beyond all times; of another list.
    made_up = ["junk", "WyJtZW1vcmllcyIsOTk5OTk5OTk5OTk5OTk5OTk5OTk5LCJ4Il0", "WyJtZW1vcmllcyIsMSwieCJd"]
    for wrong in [*made_up, *([token] if name == "ListMemoryHistory" else [])]:
        fields = {"page_token": wrong}
        call = memory.memories(**fields) if name == "ListMemories" else memory.history(fact.id, **fields)
        assert await refusal(call) == refused


async def test_a_user_may_have_so_many_facts(start_memory: Start) -> None:
    async with start_memory(facts_limit=3) as memory:
        for number in range(3):
            fact = await memory.add_memory(f"Fact {number}")
        await memory.update_memory(fact.id, text="Another one")
        full = (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED")
        assert await refusal(memory.add_memory("Fact 3")) == full
        assert (await memory.add_memory("another ONE")).id == fact.id
        await memory.add_memory("Fact 3", user_id=new_id())
        await memory.delete_memory(fact.id)
        tried = await asyncio.gather(*(memory.add_memory(f"Fact {n}") for n in range(3, 7)), return_exceptions=True)
        assert sum(isinstance(one, grpc.aio.AioRpcError) for one in tried) == 3
        assert len(await memory.memories()) == 3


async def test_a_fact_keeps_so_many_versions(start_memory: Start, database: ServiceDatabase) -> None:
    async with start_memory(fact_versions_limit=2) as memory:
        fact = await memory.add_memory("Is 0 years old")
        for age in range(1, 6):
            await memory.update_memory(fact.id, text=f"Is {age} years old")
        assert texts(await memory.history(fact.id)) == ["Is 4 years old", "Is 3 years old"]
        assert await fetch(database, "select count(*) from facts") == [(3,)]
