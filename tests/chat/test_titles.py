"""Titles by the model: asked for once, after the first turn that ended well; the user's own title wins."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from parley.chat.v1 import chat_pb2
from services.chat.conversation.titles import tidy_title
from simulator.control import Fault, Match, ScriptedAnswer
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.chat.conftest import Start
from tests.chat.peers import MemoryStandIn
from tests.chat.service import ChatProcess, User, eventually, held
from tests.chat.test_conversations import get, new, rename

_ASKED = Match(asks_title=True)


@pytest.fixture
async def chat(start_chat: Start) -> AsyncIterator[ChatProcess]:
    async with start_chat(titles_enabled=True) as process:
        yield process


async def titled(user: User, conversation_id: str, title: str) -> None:
    for _ in range(200):
        if (await get(user, conversation_id)).title == title:
            return
        await asyncio.sleep(0.05)
    raise AssertionError((await get(user, conversation_id)).title)


async def jobs_left(database: ServiceDatabase) -> int:
    async with await psycopg.AsyncConnection.connect(database.url) as connection:
        row = await (
            await connection.execute("select count(*) from procrastinate_jobs where task_name = 'title_conversation'")
        ).fetchone()
    assert row is not None
    return int(row[0])


async def no_job_left(database: ServiceDatabase) -> None:
    for _ in range(300):
        if not await jobs_left(database):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("a job for a title is left")


async def titles_asked(simulator: Running) -> int:
    return len(await title_requests(simulator))


async def title_requests(simulator: Running) -> list[dict[str, object]]:
    asked = await simulator.control.requests("responses", with_titles=True)
    return [one.body for one in asked if "Write a title" in str(one.body.get("instructions"))]


async def test_the_first_turn_gets_a_title_and_the_next_does_not(
    user: User, simulator: Running, database: ServiceDatabase
) -> None:
    await simulator.control.script(
        ScriptedAnswer(text='  **"Learning the Piano."**\nAs you wished.', match=_ASKED),
        ScriptedAnswer(text="With patience."),
    )
    first = await user.create("What is the best way to learn to play the piano as an adult with little time?")
    await titled(user, first.conversation_id, "Learning the Piano")
    before = await get(user, first.conversation_id)
    await user.create("And the violin?", conversation_id=first.conversation_id)
    await no_job_left(database)
    assert (await get(user, first.conversation_id)).title == before.title
    [asked] = await title_requests(simulator)
    assert "With patience." in str(asked["input"])
    assert "as an adult with little time" in str(asked["input"])


async def test_the_users_own_title_wins_before_while_and_after(
    user: User, simulator: Running, database: ServiceDatabase
) -> None:
    own = await new(user, "Mine")
    await user.create("Hello", conversation_id=own.id)
    await no_job_left(database)
    assert await titles_asked(simulator) == 0
    await simulator.control.script(ScriptedAnswer(text="By the model", hold_after_tokens=0, match=_ASKED))
    first = await user.create("Hello again")
    await held(simulator)
    await rename(user, first.conversation_id, "Mine too")
    await simulator.control.release()
    await no_job_left(database)
    assert (await get(user, first.conversation_id)).title == "Mine too"
    assert (await get(user, own.id)).title == "Mine"


async def test_a_first_turn_that_failed_waits_for_one_that_does_not(
    user: User, simulator: Running, database: ServiceDatabase
) -> None:
    failed = (await user.stream("Hello", model="sim-9-0-0-cut-2"))[-1].failed.partial_message
    await no_job_left(database)
    assert await titles_asked(simulator) == 0
    await simulator.control.script(ScriptedAnswer(text="A greeting", match=_ASKED))
    await user.regenerate(failed)
    await titled(user, failed.conversation_id, "A greeting")


async def test_a_first_message_that_is_said_anew_gets_a_title_of_its_own(user: User, simulator: Running) -> None:
    await simulator.control.script(ScriptedAnswer(text="On violins", hold_after_tokens=0, match=_ASKED))
    first = await user.create("Tell me of violins")
    await held(simulator)
    await simulator.control.script(ScriptedAnswer(text="On trumpets", match=Match(text="trumpets", asks_title=True)))
    await user.edit(first.user_message, "Tell me of trumpets")
    await titled(user, first.conversation_id, "On trumpets")
    await simulator.control.release()
    await asyncio.sleep(0.3)
    assert (await get(user, first.conversation_id)).title == "On trumpets"


async def test_a_model_that_fails_is_asked_a_few_times_and_then_left_alone(
    user: User, simulator: Running, database: ServiceDatabase
) -> None:
    refused = ScriptedAnswer(fault=Fault(kind="status", status=500), match=_ASKED)
    await simulator.control.script(*[refused] * 3)
    first = await user.create("Hello there")
    await no_job_left(database)
    assert await titles_asked(simulator) == 3
    assert (await get(user, first.conversation_id)).title == "Hello there"


async def test_without_titles_the_beginning_of_the_first_message_stays(
    start_chat: Start, simulator: Running, database: ServiceDatabase
) -> None:
    async with start_chat(titles_enabled=False) as chat:
        user = chat.user()
        first = await user.create("Hello there")
        assert await jobs_left(database) == 0
        assert (await get(user, first.conversation_id)).title == "Hello there"
    assert await titles_asked(simulator) == 0


async def test_a_title_counts_as_the_users_usage_and_comes_from_its_own_model(start_chat: Start, simulator: Running) -> None:
    async with start_chat(titles_enabled=True, title_model="small-model") as chat:
        user = chat.user()
        await simulator.control.script(ScriptedAnswer(text="A greeting", match=_ASKED))
        first = await user.create("Hello there")
        await titled(user, first.conversation_id, "A greeting")
        asked = chat_pb2.GetUsageRequest()
        days = (await user.chat.GetUsage(asked, metadata=user.metadata, timeout=10)).days
    by_model = {one.model: one for one in days}
    assert set(by_model) == {first.model, "small-model"}
    assert by_model["small-model"].usage.output_tokens > 0
    assert (by_model[first.model].replies, by_model["small-model"].replies) == (1, 0)


async def test_a_spent_budget_buys_no_title(start_chat: Start, simulator: Running, database: ServiceDatabase) -> None:
    # Without tools, whose descriptions are counted: a reply then costs less than a title may.
    async with start_chat(titles_enabled=True, token_budget_per_day=1_200, memory_tools_enabled=False) as chat:
        user = chat.user()
        first = await user.create("Hello there", max_output_tokens=100)
        await no_job_left(database)
        assert (await get(user, first.conversation_id)).title == "Hello there"
    assert await titles_asked(simulator) == 0


async def test_titles_wait_for_nothing_else_and_nothing_else_for_them(
    start_chat: Start, simulator: Running, memory: MemoryStandIn
) -> None:
    async with start_chat(titles_enabled=True, job_concurrency=1) as chat:
        user = chat.user()
        await simulator.control.script(ScriptedAnswer(text="Late", hold_after_tokens=0, match=_ASKED))
        first = await user.create("Hello")
        await held(simulator)
        other = await new(user, "Other")
        await user.delete(other.id)
        # The job of the deletion is not behind the title's.
        await eventually(lambda: other.id in memory.forgotten)
        await simulator.control.release()
        await titled(user, first.conversation_id, "Late")


@pytest.mark.parametrize(
    ("said", "title"),
    [
        ("Learning the piano", "Learning the piano"),
        ('"Learning the piano."', "Learning the piano"),
        ("Title: Learning the piano", "Learning the piano"),
        ("**Title:** Learning the piano", "Learning the piano"),
        ("# Learning _the_ `piano`\n\nmore", "Learning the piano"),
        ("„Klavier lernen“", "Klavier lernen"),
        ("[Piano](https://example.com)", "Piano"),
        ("<b>Piano</b>", "bPiano/b"),
        ("snake_case names", "snake_case names"),
        ("\n\n***\nPiano", "Piano"),
        ("Why? Because!", "Why? Because!"),
        ("", ""),
        ("...", ""),
        ("word " * 100, "word word word word word word word word word word word word"),
        ("x" * 500, "x" * 60),
    ],
)
def test_a_title_is_one_short_line_without_quotes_and_markup(said: str, title: str) -> None:
    assert tidy_title(said) == title
    assert len(tidy_title(said)) <= 60
