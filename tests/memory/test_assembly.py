"""AssembleContext with a query: messages, summaries and memories, bounded, in order, and never waiting for ever."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import LiteralString

import psycopg
import pytest
from sqlalchemy import make_url

from parley.memory.v1 import memory_pb2
from services.memory.tokens import text_tokens
from simulator.control import Fault, Match, ScriptedAnswer
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.memory.conftest import Start
from tests.memory.database import opened
from tests.memory.service import MemoryService, eventually, message, new_id
from tests.memory.statements import counted_statements
from tests.memory.test_summaries import QUICK, four

DAY = 86_400
# For a while: upkeep asks too.
STALLED_EMBEDDINGS = ScriptedAnswer(match=Match(endpoint="embeddings"), fault=Fault(kind="stall"), for_seconds=5)


async def told(
    memory: MemoryService, query: str, conversation_id: str = "", **fields: int
) -> memory_pb2.AssembleContextResponse:
    request = memory_pb2.AssembleContextRequest(conversation_id=conversation_id or new_id(), query=query, **fields)
    return await memory.stub.AssembleContext(request, metadata=memory.as_chat(), timeout=10)


def texts(answer: memory_pb2.AssembleContextResponse) -> list[str]:
    return [one.text for one in answer.memories]


def of_user(statements: list[str]) -> list[str]:
    """Without those of the standing duties, which act for the service itself and claim, count or settle."""
    duties = ("parley.scope", "upkeep", "pending_evictions", "expire_time <= now()")
    return [one for one in statements if not any(word in one for word in duties)]


async def test_what_was_said_elsewhere_is_recalled_with_where_it_comes_from(memory: MemoryService) -> None:
    elsewhere = new_id()
    said = message(1, "My cat is called Tom.")
    await memory.record(elsewhere, [said, message(2, "What a name.")])

    answer = await told(memory, "What is my cat called?")

    found = next(one for one in answer.memories if one.id == said.message_id)
    assert (found.kind, found.conversation_id, found.sequence) == ("message", elsewhere, 1)
    assert (found.role, found.stamped_by) == ("user", "user")
    assert found.valid_from_time == said.create_time
    assert list(answer.messages) == []


async def test_without_a_query_nothing_but_the_messages_is_told(memory: MemoryService) -> None:
    conversation_id = new_id()
    await memory.add_memory("The user has a cat.")
    await memory.record(conversation_id, [message(1, "My cat is called Tom."), message(2, "Fine.")])

    answer = await told(memory, "", conversation_id)

    assert [one.text for one in answer.messages] == ["My cat is called Tom.", "Fine."]
    assert (list(answer.memories), answer.person_summary, answer.conversation_summary) == ([], "", "")


async def test_what_the_messages_tell_is_not_told_again(memory: MemoryService) -> None:
    conversation_id = new_id()
    messages = [message(n, f"My cat number {n} is called Tom.") for n in range(1, 9)]
    await memory.record(conversation_id, messages)

    everything = await told(memory, "What is my cat called?", conversation_id)
    short = await told(memory, "What is my cat called?", conversation_id, token_budget=40)

    assert len(everything.messages) == 8
    assert texts(everything) == []
    shown = {one.message_id for one in short.messages}
    assert 0 < len(shown) < 8
    assert {one.id for one in short.memories} == {one.message_id for one in messages} - shown


async def test_memories_are_told_in_the_order_of_time(memory: MemoryService) -> None:
    for day in (3, 1, 2):
        await memory.record(new_id(), [message(1, f"Cat news of day {day}.", seconds=day * DAY)])
    await memory.add_memory("The user has a cat.")

    answer = await told(memory, "cat news")

    assert texts(answer) == [*(f"Cat news of day {day}." for day in (1, 2, 3)), "The user has a cat."]


async def test_memories_stay_within_their_budget_and_the_best_are_kept(memory: MemoryService) -> None:
    for number in range(30):
        await memory.record(new_id(), [message(1, f"Note {number} mentions a cat among many other things of that day.")])
    await memory.record(new_id(), [message(1, "The password of the cat flap is 4711.")])

    for budget in (60, 200):
        answer = await told(memory, "password of the cat flap", memory_token_budget=budget)

        assert "The password of the cat flap is 4711." in texts(answer)
        assert sum(text_tokens(text) for text in texts(answer)) <= budget
    assert texts(await told(memory, "password of the cat flap", memory_token_budget=1)) == []


async def test_a_budget_beyond_the_greatest_is_cut_to_it(start_memory: Start) -> None:
    async with start_memory(default_memory_tokens=100, greatest_memory_tokens=150) as memory:
        for number in range(20):
            await memory.record(new_id(), [message(1, f"Cat note {number}.")])

        default = await told(memory, "cat note")
        greatest = await told(memory, "cat note", memory_token_budget=1_000_000)

    assert 0 < len(default.memories) < len(greatest.memories) < 10


async def test_a_long_message_is_cut_around_what_was_asked(memory: MemoryService) -> None:
    long = "Once there was nothing to tell. " * 300 + "The password is 4711. " + "And so it ended. " * 300
    await memory.record(new_id(), [message(1, long), message(2, "The password is nothing to tell.")])

    answer = await told(memory, "password?", memory_token_budget=400)

    cut = next(text for text in texts(answer) if "4711" in text)
    assert cut.startswith("…")
    assert cut.endswith("…")
    assert text_tokens(cut) <= 100
    assert "The password is nothing to tell." in texts(answer)


@pytest.mark.parametrize("query", ["ok thanks", "Hello!", "Yes, go on.", "?!", "why?", "gracias", "好的"])
async def test_small_talk_brings_nothing(memory: MemoryService, query: str) -> None:
    await memory.record(new_id(), [message(1, "Hello, thanks, ok, yes, why, gracias, 好的, go on.")])
    await memory.add_memory("The user says ok and thanks.")

    with counted_statements() as statements:
        answer = await told(memory, query)

    assert texts(answer) == []
    assert not [one for one in statements if "lexemes" in one]


async def test_superseded_and_expired_facts_are_not_told(memory: MemoryService) -> None:
    fact = await memory.add_memory("The user lives in the city of Lisbon.")
    await memory.update_memory(fact.id, text="The user lives in the city of Porto.")

    assert texts(await told(memory, "Which city do I live in?")) == ["The user lives in the city of Porto."]


async def test_asking_about_the_past_brings_what_was_superseded_with_its_end(memory: MemoryService) -> None:
    fact = await memory.add_memory("The user lives in the city of Lisbon.")
    await memory.update_memory(fact.id, text="The user lives in the city of Porto.")

    answer = await told(memory, "In which city did I live before?")

    old = next(one for one in answer.memories if "Lisbon" in one.text)
    assert old.HasField("invalidate_time")
    assert old.invalidate_time.ToDatetime(UTC) <= datetime.now(UTC)


async def test_nobody_is_told_what_somebody_else_said(start_memory: Start, simulator: Running) -> None:
    async with start_memory(openai_base_url=simulator.base_url, **QUICK) as memory:
        conversation_id = new_id()
        await memory.record(conversation_id, four(1, "My cat is called Tom."))
        await memory.add_memory("The user has a cat.")
        await memory.summarized(conversation_id)
        await memory.summarized(holding="cat")
        memory.user_id = new_id()

        answer = await told(memory, "What is my cat called?", conversation_id)

    assert answer == memory_pb2.AssembleContextResponse()


async def test_the_persons_summary_is_told_in_the_same_bytes_while_nothing_changed(
    start_memory: Start, simulator: Running
) -> None:
    async with start_memory(openai_base_url=simulator.base_url, **QUICK) as memory:
        await memory.add_memory("The user lives in Porto.")
        text = await memory.summarized()
        conversation_id = new_id()
        given = []
        for turn in range(3):
            given.append((await told(memory, f"Porto, part {turn}", conversation_id)).person_summary)
            await memory.record(conversation_id, [message(2 * turn + 1, "Porto?"), message(2 * turn + 2, "Porto.")])

    assert given == [text] * 3


async def test_a_conversations_summary_is_told_where_its_beginning_is_not(start_memory: Start, simulator: Running) -> None:
    async with start_memory(openai_base_url=simulator.base_url, **QUICK) as memory:
        conversation_id = new_id()
        await memory.record(conversation_id, four(1, "My cat is called Tom."))
        text = await memory.summarized(conversation_id)

        whole = await told(memory, "Porto", conversation_id)
        cut = await told(memory, "Porto", conversation_id, token_budget=20)
        nothing = await told(memory, "Porto", conversation_id, token_budget=1)

    assert (whole.messages[0].sequence, whole.conversation_summary) == (1, "")
    assert cut.messages[0].sequence > 1
    assert (cut.conversation_summary, nothing.conversation_summary) == (text, text)


async def test_where_summaries_are_off_none_is_told(start_memory: Start, simulator: Running) -> None:
    settings = {"openai_base_url": simulator.base_url, **QUICK}
    async with start_memory(**settings) as memory:
        await memory.add_memory("The user lives in Porto.")
        await memory.summarized()
    async with start_memory(**settings, summaries_enabled=False) as again:
        again.user_id = memory.user_id
        assert (await told(again, "Porto")).person_summary == ""


async def test_recall_that_is_late_is_done_without(
    start_memory: Start, simulator: Running, provider: dict[str, object]
) -> None:
    await simulator.control.script(STALLED_EMBEDDINGS)
    async with start_memory(**provider, recall_timeout_seconds=0.2, embedding_timeout_seconds=30) as memory:
        conversation_id = new_id()
        await memory.add_memory("The user has a cat.")
        await memory.record(conversation_id, [message(1, "My cat is called Tom.")])

        began = time.monotonic()
        answer = await told(memory, "What is my cat called?", conversation_id)

    assert time.monotonic() - began < 20
    assert [one.text for one in answer.messages] == ["My cat is called Tom."]
    assert (texts(answer), list(answer.degraded)) == ([], ["recall"])


async def test_recall_that_is_late_costs_no_connection(start_memory: Start, memory_database: ServiceDatabase) -> None:
    """A new connection for each that was cancelled is what would make all of them late."""
    role = make_url(memory_database.url).username
    async with start_memory(recall_timeout_seconds=0.3) as memory:
        await memory.add_memory("The user has a cat.")
        assert len(texts(await told(memory, "What is my cat called?"))) == 1
        async with await psycopg.AsyncConnection.connect(memory_database.migration_url, autocommit=True) as other:
            count = "select array_agg(pid order by pid) from pg_stat_activity where usename = %s"
            before = await (await other.execute(count, (role,))).fetchone()
            async with other.transaction():
                await other.execute("lock table facts in access exclusive mode")
                answers = [await told(memory, "What is my cat called?") for _ in range(3)]
            assert [list(answer.degraded) for answer in answers] == [["recall"]] * 3
            assert len(texts(await told(memory, "What is my cat called?"))) == 1
            after = await (await other.execute(count, (role,))).fetchone()
    assert before is not None
    assert after is not None
    assert set(before[0]) <= set(after[0])


@asynccontextmanager
async def unreadable(database: ServiceDatabase, table: LiteralString) -> AsyncIterator[None]:
    """Nobody gets to read a table inside."""
    async with opened(database) as connection:
        await connection.execute(f"lock table {table} in access exclusive mode")
        yield


async def test_the_provider_is_asked_while_the_messages_are_read(
    start_memory: Start, simulator: Running, provider: dict[str, object], database: ServiceDatabase
) -> None:
    async with start_memory(**provider, recall_timeout_seconds=5) as memory:
        conversation_id = new_id()
        await memory.record(conversation_id, [message(1, "My cat is called Tom."), message(2, "Fine.")])
        await memory.record(new_id(), [message(1, "The cat sleeps.")])

        async with unreadable(database, "conversations"):
            asking = asyncio.create_task(told(memory, "What is my cat called?", conversation_id))
            async for _ in eventually(5):
                requests = await simulator.control.requests("embeddings")
                if any("What is my cat called?" in one.body["input"] for one in requests):
                    break
            assert not asking.done()
        answer = await asking

    assert [one.text for one in answer.messages] == ["My cat is called Tom.", "Fine."]
    assert (texts(answer), list(answer.degraded)) == (["The cat sleeps."], [])


async def test_a_search_that_is_late_does_not_take_the_messages_along(
    start_memory: Start, provider: dict[str, object], database: ServiceDatabase
) -> None:
    async with start_memory(**provider, recall_timeout_seconds=0.2) as memory:
        conversation_id = new_id()
        await memory.record(conversation_id, [message(1, "My cat is called Tom."), message(2, "Fine.")])

        async with unreadable(database, "conversations"):
            asking = asyncio.create_task(told(memory, "What is my cat called?", conversation_id))
            await asyncio.sleep(0.6)
            assert not asking.done()
        answer = await asking

    assert [one.text for one in answer.messages] == ["My cat is called Tom.", "Fine."]
    assert (texts(answer), list(answer.degraded)) == ([], ["recall"])


async def test_small_talk_asks_the_provider_nothing(
    start_memory: Start, simulator: Running, provider: dict[str, object]
) -> None:
    async with start_memory(**provider) as memory:
        await told(memory, "ok thanks")
    assert await simulator.control.requests("embeddings") == []


async def test_embeddings_that_are_late_leave_the_words(
    start_memory: Start, simulator: Running, provider: dict[str, object]
) -> None:
    await simulator.control.script(STALLED_EMBEDDINGS)
    async with start_memory(**provider, recall_timeout_seconds=5, embedding_timeout_seconds=0.2) as memory:
        await memory.record(new_id(), [message(1, "My cat is called Tom.")])

        answer = await told(memory, "What is my cat called?")

    assert (texts(answer), list(answer.degraded)) == (["My cat is called Tom."], ["embeddings"])


async def test_how_many_statements_a_context_takes(memory: MemoryService) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, [message(1, "My cat is called Tom."), message(2, "Fine.")])
    await memory.record(new_id(), [message(1, "The cat sleeps.")])
    await told(memory, "cat", conversation_id)

    with counted_statements() as plain:
        await told(memory, "", conversation_id)
    with counted_statements() as small_talk:
        await told(memory, "thanks", conversation_id)
    with counted_statements() as asking:
        await told(memory, "cat", conversation_id)

    # The head; and, each in a transaction whose beginning counts too: the summaries; words, after whether they are listed;
    # and the rows that were found.
    assert (len(of_user(plain)), len(of_user(small_talk)), len(of_user(asking))) == (1, 3, 8)
