"""What replies cost, and the budget: counted once, kept for ever, never overspent."""

import asyncio
import datetime as dt
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import psycopg
import pytest

from parley.chat.v1 import chat_pb2, conversation_pb2
from services.chat.records import Generation, Usage
from services.chat.usage.budget import Budget, seconds_until_midnight
from services.chat.usage.settlement import settle
from services.chat.usage.store import UsageStore
from services.runtime.database import Database, open_database
from services.runtime.errors import ResourceExhausted
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.chat.conftest import Start
from tests.chat.service import ChatProcess, User, refusal

MODEL = "gpt-5-mini"


@pytest.fixture
async def rows(database: ServiceDatabase) -> AsyncIterator[Database]:
    opened = open_database(database.url, pool_size=10)
    yield opened
    await opened.close()


def a_generation(user_id: str) -> Generation:
    return Generation(
        id=str(uuid.uuid4()), user_id=user_id, conversation_id=str(uuid.uuid4()), user_message_id="", reply_message_id="",
        request_id=None, request_digest=b"", attempt=1, status="running", is_expired=False, model=MODEL, degraded=(),
        failure=None, create_time=dt.datetime.now(dt.UTC),
    )  # fmt: skip


async def ended(rows: Database, generation: Generation, usage: Usage | None, *, has_output: bool = False) -> None:
    async with rows.transaction(user_id=generation.user_id) as connection:
        await settle(
            connection,
            generation_id=generation.id,
            user_id=generation.user_id,
            model=generation.model,
            usage=usage,
            has_output=has_output,
        )


def output(tokens: int) -> Usage:
    return Usage(0, 0, tokens, 0)


async def used(store: UsageStore, user_id: str) -> int:
    return (await store.read_spending(user_id, days=1)).today_tokens


async def usage_of(user: User, days: int = 0) -> chat_pb2.GetUsageResponse:
    return await user.chat.GetUsage(chat_pb2.GetUsageRequest(days=days), metadata=user.metadata, timeout=10)


async def test_many_at_once_reserve_the_budget_to_the_last_token_and_not_beyond(rows: Database) -> None:
    store = UsageStore(rows, concurrency=8)
    budget, user_id = Budget(store, tokens_per_day=1_000), str(uuid.uuid4())
    mine = [a_generation(user_id) for _ in range(200)]
    answers = await asyncio.gather(*(budget.reserve(one, 10) for one in mine), return_exceptions=True)
    refused = [one for one in answers if one is not None]
    assert len(refused) == 100
    assert all(isinstance(one, ResourceExhausted) for one in refused)
    assert await used(store, user_id) == 1_000
    await budget.reserve(a_generation(str(uuid.uuid4())), 1_000)


async def test_an_end_gives_back_what_was_reserved_and_not_spent(rows: Database) -> None:
    store = UsageStore(rows, concurrency=2)
    budget, user_id = Budget(store, tokens_per_day=100), str(uuid.uuid4())
    generation = a_generation(user_id)
    await budget.reserve(generation, 100)
    await ended(rows, generation, Usage(10, 5, 20, 7))
    assert await used(store, user_id) == 30
    await budget.reserve(a_generation(user_id), 70)
    with pytest.raises(ResourceExhausted):
        await budget.reserve(a_generation(user_id), 1)


async def test_a_later_round_reserves_beside_what_the_earlier_ones_spent(rows: Database) -> None:
    store = UsageStore(rows, concurrency=2)
    budget, user_id = Budget(store, tokens_per_day=100), str(uuid.uuid4())
    generation = a_generation(user_id)
    await budget.reserve(generation, 80, spent_tokens=0)
    await budget.reserve(generation, 60, spent_tokens=40)
    assert await used(store, user_id) == 100
    with pytest.raises(ResourceExhausted):
        await budget.reserve(generation, 51, spent_tokens=50)
    assert await used(store, user_id) == 50


async def test_a_later_round_after_an_unknown_cost_reserves_on_top(rows: Database) -> None:
    store = UsageStore(rows, concurrency=2)
    budget, user_id = Budget(store, tokens_per_day=100), str(uuid.uuid4())
    generation = a_generation(user_id)
    await budget.reserve(generation, 40)
    await budget.reserve(generation, 40)
    assert await used(store, user_id) == 80
    with pytest.raises(ResourceExhausted):
        await budget.reserve(generation, 40)


@pytest.mark.parametrize(("has_output", "charged"), [(True, 90), (False, 30)])
async def test_what_the_provider_never_said_is_charged_as_reserved(
    rows: Database, *, has_output: bool, charged: int
) -> None:
    """Cutting replies short is no way around the budget; one that never began costs its earlier rounds."""
    store = UsageStore(rows, concurrency=2)
    budget, user_id = Budget(store, tokens_per_day=100), str(uuid.uuid4())
    generation = a_generation(user_id)
    await budget.reserve(generation, 60, spent_tokens=30)
    await ended(rows, generation, None, has_output=has_output)
    assert await used(store, user_id) == charged
    [day] = (await store.read_spending(user_id, days=1)).days
    assert day.usage == Usage(0, 0, 0, 0)


async def test_what_never_began_leaves_nothing(rows: Database) -> None:
    store = UsageStore(rows, concurrency=2)
    budget, user_id = Budget(store, tokens_per_day=100), str(uuid.uuid4())
    generation = a_generation(user_id)
    await budget.reserve(generation, 60)
    await ended(rows, generation, None)
    spending = await store.read_spending(user_id, days=1)
    assert (spending.today_tokens, spending.days) == (0, [])


async def test_what_was_reserved_before_midnight_counts_for_that_day(database: ServiceDatabase, rows: Database) -> None:
    store = UsageStore(rows, concurrency=2)
    budget, user_id = Budget(store, tokens_per_day=100), str(uuid.uuid4())
    generation = a_generation(user_id)
    await budget.reserve(generation, 60)
    await execute(database, "update token_reservations set day = day - 1")
    assert await used(store, user_id) == 0
    await budget.reserve(a_generation(user_id), 100)
    await ended(rows, generation, output(60))
    spending = await store.read_spending(user_id, days=2)
    assert spending.today_tokens == 100
    assert [(one.day, one.usage.output_tokens) for one in spending.days] == [
        (spending.reset_time.date() - dt.timedelta(days=2), 60)
    ]


async def test_a_reservation_that_nobody_ended_is_gone_in_time(database: ServiceDatabase, rows: Database) -> None:
    store = UsageStore(rows, concurrency=2)
    budget, user_id = Budget(store, tokens_per_day=100), str(uuid.uuid4())
    await budget.reserve(a_generation(user_id), 60)
    await execute(database, "update token_reservations set day = day - 2")
    with pytest.raises(ResourceExhausted):
        await budget.reserve(a_generation(user_id), 101)
    assert await execute(database, "select count(*) from token_reservations") == [(0,)]


async def execute(database: ServiceDatabase, statement: str) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as connection:
        await connection.execute("select set_config('parley.scope', 'service', false)")
        cursor = await connection.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []


def test_the_day_ends_at_midnight_utc() -> None:
    assert seconds_until_midnight(dt.datetime(2026, 11, 22, 23, 59, tzinfo=dt.UTC)) == 60
    assert seconds_until_midnight(dt.datetime(2026, 11, 22, tzinfo=dt.UTC)) == 86_400


async def test_replies_are_counted_by_day_and_model_and_outlive_their_conversation(user: User) -> None:
    first = await user.create("one", model="gpt-5")
    second = await user.create("two")
    third = await user.create("three")
    await user.delete(second.conversation_id)
    answer = await usage_of(user)
    today = dt.datetime.now(dt.UTC).date().isoformat()
    assert [(one.date, one.model, one.replies) for one in answer.days] == [(today, "gpt-5", 1), (today, MODEL, 2)]
    assert answer.days[0].usage == first.usage
    assert answer.days[1].usage.output_tokens == second.usage.output_tokens + third.usage.output_tokens
    total = sum(one.usage.input_tokens + one.usage.output_tokens for one in (first, second, third))
    assert answer.used_tokens == total
    assert not answer.HasField("budget_tokens")
    assert not answer.HasField("left_tokens")
    assert answer.reset_time.ToDatetime(dt.UTC) - dt.datetime.now(dt.UTC) <= dt.timedelta(days=1)


async def test_nobody_sees_what_others_spend(chat: ChatProcess, user: User) -> None:
    await user.create("hello")
    answer = await usage_of(chat.user())
    assert (list(answer.days), answer.used_tokens) == ([], 0)


async def test_usage_tells_of_as_many_days_as_asked(database: ServiceDatabase, user: User) -> None:
    insert = "insert into usage_days (user_id, day, model, output_tokens, replies) select '{}', current_date - n, 'm', 1, 1"
    await execute(database, insert.format(user.id) + " from generate_series(0, 400) n")
    for asked, told in ((0, 30), (1, 1), (7, 7), (5_000, 366)):
        days = [one.date for one in (await usage_of(user, asked)).days]
        assert len(days) == told
        assert days == sorted(days, reverse=True)
    refused = await refusal(usage_of(user, -1))
    assert refused.fields == ["days"]


async def test_usage_takes_two_queries_whatever_there_is(chat: ChatProcess, user: User) -> None:
    await user.create("hello")
    chat.statements.clear()
    await usage_of(user)
    mine = [one for one in chat.statements if "usage_days" in one or "token_reservations" in one]
    assert len(mine) == 2


async def test_without_a_budget_a_turn_costs_one_statement(chat: ChatProcess, user: User) -> None:
    chat.statements.clear()
    await user.create("hello")
    mine = [one for one in chat.statements if "usage_days" in one or "token_reservations" in one]
    assert len(mine) == 1


async def test_200_turns_at_once_never_overspend(start_chat: Start, simulator: Running) -> None:
    """By the provider's own count of what it was asked for, whatever ours says."""
    budget_tokens = 5_000
    async with start_chat(token_budget_per_day=budget_tokens, assistant_instructions="Be kind.") as chat:
        user = chat.user()
        calls = (user.create(f"say something about the number {n}", max_output_tokens=100) for n in range(200))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        good = [one for one in answers if isinstance(one, chat_pb2.Completion)]
        refused = [one for one in answers if isinstance(one, grpc.aio.AioRpcError)]
        assert len(good) + len(refused) == 200
        assert len(await simulator.control.requests("responses")) == len(good)
        assert refused
        assert {one.code() for one in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        spent = sum(one.usage.input_tokens + one.usage.output_tokens for one in good)
        answer = await usage_of(user)
        assert 0 < spent == answer.used_tokens <= budget_tokens
        assert (answer.budget_tokens, answer.left_tokens) == (budget_tokens, budget_tokens - spent)
        assert sum(one.replies for one in answer.days) == len(good)


async def test_a_spent_budget_is_said_in_the_call_and_in_the_stream(start_chat: Start) -> None:
    async with start_chat(token_budget_per_day=50) as chat:
        user = chat.user()
        refused = await refusal(user.create("hello"))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOKEN_BUDGET_SPENT")
        assert refused.metadata == {"budget_tokens": "50"}
        assert refused.retry_seconds is not None
        assert abs(refused.retry_seconds - seconds_until_midnight(dt.datetime.now(dt.UTC))) < 30
        failed = (await user.stream("hello"))[-1].failed
        assert failed.reason == "TOKEN_BUDGET_SPENT"
        assert failed.retry_delay.ToTimedelta().total_seconds() > 0
        assert (await usage_of(user)).used_tokens == 0


async def test_with_a_budget_the_provider_is_told_a_bound(start_chat: Start, simulator: Running) -> None:
    async with start_chat(token_budget_per_day=1_000_000) as chat:
        await chat.user().create("hello")
    [request] = await simulator.control.requests("responses")
    assert request.body["max_output_tokens"] == 8_192


async def test_a_reply_that_is_cut_short_is_charged_as_reserved(start_chat: Start) -> None:
    async with start_chat(token_budget_per_day=1_000_000, generation_deadline_seconds=1) as chat:
        user = chat.user()
        failed = (await user.stream("tell me a story", model="sim-50-0-0-stall-5"))[-1].failed
        assert failed.reason == "MODEL_TIMED_OUT"
        answer = await usage_of(user)
        assert answer.used_tokens > 8_192
        assert [one.usage for one in answer.days] == [conversation_pb2.Usage()]


async def test_what_runs_is_reserved_and_given_back_when_its_process_dies(
    start_chat: Start, database: ServiceDatabase
) -> None:
    async with start_chat(token_budget_per_day=1_000_000) as chat:
        user = chat.user()
        await user.create("hello")
        before = (await usage_of(user)).used_tokens
        await execute(
            database,
            "insert into token_reservations select id, user_id, cast(now() at time zone 'utc' as date), 500, 0"
            " from generations",
        )
        await execute(
            database,
            "update generations set status = 'running', end_time = null, owner = 'dead', lease_expire_time = now()",
        )
        assert (await usage_of(user)).used_tokens >= before + 500

        async def is_released() -> bool:
            return await execute(database, "select count(*) from token_reservations") == [(0,)]

        for _ in range(200):
            if await is_released():
                break
            await asyncio.sleep(0.1)
        assert await is_released()
