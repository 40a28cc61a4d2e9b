"""A command finds the services' databases: of a suite that runs, of one that is stopped, or by their URLs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from services.runtime.migrations import migrate
from suite.credentials import Credentials
from suite.databases import prepare_database
from suite.errors import SuiteError
from suite.folder import DataFolder
from suite.postgres import EmbeddedPostgres
from suite.reach import reached
from tests.suite.conftest import FAST
from tests.suite_process import outcome, start_command, suite_environment


@asynccontextmanager
async def running(data: DataFolder) -> AsyncIterator[None]:
    """What a suite has running: its lock and its Postgres."""
    with data.lock():
        server = await EmbeddedPostgres.start(data.postgres, settings=FAST)
        try:
            await _prepare(data, server.admin_url)
            yield
        finally:
            await server.stop()


async def _prepare(data: DataFolder, admin_url: str) -> None:
    passwords = Credentials(data.credentials).database_passwords("auth")
    database = await prepare_database(admin_url, name="parley_auth", passwords=passwords)
    await asyncio.to_thread(migrate, "services.auth", database.migration_url, service_role=database.service_role)


async def who(url: str) -> str:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        row = await (await connection.execute("select current_user || ' of ' || current_database()")).fetchone()
        assert row is not None
        return str(row[0])


async def test_of_a_suite_that_runs_and_of_one_that_is_stopped(folder: Path) -> None:
    data, environment = DataFolder(folder / "data"), {"PARLEY_DATA": str(folder / "data")}
    async with running(data):
        async with reached(environment, ["auth"]) as urls:
            assert await who(urls["auth"]) == "parley_auth_service of parley_auth"
        assert (data.postgres / "cluster" / "postmaster.pid").exists(), "the suite's server goes on"
    async with reached(environment, ["auth"]) as urls:
        assert await who(urls["auth"]) == "parley_auth_service of parley_auth"
        with pytest.raises(SuiteError, match="another suite"), data.lock():
            raise AssertionError("a suite could start meanwhile")
    assert not (data.postgres / "cluster" / "postmaster.pid").exists(), "what was started for it has ended"
    async with reached({"AUTH_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x"}, []) as urls:
        assert urls == {}


async def test_tables_of_another_release_are_left_alone(folder: Path) -> None:
    data = DataFolder(folder / "data")
    async with running(data):
        url = Credentials(data.credentials).database_passwords("auth").owner
        async with reached({"PARLEY_DATA": str(data.path)}, ["auth"]) as urls:
            owner = urls["auth"].replace("parley_auth_service", "parley_auth_owner").split("@")
        owner[0] = f"postgresql://parley_auth_owner:{url}"
        async with await psycopg.AsyncConnection.connect("@".join(owner), autocommit=True) as connection:
            await connection.execute("update alembic_version set version_num = '0001'")
        with pytest.raises(SuiteError, match="the database of auth is not that of this release"):
            async with reached({"PARLEY_DATA": str(data.path)}, ["auth"]):
                raise AssertionError("it was let in")


async def test_no_suite_is_said_to_be_none(folder: Path) -> None:
    with pytest.raises(SuiteError, match=r"there is no suite in .*: set PARLEY_DATA") as caught:
        async with reached({"PARLEY_DATA": str(folder / "nothing")}, ["auth", "chat"]):
            raise AssertionError("there is nothing")
    assert caught.value.exit_code == 2
    assert not (folder / "nothing").exists()


async def _password_hash(data: DataFolder) -> str:
    environment = {"PARLEY_DATA": str(data.path)}
    async with reached(environment, ["auth"]) as urls, await psycopg.AsyncConnection.connect(urls["auth"]) as connection:
        await connection.execute("select set_config('parley.scope', 'service', true)")
        row = await (await connection.execute("select password_hash from users")).fetchone()
    assert row is not None
    return str(row[0])


async def test_the_first_administrator_is_made_beside_a_suite_that_is_stopped(folder: Path) -> None:
    data = DataFolder(folder / "data")
    async with running(data):
        pass
    environment = {**suite_environment(data.path), "PARLEY_ADMIN_PASSWORD": "correct horse battery"}
    (folder / ".env").write_text("ARGON2_TIME_COST=2\nARGON2_MEMORY_KIB=1024\n")
    arguments = ("-m", "suite.command", "admin", "create", "--username", "ana", "--email", "ana@example.com")
    code, output, errors = await outcome(await start_command(environment, folder, *arguments))
    assert (code, errors) == (0, "")
    assert output == "ana is an administrator now and can sign in.\n"
    assert "m=1024,t=2," in await _password_hash(data)
    code, _, errors = await outcome(await start_command(environment, folder, *arguments))
    assert code == 1
    assert "administrator" in errors
    code, output, _ = await outcome(await start_command(environment, folder, *arguments[:4], "--help"))
    assert code == 0
    assert "--username" in output


@pytest.mark.parametrize("arguments", [(), ("admin",), ("rubbish", "--help")])
async def test_a_command_that_is_none_says_which_there_are(folder: Path, arguments: tuple[str, ...]) -> None:
    process = await start_command(suite_environment(folder / "data"), folder, "-m", "suite.command", *arguments)
    code, output, errors = await outcome(process)
    assert (code, output) == (2, "")
    assert "parley admin create" in errors
    assert "parley import" in errors
