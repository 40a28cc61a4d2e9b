"""What the database's errors become for the caller, and what must not leave the process."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from sqlalchemy import exc, text

from services.runtime.database import Database, open_database
from suite.databases import ServiceDatabase
from tests.runtime import probe
from tests.runtime.conftest import Serve
from tests.runtime.status import refused

SECRET = "the-secret-text-of-an-exception"


def _querying(database: Database, *statements: str) -> probe.Probe:
    async def answer(_request: Any, _context: Any) -> Any:
        async with database.service_transaction() as connection:
            for statement in statements:
                await connection.execute(text(statement))
        return probe.reply()

    return probe.Probe(answer)


FAILING = {
    "statement timeout": (
        ("set local statement_timeout = 50", "select pg_sleep(5)"),
        "DEADLINE_EXCEEDED",
        "DEADLINE_PASSED",
    ),
    "lock timeout": (
        ("set local lock_timeout = 50", "select number from places where name = 'held' for update"),
        "ABORTED",
        "CONFLICT",
    ),
    "own connection killed": (
        ("select pg_terminate_backend(pg_backend_pid())",),
        "UNAVAILABLE",
        "DEPENDENCY_UNAVAILABLE",
    ),
    "idle in transaction": (
        ("set local idle_in_transaction_session_timeout = 1", "select pg_sleep(0)", "SLEEP"),
        "UNAVAILABLE",
        "DEPENDENCY_UNAVAILABLE",
    ),
    "read-only transaction": (
        ("set local transaction_read_only = on", "insert into places values ('x', 1)"),
        "UNAVAILABLE",
        "DEPENDENCY_UNAVAILABLE",
    ),
    "broken constraint": (
        ("insert into notes (user_id, text) values (uuidv7(), 'forbidden')",),
        "INTERNAL",
        "INTERNAL_FAULT",
    ),
    "bad statement": (("select nothing from nowhere",), "INTERNAL", "INTERNAL_FAULT"),
}


@pytest.mark.parametrize("name", FAILING)
async def test_driver_errors_get_a_status_of_their_own(
    serve: Serve, database: Database, scratch: ServiceDatabase, name: str
) -> None:
    statements, code, reason = FAILING[name]

    async def answer(_request: Any, _context: Any) -> Any:
        async with database.service_transaction() as connection:
            for statement in statements:
                if statement == "SLEEP":
                    await asyncio.sleep(0.1)
                else:
                    await connection.execute(text(statement))
        return probe.reply()

    async with await psycopg.AsyncConnection.connect(scratch.url) as other:
        await other.execute("insert into places values ('held', 1)")
        await other.commit()
        await other.execute("select number from places where name = 'held' for update")
        client = await serve(probe.Probe(answer))
        error = await refused(client.call("ForAnybody", probe.request()))
    assert (error.code.name, error.info.reason) == (code, reason)
    assert not any(word in error.everything() for word in ("select", "insert", "nowhere", "notes", "psycopg"))


async def test_two_serializable_changes_that_meet_are_aborted(
    serve: Serve, database: Database, scratch: ServiceDatabase
) -> None:
    async with await psycopg.AsyncConnection.connect(scratch.url) as other:
        await other.execute("insert into places values ('counter', 1)")
        await other.commit()

        async def answer(_request: Any, _context: Any) -> Any:
            async with database.service_transaction() as connection:
                await connection.execute(text("commit"))
                await connection.execute(text("begin isolation level repeatable read"))
                await connection.execute(text("select number from places"))
                await other.execute("update places set number = number + 1")
                await other.commit()
                await connection.execute(text("update places set number = number + 1"))

        client = await serve(probe.Probe(answer))
        error = await refused(client.call("ForAnybody", probe.request()))
    assert (error.code, error.info.reason) == (grpc.StatusCode.ABORTED, "CONFLICT")


async def test_a_pool_that_stays_busy_is_unavailable(serve: Serve) -> None:
    client = await serve(probe.raising(exc.TimeoutError(f"QueuePool limit {SECRET}")))
    error = await refused(client.call("ForAnybody", probe.request()))
    assert (error.code, error.info.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVICE_BUSY")
    assert SECRET not in error.everything()


async def test_a_database_that_is_away_is_unavailable(serve: Serve, tmp_path: Path) -> None:
    away = open_database(f"postgresql://somebody:a-password@/nowhere?host={tmp_path}")
    client = await serve(_querying(away, "select 1"))
    error = await refused(client.call("ForAnybody", probe.request()))
    await away.close()
    assert (error.code, dict(error.info.metadata)) == (grpc.StatusCode.UNAVAILABLE, {"dependency": "database"})
    assert error.retry_delay == 1
    assert "a-password" not in error.everything()
