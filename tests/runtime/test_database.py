"""Transactions on a real Postgres: whose rows they see, how they end, what is left on a pooled connection."""

import asyncio
import gc
import uuid
import warnings
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import exc, text

from services.runtime.database import Database, UnsafeRoleError, open_database
from suite.databases import ServiceDatabase, with_target
from suite.postgres import EmbeddedPostgres

ANA, BEN = str(uuid.uuid4()), str(uuid.uuid4())
NOTES = text("select text from notes order by text")
SETTINGS = text("select current_setting('parley.user_id', true), current_setting('parley.scope', true)")


@pytest.fixture
async def one_connection(scratch: ServiceDatabase) -> AsyncIterator[Database]:
    """A pool of one: the next transaction gets what the last one left."""
    opened = open_database(scratch.url, pool_size=1)
    yield opened
    await opened.close()


async def _write(database: Database, user_id: str, note: str) -> None:
    async with database.transaction(user_id=user_id) as connection:
        await connection.execute(
            text("insert into notes (user_id, text) values (:user_id, :note)"),
            {"user_id": user_id, "note": note},
        )


async def _read(database: Database, user_id: str | None) -> list[str]:
    """Every note that a statement without `where` sees; of the service without a user."""
    begin = database.service_transaction() if user_id is None else database.transaction(user_id=user_id)
    async with begin as connection:
        return list((await connection.execute(NOTES)).scalars())


async def test_a_statement_without_where_sees_and_changes_only_the_users_rows(database: Database) -> None:
    await _write(database, ANA, "of ana")
    await _write(database, BEN, "of ben")
    assert (await _read(database, ANA), await _read(database, BEN)) == (["of ana"], ["of ben"])
    assert await _read(database, None) == ["of ana", "of ben"]
    async with database.transaction(user_id=ANA) as connection:
        assert (await connection.execute(text("update notes set text = 'taken'"))).rowcount == 1
        assert (await connection.execute(text("delete from notes where user_id = :ben"), {"ben": BEN})).rowcount == 0
    assert await _read(database, BEN) == ["of ben"]


async def test_nobody_writes_in_anothers_name(database: Database) -> None:
    with pytest.raises(exc.ProgrammingError, match="row-level security"):
        async with database.transaction(user_id=ANA) as connection:
            await connection.execute(text("insert into notes (user_id, text) values (:ben, 'x')"), {"ben": BEN})
    await _write(database, ANA, "mine")
    with pytest.raises(exc.ProgrammingError, match="row-level security"):
        async with database.transaction(user_id=ANA) as connection:
            await connection.execute(text("update notes set user_id = :ben"), {"ben": BEN})


async def test_what_is_kept_for_the_service_is_hidden_from_users(database: Database) -> None:
    async with database.service_transaction() as connection:
        await connection.execute(text("insert into standing values ('lease', 1)"))
    async with database.transaction(user_id=ANA) as connection:
        assert (await connection.execute(text("select * from standing"))).all() == []


async def test_a_connection_that_says_nothing_sees_nothing(database: Database) -> None:
    await _write(database, ANA, "of ana")
    async with database.engine.connect() as connection:
        assert (await connection.execute(NOTES)).all() == []


async def _settings_left(database: Database) -> tuple[str, str]:
    async with database.engine.connect() as connection:
        user_id, scope = (await connection.execute(SETTINGS)).one()
        assert (await connection.execute(NOTES)).all() == []
    return user_id or "", scope or ""


async def test_no_identity_is_left_on_a_connection(one_connection: Database) -> None:
    await _write(one_connection, ANA, "of ana")
    assert await _settings_left(one_connection) == ("", "")
    assert await _read(one_connection, None) == ["of ana"]
    assert await _settings_left(one_connection) == ("", "")
    assert await _read(one_connection, BEN) == []


@pytest.mark.parametrize("error", [RuntimeError(), asyncio.CancelledError()], ids=["error", "cancelled"])
async def test_a_transaction_that_fails_leaves_neither_rows_nor_identity(
    one_connection: Database, error: BaseException
) -> None:
    with pytest.raises(type(error)):  # noqa: PT012 - the block is what fails
        async with one_connection.transaction(user_id=ANA) as connection:
            await connection.execute(text("insert into notes (user_id, text) values (:ana, 'x')"), {"ana": ANA})
            raise error
    assert await _settings_left(one_connection) == ("", "")
    assert await _read(one_connection, None) == []


async def test_a_task_cancelled_in_a_query_rolls_back_and_gives_its_connection_back(one_connection: Database) -> None:
    waiting = asyncio.Event()

    async def work() -> None:
        async with one_connection.transaction(user_id=ANA) as connection:
            await connection.execute(text("insert into notes (user_id, text) values (:ana, 'x')"), {"ana": ANA})
            waiting.set()
            await connection.execute(text("select pg_sleep(30)"))

    task = asyncio.create_task(work())
    await waiting.wait()
    await asyncio.sleep(0.05)
    while not task.done():
        task.cancel()  # again, while the one before is being cleaned up
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(3):
        assert await _read(one_connection, None) == []
    assert one_connection.engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # of the pool in use


async def test_a_failing_commit_is_an_error_and_leaves_nothing(one_connection: Database, scratch: ServiceDatabase) -> None:
    with pytest.raises(exc.DBAPIError):  # noqa: PT012 - the commit at its end is what fails
        async with one_connection.transaction(user_id=ANA) as connection:
            await connection.execute(text("insert into notes (user_id, text) values (:ana, 'x')"), {"ana": ANA})
            await _kill_all(scratch)
    assert await _read(one_connection, None) == []


async def _kill_all(scratch: ServiceDatabase) -> int:
    """Ends every connection of the service's role, as a restart or a failover does."""
    async with await psycopg.AsyncConnection.connect(scratch.url, autocommit=True) as killer:
        cursor = await killer.execute(
            "select count(pg_terminate_backend(pid, 2000)) from pg_stat_activity"
            " where usename = current_user and pid <> pg_backend_pid()"
        )
        [killed] = await cursor.fetchone() or [0]
    return int(killed)


async def test_pooled_connections_that_died_are_replaced_silently(database: Database, scratch: ServiceDatabase) -> None:
    async with database.service_transaction(), database.service_transaction():
        pass  # both connections of the pool are open now
    assert await _kill_all(scratch) >= 2
    await _write(database, ANA, "first")
    await _write(database, ANA, "second")
    assert await _read(database, ANA) == ["first", "second"]


async def test_a_statement_cannot_run_for_ever(database: Database) -> None:
    async with database.service_transaction() as connection:
        limits = [
            (await connection.execute(text(f"show {name}"))).scalar_one()
            for name in ("statement_timeout", "idle_in_transaction_session_timeout", "timezone")
        ]
    assert limits == ["10s", "5s", "UTC"]


async def test_errors_hold_no_values(database: Database) -> None:
    with pytest.raises(exc.IntegrityError) as caught:
        async with database.transaction(user_id=ANA) as connection:
            await connection.execute(
                text("insert into notes (id, user_id, text) values (:id, :ana, 'forbidden')"), {"id": ANA, "ana": ANA}
            )
    assert ANA not in str(caught.value)
    assert "forbidden" not in str(caught.value.orig)


async def test_the_plain_role_is_accepted(database: Database) -> None:
    await database.check_role()


async def _is_refused(url: str) -> bool:
    opened = open_database(url, pool_size=1)
    try:
        await opened.check_role()
    except UnsafeRoleError as error:
        return "DATABASE_URL" in str(error)
    finally:
        await opened.close()
    return False


async def test_superuser_owner_and_bypassing_roles_are_refused(scratch: ServiceDatabase, postgres: EmbeddedPostgres) -> None:
    as_superuser = with_target(postgres.admin_url, database="parley_scratch")
    async with await psycopg.AsyncConnection.connect(as_superuser, autocommit=True) as admin:
        for role, grant in (("bypasser", "alter role {} bypassrls"), ("heir", "grant parley_scratch_owner to {}")):
            name = sql.Identifier(f"scratch_{role}")
            await admin.execute(sql.SQL("drop role if exists {}").format(name))
            await admin.execute(sql.SQL("create role {} login password 'x'").format(name))
            await admin.execute(sql.SQL("grant connect on database parley_scratch to {}").format(name))
            await admin.execute(sql.SQL("grant usage on schema public to {}").format(name))
            await admin.execute(sql.SQL(grant).format(name))
    urls = [as_superuser, scratch.migration_url]
    urls += [
        with_target(scratch.url, database="parley_scratch", login=(f"scratch_{one}", "x")) for one in ("bypasser", "heir")
    ]
    assert [await _is_refused(url) for url in urls] == [True] * 4


async def test_what_is_given_back_late_is_closed_too(scratch: ServiceDatabase) -> None:
    """A task that is cancelled twice leaves its connection on the way back to the pool; the end waits for it."""
    ending = open_database(scratch.url)
    begun = asyncio.Event()

    async def work() -> None:
        async with ending.service_transaction():
            begun.set()
            await asyncio.sleep(60)

    tasks = [asyncio.create_task(work()) for _ in range(3)]
    await begun.wait()
    await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        await ending.close()
        await asyncio.sleep(0.2)
        gc.collect()
    assert [str(one.message) for one in warned if issubclass(one.category, ResourceWarning)] == []


async def test_nothing_is_begun_after_the_end(scratch: ServiceDatabase) -> None:
    """Its connection would be nobody's to close."""
    ended = open_database(scratch.url)
    async with ended.service_transaction() as connection:
        await connection.execute(text("select 1"))
    await ended.close()
    with pytest.raises(RuntimeError, match="closed"):
        async with ended.service_transaction():
            pytest.fail("it began")
