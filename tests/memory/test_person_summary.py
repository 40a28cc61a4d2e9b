"""The person's summary: of the user's own facts, one call for many changes, none without one, nothing deleted in it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from prometheus_client import Counter

from parley.memory.v1 import memory_pb2
from services.memory.model_calls import CALLS, TOKENS
from services.memory.people import hold_person, touch_person
from services.memory.summaries.limits import SummaryLimits
from services.memory.summaries.store import SummaryStore
from services.runtime.database import open_database
from simulator.control import Match, ScriptedAnswer
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.memory.conftest import Start
from tests.memory.service import MemoryService, eventually, new_id
from tests.memory.test_summaries import CANARY, QUICK, four, rows, settled

IS_PORTRAIT = Match(text="Facts:\n")


@pytest.fixture
async def memory(start_memory: Start, simulator: Running) -> AsyncIterator[MemoryService]:
    async with start_memory(openai_base_url=simulator.base_url, **QUICK) as service:
        yield service


def counted(counter: Counter) -> float:
    return sum(sample.value for metric in counter.collect() for sample in metric.samples if sample.name.endswith("_total"))


async def asked(simulator: Running) -> list[str]:
    """What the model was told to sum up of people, as text."""
    requests = await simulator.control.requests("responses")
    return [str(one.body["input"]) for one in requests if "what is known of the user" in str(one.body["instructions"])]


async def test_facts_are_summed_up(memory: MemoryService) -> None:
    await memory.add_memory("The user lives in Porto.")

    text = await memory.summarized(holding="Porto")

    assert "Porto" in text
    found = await memory.summary()
    assert (found.conversation_id, found.last_sequence) == ("", 0)
    assert (await memory.summary(user_id=new_id())).text == ""


async def test_what_the_user_did_not_say_does_not_come_in(memory: MemoryService, simulator: Running) -> None:
    """The summary stands among the model's instructions: no page and no reply may get there by being summed up."""
    conversation_id = new_id()
    source = memory_pb2.MemorySource(conversation_id=new_id(), message_id=new_id())
    await memory.add_memory("The user has won a prize.", stamped_by="tool", source=source, metadata=memory.as_chat())
    await memory.record(conversation_id, four(1, f"My cat is called {CANARY}."))
    await memory.summarized(conversation_id, holding=CANARY)
    await memory.add_memory("The user lives in Porto.", attribute="home city", importance=9)

    await memory.summarized(holding="Porto")

    prompt = (await asked(simulator))[-1]
    assert "- home city: The user lives in Porto." in prompt
    assert "prize" not in prompt
    assert CANARY not in prompt


async def test_many_changes_are_one_call(start_memory: Start, simulator: Running) -> None:
    settings = {"openai_base_url": simulator.base_url, **QUICK, "portrait_delay_seconds": 1.5}
    async with start_memory(**settings) as memory:
        for number in range(8):
            await memory.add_memory(f"The user owns house number {number}.")
        await memory.summarized(holding="number 0")

    assert len(await asked(simulator)) == 1


async def test_what_is_owed_without_a_change_costs_no_call(
    memory: MemoryService, simulator: Running, database: ServiceDatabase
) -> None:
    await memory.add_memory("The user lives in Porto.")
    text = await memory.summarized()
    await settled(database, memory, "portray")
    before = await memory.summary()

    await rows(
        database,
        "insert into upkeep (user_id, scope_id, task) values (%s, %s, 'portray') returning 1",
        memory.user_id,
        memory.user_id,
    )
    await settled(database, memory, "portray")

    assert len(await asked(simulator)) == 1
    assert await memory.summary() == before
    assert before.text == text


async def test_a_deleted_fact_is_gone_from_the_summary_at_once(memory: MemoryService, database: ServiceDatabase) -> None:
    await memory.add_memory("The user lives in Porto.")
    fact = await memory.add_memory(f"The user is {CANARY}.")
    await memory.summarized(holding=CANARY)

    await memory.delete_memory(fact.id)

    assert CANARY not in (await memory.summary()).text
    await settled(database, memory, "portray")
    assert CANARY not in await memory.summarized(holding="Porto")


async def test_with_the_last_fact_the_summary_goes_and_no_model_is_asked(
    memory: MemoryService, simulator: Running, database: ServiceDatabase
) -> None:
    fact = await memory.add_memory("The user lives in Porto.")
    await memory.summarized()
    await settled(database, memory, "portray")

    await memory.delete_memory(fact.id)
    await settled(database, memory, "portray")

    assert (await memory.summary()).text == ""
    assert len(await asked(simulator)) == 1


async def test_a_fact_that_was_deleted_while_the_model_was_asked_is_in_no_summary(
    memory: MemoryService, simulator: Running, database: ServiceDatabase
) -> None:
    held = ScriptedAnswer(text=f"The user is {CANARY}.", hold_after_tokens=0, match=IS_PORTRAIT)
    await simulator.control.script(held)
    fact = await memory.add_memory(f"The user is {CANARY}.")
    memory.upkeep.look()
    await simulator.control.wait(held=1)

    await memory.delete_memory(fact.id)
    await simulator.control.release()
    await settled(database, memory, "portray")

    assert (await memory.summary()).text == ""
    assert await rows(database, "select 1 from summaries where body like %s", f"%{CANARY}%") == []


async def test_a_fact_that_was_changed_while_the_model_was_asked_is_told_as_it_is_now(
    memory: MemoryService, simulator: Running, database: ServiceDatabase
) -> None:
    held = ScriptedAnswer(text="The user lives in Lisbon.", hold_after_tokens=0, match=IS_PORTRAIT)
    await simulator.control.script(held)
    fact = await memory.add_memory("The user lives in Lisbon.")
    memory.upkeep.look()
    await simulator.control.wait(held=1)

    await memory.update_memory(fact.id, text="The user lives in Porto.")
    await simulator.control.release()
    await settled(database, memory, "portray")

    text = await memory.summarized()
    assert "Porto" in text
    assert "Lisbon" not in text


async def test_what_a_fact_does_not_say_any_more_is_gone_from_the_summary_at_once(
    start_memory: Start, simulator: Running
) -> None:
    settings = {"openai_base_url": simulator.base_url, **QUICK}
    async with start_memory(**settings) as memory:
        fact = await memory.add_memory("The user lives in Lisbon.")
        await memory.summarized(holding="Lisbon")
    async with start_memory(**settings | {"portrait_delay_seconds": 600}) as again:
        again.user_id = memory.user_id
        await again.update_memory(fact.id, importance=9)
        assert "Lisbon" in (await again.summary()).text

        await again.update_memory(fact.id, text="The user lives in Porto.")

        assert "Lisbon" not in (await again.summary()).text
        assert "Lisbon" not in await again.summarized(holding="Porto")


async def test_erasing_everything_takes_every_summary(
    memory: MemoryService, simulator: Running, database: ServiceDatabase
) -> None:
    await memory.add_memory(f"The user's name is {CANARY}.")
    await memory.summarized(holding=CANARY)
    await simulator.control.script(
        ScriptedAnswer(text=f"The user is {CANARY}.", hold_after_tokens=0, match=Match(text="Messages:\n"))
    )
    await memory.record(new_id(), four(1, f"My name is {CANARY}, still."))
    memory.upkeep.look()
    await simulator.control.wait(held=1)

    await memory.stub.DeleteMemories(memory_pb2.DeleteMemoriesRequest(), metadata=memory.as_user(), timeout=10)
    await simulator.control.release()
    await settled(database, memory, "summarize", "portray")

    assert await rows(database, "select 1 from summaries") == []


async def test_the_model_that_the_settings_name_is_asked_and_counted(start_memory: Start, simulator: Running) -> None:
    settings = {"openai_base_url": simulator.base_url, "openai_api": "chat_completions", "summary_model": "gpt-5-nano"}
    calls, tokens = CALLS.labels("portray", "answered"), TOKENS.labels("portray", "input")
    before = counted(calls), counted(tokens)
    async with start_memory(**settings, **QUICK) as memory:
        await memory.add_memory("The user lives in Porto.")
        assert "Porto" in await memory.summarized()
    assert counted(calls) == before[0] + 1
    assert counted(tokens) > before[1] + 100

    [request] = await simulator.control.requests("chat.completions")
    assert request.body["model"] == "gpt-5-nano"


async def test_a_summary_waits_for_whoever_is_about_to_rewrite_what_it_tells(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    await memory.add_memory("The user lives in Porto.")
    await memory.summarized()
    async with AsyncExitStack() as parts:
        pool = open_database(database.url, pool_size=2)
        parts.push_async_callback(pool.close)
        store = SummaryStore(pool, SummaryLimits(4, 4, 0, 0, 6_000, 1_200))
        person = await store.read_person(memory.user_id)
        async with pool.transaction(user_id=memory.user_id) as connection:
            await hold_person(connection, memory.user_id)
            keeping = asyncio.create_task(
                store.keep_portrait(memory.user_id, CANARY, version=person.version, digest=b"another")
            )
            async for _ in eventually():
                if keeping.done() or await rows(database, "select 1 from pg_locks where not granted"):
                    break
            await touch_person(connection, memory.user_id)

        assert await keeping is False
    assert CANARY not in (await memory.summary()).text
