"""Lanes on a real Postgres: the same confinement and the same ends as other transactions, on connections that are kept."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import psycopg
import pytest
from sqlalchemy import exc, text

from services.runtime.database import Database, open_database
from suite.databases import ServiceDatabase

ANA, BEN = str(uuid.uuid4()), str(uuid.uuid4())
INSERT = b"insert into notes (user_id, text) values (cast(%(user_id)s as uuid), %(note)s) returning text"
COUNT = b"select count(*) from notes"
PID = b"select pg_backend_pid()"


@pytest.fixture
async def database(scratch: ServiceDatabase) -> AsyncIterator[Database]:
    opened = open_database(scratch.url, pool_size=2)
    yield opened
    await opened.close()


async def test_each_transaction_of_a_lane_sees_its_own_users_rows_on_one_connection(database: Database) -> None:
    lane = database.lane(size=1)
    pids = set()
    for user_id in (ANA, BEN, ANA):
        async with lane.transaction(user_id=user_id) as transaction:
            assert await transaction.fetch_one(INSERT, {"user_id": user_id, "note": "hello"}) == ("hello",)
            pids.add(await transaction.fetch_one(PID, {}))
    async with lane.transaction(user_id=ANA) as transaction:
        assert await transaction.fetch_one(COUNT, {}) == (2,)
    async with database.service_transaction() as connection:
        assert (await connection.execute(text("select count(*) from notes"))).scalar_one() == 3
    assert len(pids) == 1


async def test_statements_of_the_driver_and_of_sqlalchemy_share_the_transaction(database: Database) -> None:
    lane = database.lane(size=1)
    with pytest.raises(RuntimeError):  # noqa: PT012 - the block is what fails
        async with lane.transaction(user_id=ANA) as transaction:
            await transaction.fetch_one(INSERT, {"user_id": ANA, "note": "one"})
            seen = await transaction.connection.execute(text("select text from notes"))
            assert seen.scalars().all() == ["one"]
            raise RuntimeError
    async with lane.transaction(user_id=ANA) as transaction:
        await transaction.connection.execute(text("insert into notes (user_id, text) values (:ana, 'two')"), {"ana": ANA})
    async with lane.transaction(user_id=ANA) as transaction:
        assert await transaction.fetch_one(b"select text from notes", {}) == ("two",)


async def test_what_the_database_refuses_is_sqlalchemys_error_and_leaves_nothing(database: Database) -> None:
    lane = database.lane(size=1)
    with pytest.raises(exc.ProgrammingError, match="row-level security") as caught:  # noqa: PT012 - two statements
        async with lane.transaction(user_id=ANA) as transaction:
            await transaction.fetch_one(INSERT, {"user_id": ANA, "note": "mine"})
            await transaction.fetch_one(INSERT, {"user_id": BEN, "note": "secret"})
    assert "secret" not in str(caught.value)
    async with lane.transaction(user_id=ANA) as transaction:
        assert await transaction.fetch_one(COUNT, {}) == (0,)


async def test_a_lost_connection_is_sqlalchemys_error_also_at_the_commit(
    database: Database, scratch: ServiceDatabase
) -> None:
    lane = database.lane(size=1)
    async with lane.transaction(user_id=ANA):
        pass  # the next transaction is begun by the driver
    with pytest.raises(exc.OperationalError):  # noqa: PT012 - the end of the block is what fails
        async with lane.transaction(user_id=ANA) as transaction:
            await transaction.fetch_one(INSERT, {"user_id": ANA, "note": "x"})
            [pid] = await transaction.fetch_one(PID, {}) or [0]
            async with await psycopg.AsyncConnection.connect(scratch.url, autocommit=True) as other:
                await other.execute("select pg_terminate_backend(%s)", (pid,))
    async with lane.transaction(user_id=ANA) as transaction:
        assert await transaction.fetch_one(COUNT, {}) == (0,)


async def test_more_than_fit_wait_in_order(database: Database) -> None:
    lane, begun = database.lane(size=1), []

    async def work(number: int) -> None:
        async with lane.transaction(user_id=ANA) as transaction:
            begun.append(number)
            await transaction.fetch_one(b"select pg_sleep(0.002)", {})

    await asyncio.gather(*(work(number) for number in range(100)))
    assert begun == list(range(100))


async def test_a_kept_connection_that_died_is_replaced_silently(database: Database, scratch: ServiceDatabase) -> None:
    lane = database.lane(size=2)
    async with lane.transaction(user_id=ANA), lane.transaction(user_id=BEN):
        pass  # both are kept now
    async with await psycopg.AsyncConnection.connect(scratch.url, autocommit=True) as connection:
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where usename = current_user and pid <> pg_backend_pid() and datname = current_database()"
        )
    for _ in range(2):
        async with lane.transaction(user_id=ANA) as transaction:
            assert await transaction.fetch_one(COUNT, {}) == (0,)


async def test_a_task_cancelled_in_a_statement_leaves_nothing_and_gives_its_place_back(database: Database) -> None:
    lane = database.lane(size=1)

    async def work() -> None:
        async with lane.transaction(user_id=ANA) as transaction:
            await transaction.fetch_one(INSERT, {"user_id": ANA, "note": "x"})
            await transaction.fetch_one(b"select pg_sleep(30)", {})

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await work()
    async with lane.transaction(user_id=ANA) as transaction:
        assert await transaction.fetch_one(COUNT, {}) == (0,)
