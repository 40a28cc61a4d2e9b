"""Jobs on a real Postgres: stored with their cause, run at least once whatever dies, and nothing left over."""

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
import pytest
from procrastinate.exceptions import TaskNotFound
from sqlalchemy import text
from structlog.testing import capture_logs

from services.runtime.database import Database
from services.runtime.jobs import PUT_BACK, Jobs
from suite.databases import ServiceDatabase

Handler = Callable[..., Awaitable[None]]


class Worked:
    """A handler that notes its runs."""

    def __init__(self, handler: Handler | None = None) -> None:
        self.runs: Counter[int] = Counter()
        self.under_way: Counter[int] = Counter()
        self.most_at_once: Counter[int] = Counter()
        self._handler = handler
        self._changed = asyncio.Event()

    async def __call__(self, *, number: int) -> None:
        self.runs[number] += 1
        self.under_way[number] += 1
        self.most_at_once[number] = max(self.most_at_once[number], self.under_way[number])
        self._changed.set()
        try:
            if self._handler is not None:
                await self._handler(number=number)
        finally:
            self.under_way[number] -= 1

    async def until(self, runs: int, seconds: float = 15) -> None:
        async with asyncio.timeout(seconds):
            while self.runs.total() < runs:
                self._changed.clear()
                await self._changed.wait()


def _jobs(scratch: ServiceDatabase, handler: Handler, *, stalled_seconds: float = 30) -> Jobs:
    jobs = Jobs(scratch.url, stalled_seconds=stalled_seconds)

    async def work(*, number: int) -> None:
        await handler(number=number)

    jobs.register("work", work)
    return jobs


async def _defer(jobs: Jobs, database: Database, *numbers: int) -> None:
    async with database.service_transaction() as connection:
        for number in numbers:
            await jobs.defer(connection, "work", number=number)


async def _left(database: Database) -> dict[str, int]:
    """Rows in every table of the queue."""
    tables = ("jobs", "events", "workers", "periodic_defers")
    counts = ", ".join(f"(select count(*) from procrastinate_{table}) as {table}" for table in tables)  # noqa: S608
    async with database.service_transaction() as connection:
        row = (await connection.execute(text(f"select {counts}"))).one()
    return {name: count for name, count in row._mapping.items() if count}


async def _until_left(database: Database, expected: dict[str, int], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while (found := await _left(database)) != expected:
        assert time.monotonic() < end, found
        await asyncio.sleep(0.05)


async def test_a_job_exists_if_and_only_if_its_cause_does(scratch: ServiceDatabase, database: Database) -> None:
    worked = Worked()
    jobs = _jobs(scratch, worked)
    with pytest.raises(RuntimeError):  # noqa: PT012 - the block is what fails
        async with database.service_transaction() as connection:
            await jobs.defer(connection, "work", number=1)
            raise RuntimeError
    assert await _left(database) == {}
    async with jobs.working(concurrency=2):
        async with database.service_transaction() as connection:
            await jobs.defer(connection, "work", number=2)
            await asyncio.sleep(0.2)
            assert worked.runs == {}  # not before the commit
        await worked.until(1)
        await _until_left(database, {"workers": 1})
    assert worked.runs == {2: 1}
    assert await _left(database) == {}


async def test_a_name_that_nobody_registered_is_refused(scratch: ServiceDatabase, database: Database) -> None:
    jobs = _jobs(scratch, Worked())
    with pytest.raises(TaskNotFound):
        async with database.service_transaction() as connection:
            await jobs.defer(connection, "misspelt", number=1)


async def test_a_user_may_defer_and_sees_no_more_for_it(scratch: ServiceDatabase, database: Database) -> None:
    worked = Worked()
    jobs = _jobs(scratch, worked)
    async with database.transaction(user_id="0199c3f2-7d41-7a6e-9d0b-3c5e8f1a2b4d") as connection:
        await jobs.defer(connection, "work", number=1)
    async with jobs.working(concurrency=1):
        await worked.until(1)
    assert worked.runs == {1: 1}


async def test_an_older_release_leaves_the_jobs_that_it_does_not_know(scratch: ServiceDatabase, database: Database) -> None:
    older = Jobs(scratch.url)
    worked = Worked()
    older.register("other", Worked())
    newer = _jobs(scratch, worked)
    await _defer(newer, database, 1)
    async with older.working(concurrency=1):
        await asyncio.sleep(0.3)
    assert (await _left(database))["jobs"] == 1
    async with newer.working(concurrency=1):
        await worked.until(1)


async def test_a_job_that_fails_is_tried_again_with_a_delay(scratch: ServiceDatabase, database: Database) -> None:
    async def fail_once(*, number: int) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            raise ValueError(f"text of job {number}")

    times: list[float] = []
    worked = Worked(fail_once)
    jobs = _jobs(scratch, worked, stalled_seconds=3)
    await _defer(jobs, database, 7)
    with capture_logs() as logs:
        async with jobs.working(concurrency=1):
            await worked.until(2)
            await _until_left(database, {"workers": 1})
    assert 0.7 < times[1] - times[0] < 7
    [line] = [one for one in logs if one["event"] == "job.failed"]
    assert (line["job"], line["attempt"], line["error"]) == ("work", 1, "ValueError")
    assert "text of job" not in repr(logs)


async def test_two_workers_never_run_the_same_job_at_once(scratch: ServiceDatabase, database: Database) -> None:
    async def brief(*, number: int) -> None:
        await asyncio.sleep(0.002 * (number % 5))

    worked = Worked(brief)
    first, second = _jobs(scratch, worked), _jobs(scratch, worked)
    await _defer(first, database, *range(200))
    async with first.working(concurrency=4), second.working(concurrency=4):
        await worked.until(200)
        await _until_left(database, {"workers": 2})
    assert worked.runs == dict.fromkeys(range(200), 1)


async def test_a_graceful_stop_lets_a_running_job_finish(scratch: ServiceDatabase, database: Database) -> None:
    done: list[int] = []

    async def half_a_second(*, number: int) -> None:
        await asyncio.sleep(0.5)
        done.append(number)

    worked = Worked(half_a_second)
    jobs = _jobs(scratch, worked)
    await _defer(jobs, database, 1, 2)
    async with jobs.working(concurrency=1, stop_seconds=5):
        await worked.until(1)
    assert (done, worked.runs) == ([1], {1: 1})
    assert (await _left(database))["jobs"] == 1


async def test_what_outlasts_the_stop_runs_again_later(scratch: ServiceDatabase, database: Database) -> None:
    cut = asyncio.Event()

    async def endless(*, number: int) -> None:
        if worked.runs[number] == 1:
            try:
                await asyncio.sleep(60)
            finally:
                cut.set()

    worked = Worked(endless)
    jobs = _jobs(scratch, worked, stalled_seconds=3)
    await _defer(jobs, database, 1)
    begin = time.monotonic()
    async with jobs.working(concurrency=1, stop_seconds=0.2):
        await worked.until(1)
    assert cut.is_set()
    assert time.monotonic() - begin < 5
    async with jobs.working(concurrency=1):
        await worked.until(2)
        await _until_left(database, {"workers": 1})


async def test_a_killed_workers_job_is_done_by_another(scratch: ServiceDatabase, database: Database) -> None:
    worked = Worked()
    jobs = _jobs(scratch, worked, stalled_seconds=1)
    others = _jobs(scratch, worked, stalled_seconds=1)
    await _defer(jobs, database, 1)
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
    jobs = _jobs(scratch, worked, stalled_seconds=3)
    async with AsyncExitStack() as stack:
        killer = await stack.enter_async_context(_killer(scratch))
        await stack.enter_async_context(jobs.working(concurrency=2))
        await _defer(jobs, database, 1)
        await worked.until(1)
        for number in (2, 3):
            await _kill_connections(killer)
            await _defer(jobs, database, number)
            await worked.until(number)
        await _until_left(database, {"workers": 1})
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
    jobs = _jobs(scratch, worked, stalled_seconds=1)
    async with _finish_is_cut_once(scratch), jobs.working(concurrency=1):
        with capture_logs() as logs:
            await _defer(jobs, database, 1)
            await worked.until(2)
            await _until_left(database, {"workers": 1})
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


async def test_nothing_is_said_when_nothing_is_wrong(
    scratch: ServiceDatabase, database: Database, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    worked = Worked()
    jobs = _jobs(scratch, worked)
    await _defer(jobs, database, *range(5))
    async with jobs.working(concurrency=2):
        await worked.until(5)
        await _until_left(database, {"workers": 1})
    assert [one.message for one in caplog.records if one.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")
