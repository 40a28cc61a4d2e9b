"""Learning while things break: models, processes, and the messages themselves."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from parley.memory.v1 import memory_pb2
from services.memory.facts.changes import MAX_NAME_CHARACTERS
from simulator.control import Fault, ScriptedAnswer
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.memory.conftest import NO_PROVIDER, Start
from tests.memory.database import fetch, opened
from tests.memory.learning import IS_EXTRACTION, LEARNING, Learner, operation, proposing
from tests.memory.service import eventually, new_id
from tests.memory.test_extraction_junk import refused

TEA = operation(text="The user likes tea", attribute="likes")


@pytest.fixture
async def learner(start_memory: Start, simulator: Running, database: ServiceDatabase) -> AsyncIterator[Learner]:
    async with start_memory(openai_base_url=simulator.base_url, **LEARNING) as memory:
        yield Learner(memory, simulator, database)


async def held(learner: Learner) -> None:
    """Returns when the model is thinking."""
    learner.memory.upkeep.look()
    await learner.simulator.control.wait(held=1)


def dictated(text: str, **fields: object) -> ScriptedAnswer:
    return ScriptedAnswer(match=IS_EXTRACTION, text=text, **fields)


@pytest.mark.parametrize(
    "text", ["I am sorry, I cannot do that.", '{"operations": [{"operation": "ADD"}]}', '{"facts": []}', ""]
)
async def test_a_malformed_answer_is_asked_for_once_more(learner: Learner, text: str) -> None:
    await learner.script(dictated(text), proposing(TEA))
    await learner.say("I like tea")
    assert await learner.texts() == ["The user likes tea"]


async def test_a_batch_that_no_model_can_answer_is_tried_again_later_and_holds_nothing_else_up(learner: Learner) -> None:
    await learner.script(dictated("no", times=2))
    await learner.record("I like tea")
    async for _ in eventually():
        learner.memory.upkeep.look()
        tries = await fetch(learner.database, "select tries from upkeep where task = 'extract' and claim_until is null")
        if tries == [(1,)]:
            break
    other = Learner(learner.memory, learner.simulator, learner.database)
    await other.record("My name is Ana.")
    async for _ in eventually():
        learner.memory.upkeep.look()
        if await learner.texts() == ["The user's name is Ana."]:
            break
    # Its time has come.
    async with opened(learner.database) as connection:
        await connection.execute("update upkeep set due_time = now()")
    await learner.read()
    assert await learner.texts() == ["The user likes tea.", "The user's name is Ana."]


async def test_a_batch_that_was_refused_to_the_last_is_passed_over(learner: Learner) -> None:
    await learner.script(dictated("no", times=2))
    async with opened(learner.database) as connection:
        await connection.execute(
            "insert into upkeep (user_id, scope_id, task, tries, due_time)"
            " values (%s, %s, 'extract', 4, now() + interval '1 hour')",
            (learner.memory.user_id, learner.conversation_id),
        )
    await learner.record("I like tea")
    await learner.read()
    assert await learner.facts() == []
    assert await fetch(learner.database, "select extracted_sequence from conversations") == [(2,)]
    await learner.say("My name is Ana.")
    assert await learner.texts() == ["The user's name is Ana."]


@pytest.mark.parametrize(
    ("attribute", "valid_to"),
    [("favorite " * 11, None), ("ß" * 60, None), ("ﷺ" * 50, None), ("can't " * 16, None), (f"favorite {'x' * 88}", "2020")],
    ids=["British", "folded", "taken apart", "not", "former"],
)
async def test_a_name_that_grows_where_it_is_kept_is_refused_and_holds_nothing_up(
    learner: Learner, attribute: str, valid_to: str | None
) -> None:
    """What is told is bounded; the name under which it is kept may be longer than that."""
    assert len(attribute) <= MAX_NAME_CHARACTERS
    before = refused("too_long")
    grown = operation(text="The user likes milk", attribute=attribute, valid_to=valid_to)
    await learner.script(proposing(grown, TEA))
    await learner.say("I like tea and milk")
    assert await learner.texts() == ["The user likes tea"]
    assert refused("too_long") == before + 1
    await learner.script(proposing(operation("UPDATE", "The user likes black tea", fact=1, attribute=attribute), TEA))
    await learner.say("I like black tea")
    assert await learner.texts() == ["The user likes tea"]


@pytest.mark.parametrize("told", ["²²", "2020-²²", "2020-\u0660\u0665", "-", "2020-99-99"])
async def test_a_date_that_is_none_is_left_out(learner: Learner, told: str) -> None:
    await learner.script(proposing({**TEA, "valid_from": told, "valid_to": told}))
    await learner.say("I like tea")
    assert await learner.texts() == ["The user likes tea"]


async def test_a_model_that_does_not_exist_waits_for_its_operator(learner: Learner) -> None:
    fault = Fault(kind="status", status=404)
    await learner.script(ScriptedAnswer(match=IS_EXTRACTION, fault=fault, times=3))
    await learner.say("I like tea")
    assert await learner.texts() == ["The user likes tea."]
    assert await fetch(learner.database, "select 1 from upkeep where task = 'extract'") == []


async def test_while_the_model_is_away_everything_else_works_and_then_all_is_caught_up_without_a_storm(
    start_memory: Start, simulator: Running, database: ServiceDatabase
) -> None:
    at_once, away_seconds, longest_pause_seconds = 4, 2.0, 0.5
    pauses = {"upkeep_retry_seconds": 0.1, "upkeep_longest_pause_seconds": longest_pause_seconds}
    settings = {**LEARNING, **pauses, "extraction_concurrency": at_once, "openai_base_url": simulator.base_url}
    async with start_memory(**settings) as memory:
        learners = [Learner(memory, simulator, database) for _ in range(20)]
        outage = Fault(kind="status", status=503)
        await simulator.control.script(ScriptedAnswer(match=IS_EXTRACTION, fault=outage, for_seconds=away_seconds))
        for number, learner in enumerate(learners):
            await learner.record(f"I like number{number} best.")
            assert len(await memory.texts(learner.conversation_id)) == 2
        await learners[0].read(60)
        assert len(await memory.memories(page_size=100)) == len(learners)
        # Each conversation once. Besides, what was under way when the model went, and a try after each pause: the first ones
        # are shorter, and each may be a fifth shorter.
        failed = len(await learners[0].requests()) - len(learners)
        assert 2 <= failed <= at_once + 4 + away_seconds / (0.8 * longest_pause_seconds)


async def test_a_model_that_cannot_be_reached_leaves_the_work_owed(
    start_memory: Start, simulator: Running, database: ServiceDatabase
) -> None:
    user_id = new_id()
    async with start_memory(**LEARNING, openai_base_url=NO_PROVIDER) as memory:
        memory.user_id = user_id
        learner = Learner(memory, simulator, database)
        await learner.record("I like tea")
        memory.upkeep.look()
        await asyncio.sleep(0.5)
        assert await fetch(database, "select tries from upkeep where task = 'extract'") == [(0,)]
        assert await memory.texts(learner.conversation_id) == ["I like tea", "I see."]
    async with start_memory(**LEARNING, openai_base_url=simulator.base_url) as memory:
        memory.user_id = user_id
        learner = Learner(memory, simulator, database)
        await learner.read()
        assert await learner.texts() == ["The user likes tea."]


async def test_a_slow_model_is_given_up_and_asked_again(
    start_memory: Start, simulator: Running, database: ServiceDatabase
) -> None:
    settings = {**LEARNING, "extraction_timeout_seconds": 0.3, "openai_base_url": simulator.base_url}
    async with start_memory(**settings) as memory:
        learner = Learner(memory, simulator, database)
        await learner.script(proposing(TEA, hold_after_tokens=0))
        await learner.record("I like tea")
        await learner.read()
        assert await learner.texts() == ["The user likes tea."]
        assert len(await learner.requests()) == 2


async def test_a_conversation_that_is_deleted_while_the_model_thinks_leaves_nothing(learner: Learner) -> None:
    await learner.script(proposing(TEA, hold_after_tokens=0))
    await learner.record("I like tea")
    await held(learner)
    await learner.memory.forget(learner.conversation_id)
    await learner.simulator.control.release()
    await learner.read()
    assert await fetch(learner.database, "select id from facts") == []


async def test_an_end_that_is_edited_away_while_the_model_thinks_teaches_nothing(learner: Learner) -> None:
    await learner.script(proposing(TEA, hold_after_tokens=0))
    await learner.record("My name is Ana.", "I like tea")
    await held(learner)
    await learner.memory.forget(learner.conversation_id, 3)
    learner.said = 2
    await learner.record("I like rum.", days=1)
    await learner.simulator.control.release()
    await learner.read()
    assert await learner.texts() == ["The user likes rum.", "The user's name is Ana."]


async def test_everything_that_is_erased_while_the_model_thinks_stays_erased(learner: Learner) -> None:
    await learner.script(proposing(TEA, hold_after_tokens=0))
    await learner.record("I like tea")
    await held(learner)
    request = memory_pb2.DeleteMemoriesRequest()
    await learner.memory.stub.DeleteMemories(request, metadata=learner.memory.as_user(), timeout=10)
    await learner.simulator.control.release()
    await learner.read()
    assert await fetch(learner.database, "select id from facts") == []


async def test_what_comes_while_the_model_thinks_is_read_after(learner: Learner) -> None:
    await learner.script(proposing(TEA, hold_after_tokens=0))
    await learner.record("I like tea")
    await held(learner)
    await learner.record("My name is Ana.")
    await learner.simulator.control.release()
    await learner.read()
    assert await learner.texts() == ["The user likes tea", "The user's name is Ana."]
    assert len(await learner.requests()) == 2


async def test_two_processes_read_a_conversation_once(
    start_memory: Start, simulator: Running, database: ServiceDatabase
) -> None:
    settings = {**LEARNING, "openai_base_url": simulator.base_url}
    async with start_memory(**settings) as memory, start_memory(**settings) as other:
        learners = [Learner(memory, simulator, database) for _ in range(10)]
        for learner in learners:
            await learner.record("I like tea")
            other.upkeep.look()
            memory.upkeep.look()
        await learners[0].read()
        [fact] = await memory.memories()
        assert len(fact.sources) == len(learners)
        assert len(await learners[0].requests()) == len(learners)


async def test_a_process_that_dies_while_the_model_thinks_leaves_the_work_to_the_next(
    start_memory: Start, simulator: Running, database: ServiceDatabase
) -> None:
    settings = {**LEARNING, "openai_base_url": simulator.base_url}
    user_id = new_id()
    async with start_memory(**settings) as memory:
        memory.user_id = user_id
        learner = Learner(memory, simulator, database)
        await learner.script(proposing(TEA, hold_after_tokens=0))
        await learner.record("I like tea")
        await held(learner)
    await forget_claims(database)
    async with start_memory(**settings) as memory:
        memory.user_id = user_id
        learner = Learner(memory, simulator, database)
        await learner.read()
        assert await learner.texts() == ["The user likes tea."]


async def test_a_process_that_dies_between_the_call_and_the_write_leaves_one_result(
    start_memory: Start, simulator: Running, database: ServiceDatabase
) -> None:
    settings = {**LEARNING, "openai_base_url": simulator.base_url}
    user_id, conversation_id = new_id(), new_id()
    async with opened(database) as connection, start_memory(**settings) as memory:
        memory.user_id = user_id
        learner = Learner(memory, simulator, database, conversation_id)
        await learner.record("I like tea", "My name is Ana.")
        # What a change of facts waits for.
        await connection.execute("select 1 from people where user_id = %s for update", (user_id,))
        async for _ in eventually():
            memory.upkeep.look()
            if (asked := await learner.requests()) and asked[0].outcome == "completed":
                break
        await asyncio.sleep(0.2)
    await forget_claims(database)
    async with start_memory(**settings) as memory:
        memory.user_id = user_id
        learner = Learner(memory, simulator, database, conversation_id)
        await learner.read()
        facts = await learner.facts()
        assert sorted(len(fact.sources) for fact in facts) == [1, 1]
        assert len(await learner.requests()) == 2
        await learner.read()


async def test_a_process_that_was_stopped_and_wakes_changes_nothing(
    start_memory: Start, simulator: Running, database: ServiceDatabase
) -> None:
    settings = {**LEARNING, "openai_base_url": simulator.base_url}
    async with start_memory(**settings) as sleeper:
        learner = Learner(sleeper, simulator, database)
        await learner.script(proposing(operation(text="The user loves tea", attribute="drink"), hold_after_tokens=0))
        await learner.record("I like tea")
        await held(learner)
        # The others take it for dead.
        await forget_claims(database)
        async with start_memory(**settings) as memory:
            memory.user_id = sleeper.user_id
            other = Learner(memory, simulator, database)
            await other.read()
        await simulator.control.release()
        async for _ in eventually():
            if (await simulator.control.status()).running == 0:
                break
        await asyncio.sleep(0.3)
        assert await learner.texts() == ["The user likes tea."]


async def forget_claims(database: ServiceDatabase) -> None:
    """As if the time of whoever works on something had passed."""
    async with opened(database) as connection:
        await connection.execute("update upkeep set claim_until = null")
