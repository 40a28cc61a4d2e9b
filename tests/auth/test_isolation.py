"""The database itself: migrations make what the schema says, and row-level security holds every statement."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, func, insert, select, update
from sqlalchemy.exc import ProgrammingError

from parley.auth.v1 import auth_pb2
from services.auth.account_store import AccountStore
from services.auth.schema import metadata, refresh_tokens, sessions, signing_keys, users
from services.auth.session_store import SessionStore
from services.runtime.database import Database, UnsafeRoleError, async_url, open_database
from services.runtime.migrations import alembic_config, migrate
from suite.databases import ServiceDatabase
from tests.auth.harness import Person, RunningAuth, make_settings, running_auth

NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
async def database(auth_database: ServiceDatabase) -> AsyncIterator[Database]:
    opened = open_database(auth_database.url, pool_size=2)
    yield opened
    await opened.close()


def _is_foreign(entry: Any) -> bool:
    """Whether a difference is about a table that is not ours: of Alembic, and of the queue."""
    table = entry[1] if entry[0] == "remove_table" else getattr(entry[1], "table", None)
    return table is not None and table.name.startswith(("alembic_", "procrastinate_"))


async def test_the_migrations_have_one_head_and_make_what_the_schema_says(own_database: ServiceDatabase) -> None:
    assert len(ScriptDirectory.from_config(alembic_config("services.auth")).get_heads()) == 1

    def differences() -> list[object]:
        engine = create_engine(async_url(own_database.migration_url))
        with engine.connect() as connection:
            found = compare_metadata(MigrationContext.configure(connection), metadata)
        engine.dispose()
        return [entry for entry in found if not _is_foreign(entry)]

    assert await asyncio.to_thread(differences) == []


async def test_migrating_again_changes_nothing(own_database: ServiceDatabase) -> None:
    role = own_database.service_role
    await asyncio.to_thread(migrate, "services.auth", own_database.migration_url, service_role=role)


async def test_a_users_transaction_sees_the_users_rows_only(auth: RunningAuth, database: Database, person: Person) -> None:
    await auth.register()
    async with database.transaction(user_id=person.id) as connection:
        assert list((await connection.execute(select(users.c.id))).scalars()) == [person.id]
        for table in (sessions, refresh_tokens):
            owners = (await connection.execute(select(table.c.user_id))).scalars()
            assert set(owners) == {person.id}
        assert (await connection.execute(select(func.count()).select_from(signing_keys))).scalar_one() == 0


async def test_a_users_transaction_changes_nobody_elses_rows(auth: RunningAuth, database: Database, person: Person) -> None:
    other = await auth.register()
    async with database.transaction(user_id=person.id) as connection:
        taking = update(users).where(users.c.id == other.id).values(is_admin=True)
        assert (await connection.execute(taking)).rowcount == 0
    starting = insert(sessions).values(user_id=other.id, user_agent="", expire_time=func.now())
    async with database.transaction(user_id=person.id) as connection:
        with pytest.raises(ProgrammingError, match="row-level security"):
            await connection.execute(starting)


@pytest.mark.usefixtures("person")
async def test_a_statement_without_identity_sees_nothing(database: Database) -> None:
    async with database.engine.connect() as connection:
        for table in (users, sessions, refresh_tokens, signing_keys):
            assert (await connection.execute(select(func.count()).select_from(table))).scalar_one() == 0


async def read_whole(database: Database, statements: Sequence[tuple[str, Any]]) -> list[str]:
    """Those of the statements that no index serves: they read a whole table even where that is the last resort."""
    found = []
    async with database.service_transaction() as connection:
        await connection.exec_driver_sql("set local enable_seqscan = off")
        for statement, parameters in statements:
            plan = await connection.exec_driver_sql(f"explain {statement}", parameters)
            found += [statement for (line,) in plan if "Seq Scan" in line]
    return found


async def test_no_call_reads_a_whole_table(auth: RunningAuth, person: Person) -> None:
    """Under row-level security an index serves only conditions that leak nothing: one lower() too many, and none does."""
    database = auth.assembly.database
    with auth.noted_statements() as statements:
        await auth.register()
        await auth.login(person.username)
        await auth.login(person.email)
        await auth.refresh(person.tokens.refresh_token)
        await auth.me(person.tokens.access_token)
        listing = auth_pb2.ListSessionsRequest(page_size=1)
        await auth.auth.ListSessions(listing, metadata=person.metadata)
        await auth.auth.Logout(auth_pb2.LogoutRequest(all_sessions=True), metadata=person.metadata)
        await AccountStore(database).find_account(person.id)
        await SessionStore(database).sweep(keep_seconds=86_400, batch=10)
    assert len(statements) >= 15
    assert await read_whole(database, statements) == []


async def test_no_cascade_reads_a_whole_table(auth: RunningAuth) -> None:
    keys = [key for table in metadata.tables.values() for key in table.foreign_keys if key.ondelete == "CASCADE"]
    assert {key.column.table.name for key in keys} == {"users", "sessions", "deletions"}
    # What Postgres asks for each row that goes.
    asked = [f"delete from {key.parent.table.name} where {key.parent.name} = '{NOBODY}'" for key in keys]  # noqa: S608
    assert await read_whole(auth.assembly.database, [(one, None) for one in asked]) == []


async def test_auth_refuses_to_start_as_the_owner_of_its_tables(own_database: ServiceDatabase, tmp_path: Path) -> None:
    settings = make_settings(own_database, tmp_path, database_url=own_database.migration_url)
    with pytest.raises(UnsafeRoleError):
        async with running_auth(own_database, settings):
            pass


async def test_the_sweep_deletes_what_is_over_and_nothing_else(auth: RunningAuth) -> None:
    ended, expired, stale, fresh = [await auth.register() for _ in range(4)]
    past = "now() - interval '2 days'"
    ending = f"update sessions set end_time = {past}, end_cause = 'logout' where user_id = %s"  # noqa: S608
    await auth.execute(ending, ended.id)
    await auth.execute(f"update sessions set expire_time = {past} where user_id = %s", expired.id)  # noqa: S608
    await auth.execute(f"update refresh_tokens set expire_time = {past} where user_id = %s", stale.id)  # noqa: S608
    just_ended = await auth.register()
    await auth.execute("update sessions set end_time = now(), end_cause = 'logout' where user_id = %s", just_ended.id)

    await asyncio.gather(*(auth.assembly.upkeep.sweep() for _ in range(3)))

    async def left(person: Person) -> tuple[int, int]:
        counts = "select (select count(*) from sessions where user_id = %s), count(*) from refresh_tokens where user_id = %s"
        ((open_sessions, tokens),) = await auth.execute(counts, person.id, person.id)
        return open_sessions, tokens

    assert [await left(person) for person in (ended, expired, stale, fresh, just_ended)] == [
        (0, 0), (0, 0), (1, 0), (1, 1), (1, 1),
    ]  # fmt: skip
