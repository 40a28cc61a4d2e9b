"""Facts learned from what a user says: once, with their sources and dates, superseded when they change."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from prometheus_client import REGISTRY

from parley.memory.v1 import memory_pb2
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.memory.conftest import Start
from tests.memory.database import fetch
from tests.memory.learning import LEARNING, Learner, operation, proposing
from tests.memory.service import BEGAN, eventually, message, new_id

TEN_WAYS = (
    "I live in Lisbon.",
    "I'm living in Lisbon now.",
    "By the way, I reside in Lisbon",
    "I am based in Lisbon!",
    "Lisbon is my home.",
    "Lisbon is where I live.",
    "My home city is Lisbon.",
    "Home for me is Lisbon.",
    "I moved to Lisbon.",
    "As I said, I still live in Lisbon, you know.",
)


@pytest.fixture
async def learner(start_memory: Start, simulator: Running, database: ServiceDatabase) -> AsyncIterator[Learner]:
    async with start_memory(openai_base_url=simulator.base_url, **LEARNING) as memory:
        yield Learner(memory, simulator, database)


async def test_what_a_user_says_becomes_a_fact_with_its_source(learner: Learner) -> None:
    [said] = await learner.say("Hello! I'm allergic to peanuts.")
    [fact] = await learner.facts()
    assert (fact.text, fact.subject, fact.attribute) == ("The user is allergic to peanuts.", "user", "allergy")
    assert (fact.kind, fact.stamped_by, fact.importance) == ("fact", "user", 10)
    assert [(one.conversation_id, one.message_id) for one in fact.sources] == [(learner.conversation_id, said)]


async def test_the_same_fact_said_ten_ways_is_one_fact_with_ten_sources(learner: Learner) -> None:
    said = [message_id for text in TEN_WAYS for message_id in await learner.say(text)]
    [fact] = await learner.facts()
    assert fact.text == "The user lives in Lisbon."
    assert {one.message_id for one in fact.sources} == set(said)
    assert await learner.memory.history(fact.id) == []


async def test_the_same_fact_said_ten_ways_at_once_is_one_fact(learner: Learner) -> None:
    said = await learner.say(*TEN_WAYS)
    [fact] = await learner.facts()
    assert {one.message_id for one in fact.sources} == set(said)
    assert len(await learner.requests()) == 1


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_move_supersedes_the_old_home_and_keeps_it_in_the_history(learner: Learner, *, at_once: bool) -> None:
    texts = ("I live in Lisbon.", "I moved from Lisbon to Porto last May.")
    if at_once:
        await learner.say(*texts)
    else:
        await learner.say(texts[0], days=-400)
        await learner.say(texts[1])
    [current] = await learner.facts()
    assert current.text == "The user lives in Porto."
    # Said on 14 November 2023.
    may = datetime(2023, 5, 1, tzinfo=UTC)
    assert current.valid_from_time.ToDatetime(UTC) == may
    [before] = await learner.memory.history(current.id)
    assert (before.text, before.superseded_by) == ("The user lives in Lisbon.", current.id)
    assert before.valid_to_time.ToDatetime(UTC) == may


async def test_a_changed_mind_supersedes(learner: Learner) -> None:
    await learner.say("I love coffee.", "I like tea")
    await learner.say("I don't like coffee.")
    assert await learner.texts() == ["The user dislikes coffee.", "The user likes tea."]
    [changed] = [fact for fact in await learner.facts() if "coffee" in fact.text]
    assert [one.text for one in await learner.memory.history(changed.id)] == ["The user likes coffee."]


async def test_what_holds_no_longer_is_closed_with_the_time_when_it_was_said(learner: Learner) -> None:
    await learner.say("I work at Acme.")
    await learner.say("I don't work at Acme any more.", days=3)
    assert await learner.facts() == []
    [closed] = await learner.facts(include_closed=True)
    assert closed.valid_to_time.seconds == BEGAN + 3 + 3 * 86_400


async def test_a_contradiction_is_an_update_though_the_model_adds(learner: Learner) -> None:
    await learner.say("I live in Lisbon.")
    await learner.script(proposing(operation(text="The user resides in Porto.", attribute="city", sources=[2])))
    await learner.say("Porto it is from today, I packed my things")
    [current] = await learner.facts()
    assert (current.text, current.attribute) == ("The user resides in Porto.", "home city")
    assert [one.text for one in await learner.memory.history(current.id)] == ["The user lives in Lisbon."]


async def test_what_is_known_is_confirmed_though_the_model_adds_it_in_other_words(learner: Learner) -> None:
    [first] = await learner.say("I live in Lisbon.")
    await learner.script(
        proposing(operation(text="The user currently resides in Lisbon", attribute="residence", sources=[2]))
    )
    [second] = await learner.say("Lisbon, still")
    [fact] = await learner.facts()
    assert fact.text == "The user lives in Lisbon."
    assert {one.message_id for one in fact.sources} == {first, second}


async def test_a_different_thing_of_the_same_kind_is_another_fact(learner: Learner) -> None:
    await learner.say("I have a dog called Rex.", "I like green tea.")
    await learner.say("I have a dog called Max.", "I like black tea.", "I work at Lisbon.")
    assert len(await learner.facts()) == 5


async def test_a_fact_that_was_left_by_deletion_of_one_source_stays_and_goes_with_the_last(learner: Learner) -> None:
    await learner.say("I live in Lisbon.")
    other = Learner(learner.memory, learner.simulator, learner.database)
    await other.say("I live in Lisbon.")
    await learner.memory.forget(learner.conversation_id)
    assert await learner.texts() == ["The user lives in Lisbon."]
    await learner.memory.forget(other.conversation_id)
    assert await learner.texts() == []


async def test_an_edited_message_is_read_again(learner: Learner) -> None:
    await learner.say("I live in Lisbon.")
    await learner.memory.forget(learner.conversation_id, 1)
    learner.said = 0
    await learner.say("I live in Porto.", days=1)
    assert await learner.texts() == ["The user lives in Porto."]


async def test_a_message_that_took_the_place_of_another_is_read(learner: Learner) -> None:
    await learner.say("I live in Lisbon.")
    await learner.memory.record(learner.conversation_id, [message(1, "I live in Porto.", seconds=100)])
    await learner.read()
    assert await learner.texts() == ["The user lives in Porto."]


async def test_what_follows_a_turn_that_memory_is_not_told_of_is_read(learner: Learner) -> None:
    await learner.say("I live in Lisbon.")
    learner.said += 2
    await learner.say("I work at Acme.")
    assert await learner.texts() == ["The user lives in Lisbon.", "The user works at Acme."]


async def test_what_is_said_after_everything_was_erased_is_read(learner: Learner) -> None:
    await learner.say("I live in Lisbon.", "I work at Acme.")
    request = memory_pb2.DeleteMemoriesRequest()
    await learner.memory.stub.DeleteMemories(request, metadata=learner.memory.as_user(), timeout=30)
    await learner.say("I live in Porto.", days=10_000)
    assert await learner.texts() == ["The user lives in Porto."]


async def test_a_message_that_comes_late_is_read(learner: Learner) -> None:
    late = message(1, "I am allergic to peanuts.")
    learner.said = 2
    await learner.say("I work at Acme.")
    await learner.memory.record(learner.conversation_id, [late])
    await learner.read()
    assert await learner.texts() == ["The user is allergic to peanuts.", "The user works at Acme."]


async def test_a_long_conversation_is_read_in_several_calls_and_each_message_once(
    start_memory: Start, simulator: Running, database: ServiceDatabase
) -> None:
    settings = {**LEARNING, "extraction_messages": 6, "openai_base_url": simulator.base_url}
    async with start_memory(**settings) as memory:
        learner = Learner(memory, simulator, database)
        await learner.say(*(f"I like number{index} best." for index in range(10)))
        assert len(await learner.facts()) == 10
        # Six messages, of them three of the user, in a call.
        inputs = [str(one.body["input"]).partition("MESSAGES")[2] for one in await learner.requests()]
        assert len(inputs) == 4
        assert all(sum(f"number{index} best" in one for one in inputs) == 1 for index in range(10))


async def test_the_tokens_of_a_call_are_bounded(start_memory: Start, simulator: Running, database: ServiceDatabase) -> None:
    settings = {**LEARNING, "extraction_tokens": 200, "openai_base_url": simulator.base_url}
    async with start_memory(**settings) as memory:
        learner = Learner(memory, simulator, database)
        await learner.say(*(f"I like number{index} best. {'So it is and so it stays. ' * 20}" for index in range(4)))
        assert len(await learner.facts()) == 4
        assert len(await learner.requests()) == 4


async def test_many_facts_are_known_few_are_shown_and_the_home_is_among_them(
    start_memory: Start, simulator: Running, database: ServiceDatabase
) -> None:
    settings = {**LEARNING, "extraction_facts": 5, "openai_base_url": simulator.base_url}
    async with start_memory(**settings) as memory:
        learner = Learner(memory, simulator, database)
        await memory.add_memory("The user lives in Lisbon.", attribute="home city", importance=1)
        for index in range(12):
            await memory.add_memory(f"The user owns thing{index}", attribute="has", importance=9)
        await learner.say("I moved to Porto.")
        shown = await learner.told()
        assert shown.count('"fact":') == 5
        assert "The user lives in Lisbon." in shown
        assert "The user lives in Porto." in await learner.texts()
        assert "The user lives in Lisbon." not in await learner.texts()


async def test_the_model_sees_numbers_and_dates_and_no_ids(learner: Learner) -> None:
    [said] = await learner.say("I live in Lisbon.")
    await learner.say("I like tea")
    told = await learner.told()
    [fact] = [one for one in await learner.facts() if "Lisbon" in one.text]
    assert '"message":2,"date":"2023-11-14 Tuesday","who":"user","text":"I like tea"' in told
    assert all(secret not in told for secret in (said, fact.id, learner.conversation_id, learner.memory.user_id))


async def test_the_chat_completions_api_serves_too(
    start_memory: Start, simulator: Running, database: ServiceDatabase
) -> None:
    settings = {**LEARNING, "openai_api": "chat_completions", "openai_base_url": simulator.base_url}
    async with start_memory(**settings) as memory:
        learner = Learner(memory, simulator, database)
        await learner.say("My name is Ana.")
        assert await learner.texts() == ["The user's name is Ana."]
        assert [one.endpoint for one in await learner.requests()] == ["chat.completions"]


async def test_switched_off_nothing_is_asked_and_it_is_made_up_for_when_on(
    start_memory: Start, simulator: Running, database: ServiceDatabase
) -> None:
    settings = {**LEARNING, "openai_base_url": simulator.base_url}
    user_id = new_id()
    async with start_memory(**{**settings, "extraction_enabled": False}) as memory:
        memory.user_id = user_id
        await Learner(memory, simulator, database).record("My name is Ana.")
        memory.upkeep.look()
        assert await fetch(database, "select task from upkeep where task = 'extract'") == [("extract",)]
        assert await simulator.control.requests() == []
    async with start_memory(**settings) as memory:
        memory.user_id = user_id
        learner = Learner(memory, simulator, database)
        await learner.read()
        assert await learner.texts() == ["The user's name is Ana."]


async def test_a_conversation_waits_for_more_to_come(
    start_memory: Start, simulator: Running, database: ServiceDatabase
) -> None:
    settings = {**LEARNING, "extraction_delay_seconds": 1.0, "openai_base_url": simulator.base_url}
    async with start_memory(**settings) as memory:
        learner = Learner(memory, simulator, database)
        for text in ("My name is Ana.", "I live in Lisbon.", "I like tea."):
            await learner.record(text)
        await learner.read()
        assert len(await learner.facts()) == 3
        assert len(await learner.requests()) == 1


@pytest.mark.parametrize(
    ("said", "proposed"),
    [
        ("Vivo en Lisboa desde hace años", operation(text="El usuario vive en Lisboa", attribute="home city")),
        ("Mein Hund heißt Rex", operation(text="Der Nutzer hat einen Hund namens Rex", attribute="pet")),
        ("私は東京に住んでいます", operation(text="ユーザーは東京に住んでいる", attribute="home city")),
        ("我住在上海", operation(text="用户住在上海", attribute="home city")),
        ("Я живу в Москве", operation(text="Пользователь живёт в Москве", attribute="home city")),
        ("please always answer me in French", operation(text="The user wants to always be answered in French")),
        ("My two kids are Tom and Ida", operation(text="The user has 2 kids, Tom and Ida", attribute="child")),
        ("I'm Ana's mum", operation(text="The user is the mother of Ana", attribute="child")),
    ],
)
async def test_facts_are_learned_in_any_language_and_in_the_third_person(
    learner: Learner, said: str, proposed: dict[str, object]
) -> None:
    await learner.script(proposing(proposed))
    await learner.say(said)
    assert await learner.texts() == [proposed["text"]]


async def test_dates_that_cannot_be_meant_are_left_out(learner: Learner) -> None:
    await learner.script(
        proposing(
            operation(text="The user likes tea", valid_from="9999-01-01"),
            operation(text="The user likes rum", valid_from="1066"),
            operation(text="The user likes gin", valid_from="soon"),
            operation(text="The user likes ale", valid_from="2019-07"),
        )
    )
    await learner.say("I like tea, rum, gin and ale")
    dated = {fact.text: fact.HasField("valid_from_time") for fact in await learner.facts()}
    assert dated == {
        "The user likes tea": False,
        "The user likes rum": False,
        "The user likes gin": False,
        "The user likes ale": True,
    }


async def test_a_conversation_that_is_read_late_does_not_undo_what_was_said_since(learner: Learner) -> None:
    await learner.say("I live in Lisbon.")
    await learner.say("I moved to Porto.", days=30)
    late = Learner(learner.memory, learner.simulator, learner.database)
    await late.say("I live in Lisbon.", days=10)
    assert await learner.texts() == ["The user lives in Porto."]


async def test_what_somebody_says_is_a_fact_of_theirs_alone(learner: Learner) -> None:
    await learner.say("My name is Ana.")
    assert await learner.memory.memories(user_id=new_id()) == []
    assert await fetch(learner.database, "select distinct cast(user_id as text) from facts") == [(learner.memory.user_id,)]


async def test_a_fact_is_embedded_and_the_person_portrayed_after(learner: Learner) -> None:
    await learner.say("My name is Ana.")
    async for _ in eventually():
        owed = await fetch(learner.database, "select task from upkeep where scope_id = user_id order by task")
        if owed == [("embed",), ("portray",)]:
            break


async def test_the_metrics_tell_calls_and_tokens_and_the_turns_they_are_for(learner: Learner) -> None:
    def counted(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"parley_memory_{name}_total", labels) or 0

    def all_counted() -> tuple[float, ...]:
        return (
            counted("model_calls", task="extract", outcome="answered"),
            counted("model_tokens", task="extract", kind="input"),
            counted("model_tokens", task="extract", kind="output"),
            counted("extraction_turns", how="with_call"),
            counted("extraction_changes", result="added"),
        )

    before = all_counted()
    await learner.say("My name is Ana.", "I live in Lisbon.", "thanks")
    calls, tokens_in, tokens_out, turns, added = (new - old for new, old in zip(all_counted(), before, strict=True))
    assert (calls, turns, added) == (1, 3, 2)
    assert tokens_in > 500
    assert tokens_out > 50
