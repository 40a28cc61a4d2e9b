"""No job is lost: not when its worker is killed, nor when its connection is cut."""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
import pytest
from structlog.testing import capture_logs

from services.runtime.database import Database
from services.runtime.jobs import PUT_BACK
from suite.databases import ServiceDatabase
from tests.runtime.queue_of_work import Worked, defer, make_jobs, until_left


async def test_a_killed_workers_job_is_done_by_another(scratch: ServiceDatabase, database: Database) -> None:
    worked = Worked()
    jobs = make_jobs(scratch, worked, stalled_seconds=1)
    others = make_jobs(scratch, worked, stalled_seconds=1)
    await defer(jobs, database, 1)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.runtime.jobs_process",
        "1",
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "DATABASE_URL": scratch.url},
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"took 1\n"
    async with jobs.working(concurrency=1), others.working(concurrency=1):
        await asyncio.sleep(1.5)
        assert worked.runs == {}  # the worker lives and beats: its job is its own
        process.send_signal(signal.SIGKILL)
        await process.wait()
        with capture_logs() as logs:
            await worked.until(1)
            await asyncio.sleep(1)
    assert worked.runs == {1: 1}
    assert [one["event"] for one in logs].count("job.stalled") == 1


@asynccontextmanager
async def _killer(scratch: ServiceDatabase) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(scratch.url, autocommit=True) as connection:
        yield connection


async def _kill_connections(killer: psycopg.AsyncConnection) -> int:
    cursor = await killer.execute(
        "select count(pg_terminate_backend(pid, 2000)) from pg_stat_activity"
        " where usename = current_user and pid <> pg_backend_pid()"
    )
    [killed] = await cursor.fetchone() or [0]
    return int(killed)


async def test_a_worker_recovers_when_postgres_cuts_its_connections(
    scratch: ServiceDatabase, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    worked = Worked()
    jobs = make_jobs(scratch, worked, stalled_seconds=3)
    async with AsyncExitStack() as stack:
        killer = await stack.enter_async_context(_killer(scratch))
        await stack.enter_async_context(jobs.working(concurrency=2))
        await defer(jobs, database, 1)
        await worked.until(1)
        for number in (2, 3):
            await _kill_connections(killer)
            await defer(jobs, database, number)
            await worked.until(number)
        await until_left(database, {"workers": 1})
    # At least once: a job whose end was lost with its connection runs again.
    assert worked.runs.keys() == {1, 2, 3}
    assert _unexpected(caplog) == []


def _unexpected(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What libraries said, but for those that log.configure silences."""
    silenced = ("procrastinate", "psycopg.pool")
    loud = [one for one in caplog.records if one.levelno >= logging.WARNING and not one.name.startswith(silenced)]
    return [one.message for one in loud]


async def test_a_job_whose_connection_is_cut_while_it_runs_is_not_lost(
    scratch: ServiceDatabase, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    worked = Worked()
    jobs = make_jobs(scratch, worked, stalled_seconds=1)
    async with _finish_is_cut_once(scratch), jobs.working(concurrency=1):
        with capture_logs() as logs:
            await defer(jobs, database, 1)
            await worked.until(2)
            await until_left(database, {"workers": 1})
    assert worked.runs == {1: 2}
    assert {"jobs.statement_lost", "jobs.worker_lost_database", "job.stalled"} <= {one["event"] for one in logs}
    gc.collect()
    assert _unexpected(caplog) == []


CUT = """
create sequence cuts;
grant usage on sequence cuts to parley_scratch_service;
create function cut() returns trigger language plpgsql as $$
begin
  if nextval('cuts') = 1 then perform pg_terminate_backend(pg_backend_pid()); end if;
  return old;
end $$;
create trigger cut before delete on procrastinate_jobs for each row execute function cut();
"""


@asynccontextmanager
async def _finish_is_cut_once(scratch: ServiceDatabase) -> AsyncIterator[None]:
    """The first time that a job is marked as finished its connection dies, before the change is done."""
    async with await psycopg.AsyncConnection.connect(scratch.migration_url, autocommit=True) as owner:
        await owner.execute(CUT)
        try:
            yield
        finally:
            await owner.execute("drop function cut() cascade; drop sequence cuts")


async def test_a_stalled_job_is_put_back_by_one_sweeper_only(scratch: ServiceDatabase) -> None:
    connect = psycopg.AsyncConnection.connect
    async with await connect(scratch.url) as first, await connect(scratch.url, autocommit=True) as second:
        await second.execute(
            "insert into procrastinate_jobs (queue_name, task_name, status) values ('work', 'work', 'doing')"
        )
        async with asyncio.timeout(3):
            assert len(await (await first.execute(PUT_BACK, {"seconds": 1})).fetchall()) == 1
            assert await (await second.execute(PUT_BACK, {"seconds": 1})).fetchall() == []
        await first.commit()
        assert await (await second.execute(PUT_BACK, {"seconds": 1})).fetchall() == []
