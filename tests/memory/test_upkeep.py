"""Work that is owed: claimed once, done at least once, given up only by its own fault, never a storm."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import exc, text
from structlog.testing import capture_logs

from parley.type.v1 import error_reason_pb2 as reasons
from services.memory.upkeep.runner import Chore, Pauses, Unworkable, Upkeep
from services.memory.upkeep.store import _CLAIM, Owed, Task, UpkeepStore, owe, owe_all
from services.runtime.database import Database, open_database
from services.runtime.duties import beside
from services.runtime.errors import Unavailable
from services.runtime.migrations import migrate
from services.runtime.openai import Refusal, from_refusal
from suite.databases import ServiceDatabase, prepare_database
from suite.postgres import EmbeddedPostgres
from tests.memory.service import eventually, new_id

FAST = Pauses(first_seconds=0.05, longest_seconds=0.1)


@pytest.fixture
async def opened(database: ServiceDatabase) -> AsyncIterator[Database]:
    found = open_database(database.url, pool_size=20)
    yield found
    await found.close()


@pytest.fixture
def store(opened: Database) -> UpkeepStore:
    return UpkeepStore(opened)


async def owe_some(
    database: Database, count: int, task: Task = "embed", *, delay_seconds: float = 0
) -> list[tuple[str, str]]:
    scopes = [(new_id(), new_id()) for _ in range(count)]
    async with database.service_transaction() as connection:
        await owe(connection, task, scopes, delay_seconds=delay_seconds)
    return scopes


async def left(store: UpkeepStore) -> int:
    return sum(one.count for one in await store.waiting())


async def nothing_left(store: UpkeepStore, *, within_seconds: float = 10) -> None:
    async for _ in eventually(within_seconds):
        if await left(store) == 0:
            return


class Work:
    """Notes what it was given; raises what `fails` says of a piece."""

    def __init__(self) -> None:
        self.done: list[Owed] = []
        self.batches: list[int] = []
        self.fails: dict[str, Exception] = {}
        self.away = 0

    async def do(self, owed: Sequence[Owed]) -> None:
        self.batches.append(len(owed))
        await asyncio.sleep(0)
        if self.away:
            self.away -= 1
            raise Unavailable("away", reasons.ERROR_REASON_MODEL_UNAVAILABLE)
        for one in owed:
            if one.scope_id in self.fails:
                raise self.fails[one.scope_id]
        self.done += owed


@asynccontextmanager
async def running(store: UpkeepStore, *works: Work, most_tries: int = 5, seconds: float = 5) -> AsyncIterator[None]:
    """As many processes as works."""
    chores = [
        Chore("embed", work.do, batch=8, concurrency=2, timeout_seconds=seconds, most_tries=most_tries) for work in works
    ]
    async with beside(*(Upkeep(store, [chore], FAST).run() for chore in chores)):
        yield


async def test_several_processes_claim_each_piece_once(opened: Database, store: UpkeepStore) -> None:
    scopes = await owe_some(opened, 100)
    claims = await asyncio.gather(*(store.claim("embed", most=10, lease_seconds=60) for _ in range(15)))
    claimed = [(one.user_id, one.scope_id) for claim in claims for one in claim]
    assert sorted(claimed) == sorted(scopes)
    await asyncio.gather(*(store.settle(claim) for claim in claims if claim))
    assert await left(store) == 0


async def test_all_is_done_once_by_many(opened: Database, store: UpkeepStore) -> None:
    scopes = await owe_some(opened, 200)
    works = [Work() for _ in range(3)]
    async with running(store, *works):
        await nothing_left(store)
    done = [(one.user_id, one.scope_id) for work in works for one in work.done]
    assert sorted(done) == sorted(scopes)


async def test_what_is_owed_anew_while_it_is_done_is_done_again(opened: Database, store: UpkeepStore) -> None:
    (scope,) = await owe_some(opened, 1)
    claimed = await store.claim("embed", most=1, lease_seconds=60)
    async with opened.service_transaction() as connection:
        await owe(connection, "embed", [scope])
    assert await store.claim("embed", most=1, lease_seconds=60) == []
    await store.settle(claimed)
    again = await store.claim("embed", most=1, lease_seconds=60)
    assert [(one.user_id, one.scope_id) for one in again] == [scope]
    await store.settle(again)
    assert await left(store) == 0


async def test_what_is_owed_anew_while_it_is_done_waits_for_more_to_come_too(opened: Database, store: UpkeepStore) -> None:
    (scope,) = await owe_some(opened, 1)
    claimed = await store.claim("embed", most=1, lease_seconds=60)
    async with opened.service_transaction() as connection:
        await owe(connection, "embed", [scope], delay_seconds=60)
        await owe(connection, "embed", [scope], delay_seconds=600)
    await store.settle(claimed)
    assert await store.claim("embed", most=1, lease_seconds=60) == []
    [waiting] = await store.waiting()
    assert -61 < waiting.late_seconds < -50


async def test_a_dead_process_loses_its_claim_with_its_lease(opened: Database, store: UpkeepStore) -> None:
    await owe_some(opened, 1)
    dead = await store.claim("embed", most=1, lease_seconds=0.3)
    assert len(dead) == 1
    assert await store.claim("embed", most=1, lease_seconds=60) == []
    await asyncio.sleep(0.35)
    assert len(await store.claim("embed", most=1, lease_seconds=60)) == 1
    # It wakes up after all.
    await store.settle(dead)


async def test_a_process_that_ends_in_order_gives_its_claims_back(opened: Database, store: UpkeepStore) -> None:
    await owe_some(opened, 3)
    began = asyncio.Event()

    async def never(_: Sequence[Owed]) -> None:
        began.set()
        await asyncio.Event().wait()

    async with beside(Upkeep(store, [Chore("embed", never, batch=8, timeout_seconds=60)]).run()):
        await asyncio.wait_for(began.wait(), 5)
    assert len(await store.claim("embed", most=8, lease_seconds=60)) == 3


async def test_what_is_not_due_waits_and_keeps_the_earlier_time(opened: Database, store: UpkeepStore) -> None:
    (scope,) = await owe_some(opened, 1, delay_seconds=60)
    assert await store.claim("embed", most=1, lease_seconds=60) == []
    async with opened.service_transaction() as connection:
        await owe_all(connection, {"embed": 0, "extract": 0}, [scope])
        await owe(connection, "embed", [scope], delay_seconds=600)
    assert len(await store.claim("embed", most=1, lease_seconds=60)) == 1
    assert len(await store.claim("extract", most=1, lease_seconds=60)) == 1


async def test_a_model_that_is_away_is_tried_with_one_piece_at_a_time_and_then_all_follows(
    opened: Database, store: UpkeepStore
) -> None:
    await owe_some(opened, 100)
    work = Work()
    work.away = 6
    async with running(store, work):
        await nothing_left(store)
    # The two workers met it once each at most; from then on one tried alone.
    assert all(size == 1 for size in work.batches[2:6])
    assert len(work.done) == 100
    assert max(work.batches[7:]) == 8
    assert len(work.batches) <= 6 + 1 + 100 / 8 + 3


async def test_an_hour_without_the_model_costs_few_requests() -> None:
    seconds = requests = 0.0
    while seconds < 3600:
        requests += 1
        seconds += Pauses().after(int(requests))
    assert requests < 85


async def test_a_stated_wait_is_kept(opened: Database, store: UpkeepStore) -> None:
    await owe_some(opened, 1)
    times: list[float] = []

    async def limited(_: Sequence[Owed]) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            refusal = Refusal(429, {}, {"retry-after": "0.6"})
            raise from_refusal(refusal, "model") from refusal

    async with beside(Upkeep(store, [Chore("embed", limited)], FAST).run()):
        await nothing_left(store)
    assert times[1] - times[0] >= 0.6


@pytest.mark.parametrize(
    "fault",
    [Unworkable("nonsense"), exc.DataError("statement", {}, ValueError()), TimeoutError(), KeyError("what was said")],
    ids=["unworkable", "refused by the database", "too slow", "not foreseen"],
)
async def test_a_poison_piece_is_given_up_after_its_tries_and_holds_up_nobody(
    opened: Database, store: UpkeepStore, fault: Exception
) -> None:
    scopes = await owe_some(opened, 20)
    work = Work()
    work.fails[scopes[7][1]] = fault
    async with running(store, work, most_tries=2):
        async for _ in eventually(10):
            if len(work.done) == 19 and await left(store) == 1:
                break
        # Its second try is due in ten seconds: a test need not wait for them.
        async with opened.service_transaction() as connection:
            await connection.execute(text("update upkeep set due_time = now()"))
        await nothing_left(store)
    assert len(work.done) == 19
    assert len({one.scope_id for one in work.done}) == 19


async def test_a_fault_that_nobody_foresaw_is_told_of_with_its_place_and_without_a_word_of_the_user(
    opened: Database, store: UpkeepStore
) -> None:
    [(_, scope_id)] = await owe_some(opened, 1)
    work = Work()
    work.fails[scope_id] = ValueError("invalid literal: 'what was said'")
    with capture_logs() as logs:
        async with running(store, work, most_tries=1):
            await nothing_left(store)
    told = next(one for one in logs if one["event"] == "upkeep.faulted")
    assert (told["log_level"], told["error"], told["scope_ids"]) == ("error", "ValueError", [scope_id])
    assert re.fullmatch(r".*/test_upkeep\.py:\d+ do", told["traceback"][-1])
    assert [one["reason"] for one in logs if one["event"] == "upkeep.given_up"] == ["unforeseen"]
    assert "what was said" not in str(logs)


async def test_a_statement_that_always_takes_too_long_is_given_up_and_pauses_nobody(
    opened: Database, store: UpkeepStore
) -> None:
    scopes = await owe_some(opened, 20)
    slow, done = scopes[7][1], list[Owed]()

    async def do(owed: Sequence[Owed]) -> None:
        async with opened.service_transaction() as connection:
            if any(one.scope_id == slow for one in owed):
                await connection.execute(text("set local statement_timeout = 20"))
                await connection.execute(text("select pg_sleep(5)"))
        done.extend(owed)

    chore = Chore("embed", do, batch=8, concurrency=2, most_tries=2)
    with capture_logs() as logs:
        async with beside(Upkeep(store, [chore], FAST).run()):
            async for _ in eventually(10):
                # None where its second try has come already.
                if len(done) == 19 and await left(store) <= 1:
                    break
            async with opened.service_transaction() as connection:
                await connection.execute(text("update upkeep set due_time = now()"))
            await nothing_left(store)
    assert len({one.scope_id for one in done}) == len(done) == 19
    assert [one["scope_id"] for one in logs if one["event"] == "upkeep.given_up"] == [slow]
    assert not [one for one in logs if one["event"] == "upkeep.postponed"]


async def test_a_model_that_goes_away_while_the_guilty_is_sought_costs_nobody_the_lease(
    opened: Database, store: UpkeepStore
) -> None:
    scopes = await owe_some(opened, 8)
    work = Work()
    work.fails = {scope_id: Unavailable("away", reasons.ERROR_REASON_MODEL_UNAVAILABLE) for _, scope_id in scopes}
    first = True

    async def do(owed: Sequence[Owed]) -> None:
        nonlocal first
        if first:
            first = False
            raise Unworkable("one of them")
        await work.do(owed)

    upkeep = Upkeep(store, [Chore("embed", do, batch=8, timeout_seconds=60)], FAST)
    async with beside(upkeep.run()):
        async for _ in eventually():
            if len(work.batches) >= 3:
                break
        work.fails = {}
        await nothing_left(store)
    assert len(work.done) == 8


async def test_settling_and_owing_the_same_at_once_never_wait_in_a_ring(opened: Database, store: UpkeepStore) -> None:
    scopes = sorted((new_id(), new_id()) for _ in range(40))

    async def owing() -> None:
        for _ in range(15):
            async with opened.service_transaction() as connection:
                await owe(connection, "embed", reversed(scopes))

    async def settling() -> None:
        for _ in range(15):
            claimed = await store.claim("embed", most=40, lease_seconds=60)
            if claimed:
                await store.settle(sorted(claimed, key=lambda one: one.scope_id))

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(owing())
            group.create_task(settling())


async def test_nothing_is_lost_when_the_database_dies_under_the_work(run_folder: Path) -> None:
    folder = run_folder / "dying-postgres"
    server = await EmbeddedPostgres.start(folder)
    database = await prepare_database(server.admin_url, name="parley_memory", passwords="not-a-secret")
    await asyncio.to_thread(migrate, "services.memory", database.migration_url, service_role=database.service_role)
    opened = open_database(database.url, pool_size=5)
    store, work = UpkeepStore(opened), Work()
    try:
        scopes = await owe_some(opened, 100)
        began, back = asyncio.Event(), asyncio.Event()

        async def do(owed: Sequence[Owed]) -> None:
            if not back.is_set():
                began.set()
                await back.wait()
            await work.do(owed)

        # A long lease: what was claimed at the crash is given back before it ends.
        chore = Chore("embed", do, batch=8, concurrency=2, timeout_seconds=60)
        async with beside(Upkeep(store, [chore], FAST, lease_seconds=120).run()):
            await asyncio.wait_for(began.wait(), 5)
            await server.stop()
            back.set()
            await asyncio.sleep(0.3)
            server = await EmbeddedPostgres.start(folder)
            await nothing_left(store, within_seconds=20)
        assert {one.scope_id for one in work.done} == {scope_id for _, scope_id in scopes}
    finally:
        await opened.close()
        await server.stop()


async def test_what_is_worked_on_for_longer_than_a_lease_stays_claimed(opened: Database, store: UpkeepStore) -> None:
    await owe_some(opened, 1)
    began, done = asyncio.Event(), asyncio.Event()

    async def slow(_: Sequence[Owed]) -> None:
        began.set()
        await done.wait()

    async with beside(Upkeep(store, [Chore("embed", slow)], FAST, lease_seconds=0.4).run()):
        await asyncio.wait_for(began.wait(), 5)
        for _ in range(10):
            await asyncio.sleep(0.1)
            assert await store.claim("embed", most=1, lease_seconds=60) == []
        done.set()
        await nothing_left(store)


async def test_a_claim_reads_the_index_in_order_however_much_waits(opened: Database, database: ServiceDatabase) -> None:
    await owe_some(opened, 3_000)
    await owe_some(opened, 3_000, "extract", delay_seconds=600)
    async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as owner:
        await owner.execute("analyze upkeep")
    values = {"task": "embed", "most": 32, "lease_seconds": 60}
    async with opened.service_transaction() as connection:
        plan = await connection.execute(text(f"explain {_CLAIM.text}"), values)
        shown = "\n".join(plan.scalars())
    assert "Index Scan using upkeep_due_idx" in shown
    assert "Sort" not in shown
    assert "Seq Scan" not in shown
