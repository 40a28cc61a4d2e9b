"""Searching by meaning, time, facts and neighbours, and what is done without a provider."""

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from parley.memory.v1 import memory_pb2
from services.memory.recall.moments import window_of
from services.memory.recall.question import own_voice, read_question
from suite.databases import ServiceDatabase
from tests.memory.conftest import Start
from tests.memory.database import fetch, run
from tests.memory.service import BEGAN, MemoryService, eventually, message, new_id
from tests.memory.statements import counted_statements

DAY = 86_400
NOW = datetime(2026, 11, 18, 15, tzinfo=UTC)  # a Wednesday


async def said(
    memory: MemoryService, *texts: str, seconds: int | None = None
) -> tuple[str, list[memory_pb2.ContextMessage]]:
    conversation_id = new_id()
    began = None if seconds is None else seconds - BEGAN
    messages = [message(n, text, seconds=began) for n, text in enumerate(texts, 1)]
    await memory.record(conversation_id, messages)
    return conversation_id, messages


def legs(answer: memory_pb2.SearchMemoriesResponse) -> dict[str, set[str]]:
    return {one.memory.text: set(one.found_by) for one in answer.memories}


async def learned(
    memory: MemoryService, text: str, conversation_id: str, source: memory_pb2.ContextMessage
) -> memory_pb2.Memory:
    """A fact that was learned from a message."""
    told = memory_pb2.MemorySource(conversation_id=conversation_id, message_id=source.message_id)
    return await memory.add_memory(text, metadata=memory.as_chat(), source=told)


async def embedded(memory: MemoryService, query: str, text: str) -> dict[str, set[str]]:
    """What is found, by which ways, once `text` is found by what it means."""
    async for _ in eventually(10):
        memory.upkeep.look()
        found = legs(await memory.search(query, limit=50))
        if "meaning" in found.get(text, ()):
            break
    return found


async def test_what_is_alike_is_found_without_a_common_word_and_so_is_what_follows_it(
    start_memory: Start, provider: dict[str, object]
) -> None:
    async with start_memory(**provider) as memory:
        # To the simulator words are alike that begin alike; to a stemmer these two have nothing in common.
        await said(memory, "Breakfast was on the balcony.", "A quiet reply.", "Then we ate.", "Bread.", "Sleep.")
        found = await embedded(memory, "breakdown", "Breakfast was on the balcony.")
        assert "words" not in found["Breakfast was on the balcony."]
        assert next(iter(found)) == "Breakfast was on the balcony."
        assert "previous" in found["A quiet reply."]
        assert list((await memory.search("breakdown")).degraded) == []


async def test_a_fact_is_found_by_what_it_means(start_memory: Start, provider: dict[str, object]) -> None:
    async with start_memory(**provider) as memory:
        await memory.add_memory("Loves breakfast.")
        await memory.add_memory("Bakes bread.")
        found = await embedded(memory, "breakdown", "Loves breakfast.")
        assert next(iter(found)) == "Loves breakfast."


async def test_somebody_elses_meaning_is_never_found(start_memory: Start, provider: dict[str, object]) -> None:
    async with start_memory(**provider) as memory:
        await said(memory, "Breakfast was on the balcony.")
        await embedded(memory, "breakdown", "Breakfast was on the balcony.")
        assert await memory.found("breakdown", user_id=new_id()) == []


async def test_words_serve_alone_while_the_provider_is_away_and_the_answer_says_so(
    start_memory: Start, provider: dict[str, object]
) -> None:
    async with start_memory(**{**provider, "openai_base_url": "http://127.0.0.1:1"}) as memory:
        await said(memory, "My dog is called Bello.")
        answer = await memory.search("dog")
        assert [one.memory.text for one in answer.memories] == ["My dog is called Bello."]
        assert list(answer.degraded) == ["embeddings"]


async def test_what_is_not_embedded_yet_is_not_lost_behind_all_that_is(
    start_memory: Start, provider: dict[str, object], database: ServiceDatabase
) -> None:
    async with start_memory(**provider) as memory:
        for number in range(12):
            await said(memory, f"The parcel came to gate {number}.", "The parcel is at the gate, then.", "The gate is shut.")
        _, (fresh, _) = await said(memory, "The courier left parcel ZX81 there.", "Right.")
        async for _ in eventually(10):
            memory.upkeep.look()
            if not await fetch(database, "select 1 from upkeep where task = 'embed'"):
                break
        await run(database, "delete from embeddings where item_id = %s", fresh.message_id)
        assert fresh.text in await memory.found("parcel ZX81 at the gate")


async def test_a_search_by_meaning_is_one_statement_more(start_memory: Start, provider: dict[str, object]) -> None:
    async with start_memory(**provider) as memory:
        await said(memory, "Breakfast was on the balcony.", "Indeed.")
        await embedded(memory, "breakdown", "Breakfast was on the balcony.")
        with counted_statements() as seen:
            await memory.search("breakdown")
        asked = [one for one in seen if not one.startswith("begin") and " upkeep" not in one]
        assert len(asked) == 4


async def test_a_fact_is_found_and_lifts_the_message_that_it_was_learned_from(memory: MemoryService) -> None:
    conversation_id, messages = await said(memory, "She turned six on Sunday!", "Congratulations.")
    await learned(memory, "The user's daughter Lea was born in May.", conversation_id, messages[0])
    found = legs(await memory.search("daughter"))
    assert found["The user's daughter Lea was born in May."] == {"words"}
    assert found["She turned six on Sunday!"] == {"facts"}


async def test_only_the_kind_that_is_asked_for_is_found(memory: MemoryService) -> None:
    conversation_id, messages = await said(memory, "My daughter turned six.", "Congratulations.")
    await learned(memory, "The daughter's name is Lea.", conversation_id, messages[0])
    facts = await memory.search("daughter", kind="fact")
    assert {one.memory.kind for one in facts.memories} == {"fact"}
    turns = legs(await memory.search("daughter", kind="message"))
    assert "The daughter's name is Lea." not in turns
    assert "facts" in turns["My daughter turned six."]


async def test_of_one_conversation_the_facts_are_found_that_were_learned_there(memory: MemoryService) -> None:
    here, messages = await said(memory, "My daughter turned six.")
    elsewhere, others = await said(memory, "My daughter sings.")
    await learned(memory, "The daughter is six.", here, messages[0])
    await learned(memory, "The daughter is a singer.", elsewhere, others[0])
    found = await memory.found("daughter", conversation_id=here)
    assert set(found) == {"My daughter turned six.", "The daughter is six."}


async def test_a_superseded_fact_is_found_only_where_the_past_is_asked_for(memory: MemoryService) -> None:
    fact = await memory.add_memory("Lives in Lisbon, in a city flat.")
    await memory.update_memory(fact.id, text="Lives in Porto, in a city flat.")
    assert await memory.found("which city do I live in") == ["Lives in Porto, in a city flat."]
    past = await memory.search("which city did I live in before?")
    versions = {one.memory.text: one.memory for one in past.memories}
    assert set(versions) == {"Lives in Porto, in a city flat.", "Lives in Lisbon, in a city flat."}
    earlier = versions["Lives in Lisbon, in a city flat."]
    assert earlier.HasField("invalidate_time")
    assert earlier.superseded_by == fact.id
    assert await memory.found("which city did I live in before?", include_superseded=False) == [
        "Lives in Porto, in a city flat."
    ]
    assert len(await memory.found("which city", include_superseded=True)) == 2


async def test_an_expired_fact_is_never_found(memory: MemoryService) -> None:
    soon = Timestamp()
    soon.FromDatetime(datetime.now(UTC) + timedelta(seconds=1.5))
    await memory.add_memory("Has a parcel at the post office.", expire_time=soon)
    assert await memory.found("parcel") == ["Has a parcel at the post office."]
    async for _ in eventually(10):
        if await memory.found("parcel", include_superseded=True) == []:
            break


async def test_a_deleted_fact_is_not_found(memory: MemoryService) -> None:
    fact = await memory.add_memory("Likes kiwi.")
    await memory.delete_memory(fact.id)
    assert await memory.found("kiwi") == []


async def test_the_messages_beside_one_that_fits_are_found_after_it(memory: MemoryService) -> None:
    await said(memory, "First.", "Second.", "The kayak leaks.", "Patch it.", "Fifth.")
    found = legs(await memory.search("kayak"))
    assert next(iter(found)) == "The kayak leaks."
    assert found["Second."] == found["Patch it."] == {"neighbour"}
    assert "First." not in found


async def test_the_last_place_that_there_is_has_no_neighbour_behind_it(memory: MemoryService) -> None:
    await memory.record(new_id(), [message(2**31 - 1, "A zebra at the end of the world.")])
    assert await memory.found("zebra") == ["A zebra at the end of the world."]


async def test_what_repeats_a_message_beside_it_comes_after_it_and_after_the_fact_that_is_current(
    memory: MemoryService,
) -> None:
    first = "My name is Ana and I live in Lisbon."
    second = "I moved from Lisbon to Porto last May."
    echo = f'You said: "{first}" This is the first message that I received.'
    later = f'You said: "{second}" Before it I received 2 messages; you had said "{first}"'
    conversation_id, messages = await said(memory, first, echo, second, later)
    await learned(memory, "The user lives in Porto.", conversation_id, messages[2])
    answer = await memory.search("where does the user live")
    found = [one.memory.text for one in answer.memories]
    assert found[0] == "The user lives in Porto."
    assert found.index(first) < min(found.index(echo), found.index(later))
    # What leads already is not lifted by what stands beside it.
    assert "neighbour" not in answer.memories[found.index(first)].found_by


async def test_a_leg_without_weight_is_switched_off(start_memory: Start) -> None:
    async with start_memory(recall_neighbour_weight=0) as memory:
        await said(memory, "The kayak leaks.", "Patch it.")
        assert await memory.found("kayak") == ["The kayak leaks."]


async def test_what_was_said_at_the_time_that_is_asked_about_comes_first(memory: MemoryService) -> None:
    may, june = (int(datetime(2023, month, 10, tzinfo=UTC).timestamp()) for month in (5, 6))
    await said(memory, "We went hiking in the hills.", seconds=june)
    await said(memory, "We went hiking by the sea.", seconds=may)
    for query in ("hiking in May 2023", "Where did I go hiking on 10 May 2023?", "hiking 2023-05-10"):
        answer = await memory.search(query)
        assert answer.memories[0].memory.text == "We went hiking by the sea."
        assert "time" in answer.memories[0].found_by


async def test_cues_of_time_are_seen_from_now(memory: MemoryService) -> None:
    now = int(datetime.now(UTC).timestamp())
    await said(memory, "Dinner was pasta.", seconds=now - 40 * DAY)
    await said(memory, "Dinner was soup.", seconds=now - DAY)
    assert (await memory.found("What was dinner yesterday?"))[0] == "Dinner was soup."
    assert (await memory.found("What was dinner 40 days ago?"))[0] == "Dinner was pasta."


async def test_a_query_of_nothing_but_time_finds_what_was_said_then(memory: MemoryService) -> None:
    now = int(datetime.now(UTC).timestamp())
    await said(memory, "Old words.", seconds=now - 40 * DAY)
    await said(memory, "Fresh words.", seconds=now - DAY)
    assert await memory.found("what was it that I did yesterday?") == ["Fresh words."]


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("what did I say yesterday", "2026-11-17", "2026-11-17"),
        ("the day before yesterday", "2026-11-16", "2026-11-16"),
        ("last week", "2026-11-09", "2026-11-15"),
        ("this month", "2026-11-01", "2026-11-18"),
        ("last month", "2026-10-01", "2026-10-31"),
        ("last year", "2025-01-01", "2025-12-31"),
        ("on Monday", "2026-11-16", "2026-11-16"),
        ("last Wednesday", "2026-11-11", "2026-11-11"),
        ("three days ago", "2026-11-15", "2026-11-15"),
        ("the last two weeks", "2026-11-04", "2026-11-18"),
        ("in May", "2026-05-01", "2026-05-31"),
        ("in December", "2025-12-01", "2025-12-31"),
        ("in February 2024", "2024-02-01", "2024-02-29"),
        ("on the 8th of May, 2023", "2023-05-08", "2023-05-08"),
        ("May 8", "2026-05-08", "2026-05-08"),
        ("since June 2026", "2026-06-01", "2026-11-18"),
        ("back in 2019", "2019-01-01", "2019-12-31"),
        ("on 2023-05-08 or in 2022", "2023-05-08", "2023-05-08"),
    ],
)
def test_expressions_of_time_are_windows(text: str, first: str, last: str) -> None:
    window = window_of(text, now=NOW)
    assert window is not None
    half_a_day = timedelta(hours=12)
    assert (window.start + half_a_day).date().isoformat() == first
    assert (window.end - half_a_day - timedelta(seconds=1)).date().isoformat() == last


@pytest.mark.parametrize("text", ["may I march on?", "tomorrow", "in 2031", "room 2019", "call 555-2023", "", "次の週"])
def test_what_is_no_time_of_the_past_is_no_window(text: str) -> None:
    assert window_of(text, now=NOW) is None


@pytest.mark.parametrize(
    ("query", "spoken"),
    [
        ("What is the user's dog called?", "What is my dog called?"),
        ("Where does the user live?", "Where does I live?"),
        ("their birthday", "my birthday"),
        ("What is the user allergic to, and their diet?", "What is I allergic to, and my diet?"),
        ("Are they vegetarian?", "am I vegetarian?"),
        ("my parents and their house", "my parents and their house"),
        ("What did Anna say of their trip?", "What did Anna say of their trip?"),
    ],
)
def test_what_is_asked_about_the_user_is_put_in_the_users_own_voice(query: str, spoken: str) -> None:
    assert own_voice(query) == spoken


def test_a_user_who_is_asked_about_by_name_is_looked_for_in_the_first_person() -> None:
    assert read_question("What is Caroline's job?", now=NOW, name="Caroline").meaning == "What is my job?"
    assert read_question("What is Carolinea doing?", now=NOW, name="Caroline").meaning == "What is Carolinea doing?"


@pytest.mark.parametrize(
    ("query", "asks"),
    [
        ("what did I like before?", True),
        ("where did I use to work previously", True),
        ("what I used to eat", True),
        ("my old address", True),
        ("remind me before Friday", False),
        ("what do I like", False),
        ("the used car", False),
    ],
)
def test_cues_of_the_past_are_understood(query: str, *, asks: bool) -> None:
    assert read_question(query, now=NOW).asks_about_past is asks
