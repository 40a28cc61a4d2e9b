"""The embedded Postgres and the databases on it, for real."""

import asyncio
import os
import signal
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg import AsyncConnection

from suite.databases import Passwords, ServiceDatabase, is_prepared, prepare_database, with_target
from suite.errors import SuiteError
from suite.postgres import EmbeddedPostgres

Rows = list[tuple[object, ...]]
FAST = {"fsync": "off"}


async def rows(url: str, *statements: str) -> Rows:
    async with await AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = connection.cursor()
        for statement in statements:
            await cursor.execute(statement)
        return await cursor.fetchall() if cursor.description else []


async def prepared(postgres: EmbeddedPostgres, name: str) -> ServiceDatabase:
    return await prepare_database(postgres.admin_url, name=name, passwords=Passwords(owner="o'w/n@r", service="s:e%r v"))


async def test_prepares_a_database_that_both_roles_can_use(postgres: EmbeddedPostgres) -> None:
    database = await prepared(postgres, "both_roles")
    await rows(database.migration_url, "CREATE TABLE note (id int)", f"GRANT SELECT ON note TO {database.service_role}")
    assert await rows(database.url, "SELECT current_user::text, count(*) FROM note") == [("both_roles_service", 0)]
    assert await rows(database.url, "SELECT extname FROM pg_extension WHERE extname = 'vector'") == [("vector",)]


async def test_preparing_again_keeps_what_is_there_and_takes_the_new_password(postgres: EmbeddedPostgres) -> None:
    first = await prepare_database(postgres.admin_url, name="again", passwords="old")
    await rows(first.migration_url, "CREATE TABLE kept AS SELECT 7 AS n")
    second = await prepare_database(postgres.admin_url, name="again", passwords="new")
    assert await rows(second.migration_url, "SELECT n FROM kept") == [(7,)]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        await rows(first.url, "SELECT 1")


async def test_preparing_twice_at_once_succeeds_twice(postgres: EmbeddedPostgres) -> None:
    one, other = await asyncio.gather(prepared(postgres, "at_once"), prepared(postgres, "at_once"))
    assert one == other


async def test_the_service_role_cannot_step_around_row_level_security(postgres: EmbeddedPostgres) -> None:
    database = await prepared(postgres, "confined")
    await rows(
        database.migration_url,
        "CREATE TABLE secret (owner text)",
        "ALTER TABLE secret ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE secret FORCE ROW LEVEL SECURITY",
        "CREATE POLICY own ON secret USING (owner = current_setting('parley.user_id', true)) WITH CHECK (true)",
        f"GRANT SELECT, INSERT ON secret TO {database.service_role}",
    )
    await rows(database.url, "INSERT INTO secret VALUES ('ada'), ('grace')")
    seen = await rows(database.url, "SELECT set_config('parley.user_id', 'ada', false)", "SELECT owner FROM secret")
    assert seen == [("ada",)]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await rows(database.url, "SET row_security = off", "SELECT owner FROM secret")
    for forbidden in (
        "ALTER TABLE secret DISABLE ROW LEVEL SECURITY",
        "SET ROLE confined_owner",
        "CREATE TABLE mine (n int)",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await rows(database.url, forbidden)


async def test_the_service_role_has_no_power_and_owns_nothing(postgres: EmbeddedPostgres) -> None:
    database = await prepared(postgres, "powerless")
    powers = "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication FROM pg_roles WHERE rolname = %r"
    assert await rows(database.url, powers % database.service_role) == [(False,) * 5]
    owned = "SELECT count(*) FROM pg_shdepend WHERE deptype = 'o' AND refobjid = %r::regrole"
    assert await rows(database.url, owned % database.service_role) == [(0,)]


async def test_one_service_cannot_enter_the_database_of_another(postgres: EmbeddedPostgres) -> None:
    mine = await prepared(postgres, "mine")
    await prepared(postgres, "yours")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        await rows(with_target(mine.url, database="yours"), "SELECT 1")


async def test_an_admin_without_superuser_rights_is_enough(postgres: EmbeddedPostgres) -> None:
    await rows(postgres.admin_url, "CREATE ROLE modest LOGIN CREATEROLE CREATEDB PASSWORD 'm'")
    admin_url = with_target(postgres.admin_url, database="postgres", login=("modest", "m"))
    for _ in range(2):
        database = await prepare_database(admin_url, name="modestly", passwords="p")
    assert await rows(database.url, "SELECT current_user::text") == [("modestly_service",)]


async def test_a_role_that_bypasses_row_level_security_is_refused(postgres: EmbeddedPostgres) -> None:
    await rows(postgres.admin_url, "CREATE ROLE mighty_service BYPASSRLS")
    with pytest.raises(SuiteError, match="mighty_service is a superuser or bypasses row-level security"):
        await prepared(postgres, "mighty")


async def test_a_server_that_does_not_answer_is_named_in_one_line() -> None:
    with pytest.raises(SuiteError, match="cannot prepare database lost"):
        await prepare_database("postgresql://a:b@127.0.0.1:1/postgres", name="lost", passwords="p")


async def test_a_database_counts_as_migrated_only_at_its_newest_revision_and_with_grants(postgres: EmbeddedPostgres) -> None:
    database = await prepared(postgres, "migrated")
    assert not await is_prepared(database, revision="0002")
    await rows(database.migration_url, "CREATE TABLE alembic_version AS SELECT '0002' AS version_num")
    assert not await is_prepared(database, revision="0002")
    await rows(database.migration_url, f"GRANT SELECT ON alembic_version TO {database.service_role}")
    assert await is_prepared(database, revision="0002")
    assert not await is_prepared(database, revision="0003")


async def test_no_password_stands_in_the_log(postgres: EmbeddedPostgres) -> None:
    await rows(postgres.admin_url, "ALTER SYSTEM SET log_statement = 'all'", "SELECT pg_reload_conf()")
    await prepare_database(postgres.admin_url, name="discreet", passwords="Open-Sesame")
    await rows(postgres.admin_url, "ALTER SYSTEM RESET log_statement", "SELECT pg_reload_conf()")
    log = postgres.log_file.read_text()
    assert "discreet_service" in log
    assert "Open-Sesame" not in log


async def test_listens_on_no_address_and_lets_nobody_in_without_a_password(postgres: EmbeddedPostgres) -> None:
    assert await rows(postgres.admin_url, "SHOW listen_addresses") == [("",)]
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        await rows(with_target(postgres.admin_url, database="postgres", login=("postgres", "")), "SELECT 1")


async def test_data_survives_a_restart_and_a_stop_leaves_no_process(spare: Path) -> None:
    first = await EmbeddedPostgres.start(spare, settings=FAST)
    await rows(first.admin_url, "CREATE TABLE kept AS SELECT 42 AS n")
    await first.stop()
    await first.stop()
    assert not psutil.pid_exists(first.pid)
    second = await EmbeddedPostgres.start(spare, settings=FAST)
    try:
        assert await rows(second.admin_url, "SELECT n FROM kept") == [(42,)]
    finally:
        await second.stop()


async def test_starts_again_after_it_was_killed(spare: Path) -> None:
    first = await EmbeddedPostgres.start(spare, settings=FAST)
    os.kill(first.pid, signal.SIGKILL)
    await first.wait()
    assert (spare / "cluster" / "postmaster.pid").exists()
    second = await EmbeddedPostgres.start(spare, settings=FAST)
    await second.stop()


async def test_ends_the_server_that_a_killed_run_left_on_the_folder(spare: Path) -> None:
    left = await EmbeddedPostgres.start(spare, settings=FAST)
    running = await EmbeddedPostgres.start(spare, settings=FAST)
    try:
        assert await asyncio.wait_for(left.wait(), 5) == 0
        assert await rows(running.admin_url, "SELECT 1") == [(1,)]
    finally:
        await running.stop()


async def test_a_pid_file_that_names_another_process_is_no_obstacle_and_no_danger(spare: Path) -> None:
    await (await EmbeddedPostgres.start(spare, settings=FAST)).stop()
    bystander = await asyncio.create_subprocess_exec("sleep", "60")
    (spare / "cluster" / "postmaster.pid").write_text(f"{bystander.pid}\n{spare}\n1\n5432\n\n\n\n")
    try:
        await (await EmbeddedPostgres.start(spare, settings=FAST)).stop()
        assert bystander.returncode is None
    finally:
        bystander.kill()
        await bystander.wait()


async def test_a_folder_with_a_long_path_and_an_interrupted_first_start_works(folder: Path) -> None:
    data = folder / ("long" * 20) / ("longer" * 10)
    half = data / "cluster.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    running = await EmbeddedPostgres.start(data, settings=FAST)
    try:
        assert await rows(running.admin_url, "SELECT 1") == [(1,)]
        sockets = str(psycopg.conninfo.conninfo_to_dict(running.admin_url)["host"])
        assert os.stat(sockets).st_mode & 0o777 == 0o700  # noqa: PTH116  # a path that the test did not choose
    finally:
        await running.stop()
    assert not os.path.exists(sockets)  # noqa: ASYNC240, PTH110  # as above


async def test_a_folder_that_cannot_be_made_is_named_with_its_variable(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(SuiteError, match=r"cannot use .*file.* PARLEY_DATA"):
        await EmbeddedPostgres.start(folder / "file" / "data")


async def test_a_server_that_refuses_its_settings_is_quoted(spare: Path) -> None:
    with pytest.raises(SuiteError, match="no_such_setting"):
        await EmbeddedPostgres.start(spare, settings={"no_such_setting": "1"})


def test_a_url_keeps_hosts_and_options_when_its_database_and_login_change() -> None:
    url = with_target("postgresql+psycopg://a:b@h1:1,h2:2/x?sslmode=require", database="y z", login=("r", "p@/:"))
    assert url == "postgresql://r:p%40%2F%3A@h1:1,h2:2/y%20z?sslmode=require"
