"""When something that was learned is forgotten, a fact says again what it said before that, where that stands by itself."""

from services.memory.facts.changes import Replace
from services.memory.facts.held import FactLimits
from services.memory.facts.store import FactStore
from services.memory.records import Source
from services.runtime.database import open_database
from suite.databases import ServiceDatabase
from tests.memory.database import fetch
from tests.memory.service import MemoryService, message, new_id
from tests.memory.test_erasure import erase, remember
from tests.memory.traces import CANARY, rows_with


async def test_what_was_stated_is_said_again_when_what_superseded_it_is_forgotten(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    stated = await memory.add_memory("lives in Lisbon", attribute="home city", importance=8)
    conversation_id = await _learned_instead(memory, database, stated.id, f"lives in {CANARY}")

    assert await memory.forget(conversation_id) == 1

    [fact] = await memory.memories()
    assert (fact.id, fact.text, fact.attribute, fact.importance) == (stated.id, "lives in Lisbon", "home city", 8)
    assert (fact.HasField("valid_to_time"), fact.HasField("invalidate_time"), list(fact.sources)) == (False, False, [])
    assert await memory.history(stated.id) == []
    assert await rows_with(database) == []
    assert await fetch(database, "select 1 from upkeep where task = 'embed' and scope_id = user_id") == [(1,)]


async def test_what_was_said_elsewhere_is_said_again_when_what_superseded_it_is_forgotten(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    elsewhere, told = new_id(), message(1, "I live in Lisbon.")
    await memory.record(elsewhere, [told])
    learned = await remember(memory, "lives in Lisbon", elsewhere, told.message_id)
    conversation_id = await _learned_instead(memory, database, learned.id, f"lives in {CANARY}")

    assert await erase(memory, conversation_id=conversation_id, kind="fact") == (1, 0)

    [fact] = await memory.memories()
    assert (fact.id, fact.text, [one.message_id for one in fact.sources]) == (
        learned.id,
        "lives in Lisbon",
        [told.message_id],
    )
    assert await memory.forget(elsewhere) == 1
    assert await memory.memories(include_closed=True) == []


async def test_what_is_said_by_another_fact_by_now_is_not_said_again(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    stated = await memory.add_memory("lives in Lisbon")
    conversation_id = await _learned_instead(memory, database, stated.id, f"lives in {CANARY}")
    other = await memory.add_memory("Lives in Lisbon!")

    await memory.forget(conversation_id)

    assert [one.id for one in await memory.memories(include_closed=True)] == [other.id]
    assert await rows_with(database) == []


async def _learned_instead(memory: MemoryService, database: ServiceDatabase, fact_id: str, text: str) -> str:
    """A conversation, of one message, from which a fact was learned in the place of what is known."""
    conversation_id, told = new_id(), message(1, text)
    await memory.record(conversation_id, [told])
    pool = open_database(database.url, pool_size=1)
    try:
        facts = FactStore(pool, FactLimits(facts=100, versions=10), portray_delay_seconds=300)
        source = Source(conversation_id, told.message_id)
        change = Replace(fact_id=fact_id, text=text, stamped_by="user", origin="extracted", sources=[source])
        [outcome] = await facts.change(memory.user_id, [change], basis=None)
    finally:
        await pool.close()
    assert outcome.result == "replaced"
    return conversation_id
