"""Real parts for the tests: one Postgres and one Redis a run, one migrated database a service, tokens signed for tests."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psycopg
import pytest

from services.runtime.migrations import migrate
from suite.databases import ServiceDatabase, prepare_database
from suite.postgres import EmbeddedPostgres
from suite.redis import RedisServer, running_redis
from tests.issuer import Issuer
from tests.units import pytest_collection_modifyitems, pytest_xdist_make_scheduler

__all__ = ["pytest_collection_modifyitems", "pytest_xdist_make_scheduler"]

# The tests need speed from Postgres, not durability: what is lost at a power cut is a test run.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@pytest.fixture(scope="session")
async def run_folder() -> AsyncIterator[Path]:
    """A folder of this run with a short path: sockets live in it."""
    with tempfile.TemporaryDirectory(prefix="parley-test-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
async def postgres(run_folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    server = await EmbeddedPostgres.start(run_folder / "postgres", settings=FAST)
    yield server
    await server.stop()


@pytest.fixture(scope="session")
async def redis_server(run_folder: Path) -> AsyncIterator[RedisServer]:
    async with running_redis(run_folder / "redis") as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url


@pytest.fixture(scope="session")
def make_database(postgres: EmbeddedPostgres) -> Callable[[str], Awaitable[ServiceDatabase]]:
    """Makes and migrates the database of the service that it is called with."""

    async def make(service: str) -> ServiceDatabase:
        database = await prepare_database(postgres.admin_url, name=f"parley_{service}", passwords="not-a-secret")
        await asyncio.to_thread(migrate, f"services.{service}", database.migration_url, service_role=database.service_role)
        return database

    return make


@pytest.fixture(scope="session")
async def auth_database(make_database: Callable[[str], Awaitable[ServiceDatabase]]) -> ServiceDatabase:
    return await make_database("auth")


@pytest.fixture(scope="session")
async def chat_database(make_database: Callable[[str], Awaitable[ServiceDatabase]]) -> ServiceDatabase:
    return await make_database("chat")


@pytest.fixture(scope="session")
async def memory_database(make_database: Callable[[str], Awaitable[ServiceDatabase]]) -> ServiceDatabase:
    return await make_database("memory")


@pytest.fixture(scope="session")
async def sms_database(make_database: Callable[[str], Awaitable[ServiceDatabase]]) -> ServiceDatabase:
    return await make_database("sms")


@pytest.fixture(scope="session")
def issuer() -> Issuer:
    """Signs tokens as auth would; servers under test trust it through `issuer.verifier(audience)`."""
    return Issuer()


async def truncate(database: ServiceDatabase) -> None:
    """Empties every table of a service's database but the migrations' own: call it between tests."""
    async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as connection:
        cursor = await connection.execute(
            "select string_agg(quote_ident(relname), ', ') from pg_class where relkind in ('r', 'p')"
            " and relnamespace = 'public'::regnamespace and relname <> 'alembic_version' and not relispartition"
        )
        row = await cursor.fetchone()
        if row is not None and row[0]:
            await connection.execute(f"truncate {row[0]} restart identity cascade".encode())
