"""The database of memory from outside: what is really in its tables, whoever's it is."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, LiteralString

import psycopg
from psycopg.rows import TupleRow

from suite.databases import ServiceDatabase
from tests.memory.service import eventually

Connection = psycopg.AsyncConnection[TupleRow]


@asynccontextmanager
async def opened(database: ServiceDatabase) -> AsyncIterator[Connection]:
    """A transaction that sees every row."""
    async with await psycopg.AsyncConnection.connect(database.migration_url) as connection:
        await connection.execute("select set_config('parley.scope', 'service', true)")
        yield connection


async def fetch(database: ServiceDatabase, query: LiteralString, *values: object) -> list[tuple[Any, ...]]:
    """The rows of a query."""
    async with opened(database) as connection:
        return await (await connection.execute(query, values)).fetchall()


async def run(database: ServiceDatabase, statement: LiteralString, *values: object) -> None:
    """Runs a statement."""
    async with opened(database) as connection:
        await connection.execute(statement, values)


@asynccontextmanager
async def holding_person(database: ServiceDatabase, user_id: str) -> AsyncIterator[None]:
    """Holds a user's row meanwhile, as whoever erases or imports much does for long."""
    async with opened(database) as connection:
        await connection.execute("select from people where user_id = %s for update", (user_id,))
        yield


async def somebody_waits(database: ServiceDatabase) -> None:
    """Returns when a statement waits for what another transaction holds."""
    waiting = "select from pg_locks join pg_stat_activity using (pid) where not granted and datname = current_database()"
    async for _ in eventually():
        if await fetch(database, waiting):
            break
