"""Jobs on a real Postgres: stored with their cause, run at least once, and nothing left over."""

import asyncio
import logging
import time

import pytest
from procrastinate.exceptions import TaskNotFound
from structlog.testing import capture_logs

from services.runtime.database import Database
from services.runtime.jobs import Jobs
from suite.databases import ServiceDatabase
from tests.runtime.queue_of_work import Worked, defer, left, make_jobs, until_left
from tests.work import PATIENCE_SECONDS


async def test_a_job_exists_if_and_only_if_its_cause_does(scratch: ServiceDatabase, database: Database) -> None:
    worked = Worked()
    jobs = make_jobs(scratch, worked)
    with pytest.raises(RuntimeError):  # noqa: PT012 - the block is what fails
        async with database.service_transaction() as connection:
            await jobs.defer(connection, "work", number=1)
            raise RuntimeError
    assert await left(database) == {}
    async with jobs.working(concurrency=2):
        async with database.service_transaction() as connection:
            await jobs.defer(connection, "work", number=2)
            await asyncio.sleep(0.2)
            assert worked.runs == {}  # not before the commit
        await worked.until(1)
        await until_left(database, {"workers": 1})
    assert worked.runs == {2: 1}
    assert await left(database) == {}


async def test_a_name_that_nobody_registered_is_refused(scratch: ServiceDatabase, database: Database) -> None:
    jobs = make_jobs(scratch, Worked())
    with pytest.raises(TaskNotFound):
        async with database.service_transaction() as connection:
            await jobs.defer(connection, "misspelt", number=1)


async def test_a_user_may_defer_and_sees_no_more_for_it(scratch: ServiceDatabase, database: Database) -> None:
    worked = Worked()
    jobs = make_jobs(scratch, worked)
    async with database.transaction(user_id="0199c3f2-7d41-7a6e-9d0b-3c5e8f1a2b4d") as connection:
        await jobs.defer(connection, "work", number=1)
    async with jobs.working(concurrency=1):
        await worked.until(1)
    assert worked.runs == {1: 1}


async def test_an_older_release_leaves_the_jobs_that_it_does_not_know(scratch: ServiceDatabase, database: Database) -> None:
    older = Jobs(scratch.url)
    worked = Worked()
    older.register("other", Worked())
    newer = make_jobs(scratch, worked)
    await defer(newer, database, 1)
    async with older.working(concurrency=1):
        await asyncio.sleep(0.3)
    assert (await left(database))["jobs"] == 1
    async with newer.working(concurrency=1):
        await worked.until(1)


async def test_a_job_that_fails_is_tried_again_with_a_delay(scratch: ServiceDatabase, database: Database) -> None:
    async def fail_once(*, number: int) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            raise ValueError(f"text of job {number}")

    times: list[float] = []
    worked = Worked(fail_once)
    jobs = make_jobs(scratch, worked)
    await defer(jobs, database, 7)
    with capture_logs() as logs:
        async with jobs.working(concurrency=1):
            await worked.until(2)
            await until_left(database, {"workers": 1})
    # Due after 0.8 to 1.2 s, and looked for every second.
    assert 0.7 < times[1] - times[0] < 4.9
    [line] = [one for one in logs if one["event"] == "job.failed"]
    assert (line["job"], line["attempt"], line["error"]) == ("work", 1, "ValueError")
    assert "text of job" not in repr(logs)


async def test_two_workers_never_run_the_same_job_at_once(scratch: ServiceDatabase, database: Database) -> None:
    async def brief(*, number: int) -> None:
        await asyncio.sleep(0.002 * (number % 5))

    worked = Worked(brief)
    first, second = make_jobs(scratch, worked), make_jobs(scratch, worked)
    await defer(first, database, *range(200))
    async with first.working(concurrency=4), second.working(concurrency=4):
        await worked.until(200)
        await until_left(database, {"workers": 2})
    assert worked.runs == dict.fromkeys(range(200), 1)


async def test_a_graceful_stop_lets_a_running_job_finish(scratch: ServiceDatabase, database: Database) -> None:
    done: list[int] = []

    async def half_a_second(*, number: int) -> None:
        await asyncio.sleep(0.5)
        done.append(number)

    worked = Worked(half_a_second)
    jobs = make_jobs(scratch, worked)
    await defer(jobs, database, 1, 2)
    async with jobs.working(concurrency=1, stop_seconds=5):
        await worked.until(1)
    assert (done, worked.runs) == ([1], {1: 1})
    assert (await left(database))["jobs"] == 1


async def test_a_stop_at_any_moment_ends_the_workers(scratch: ServiceDatabase) -> None:
    async def stopped(seconds: float) -> None:
        jobs = make_jobs(scratch, Worked())
        async with asyncio.timeout(20), jobs.working(concurrency=1, stop_seconds=0.1):
            await asyncio.sleep(seconds)

    for step in range(25):
        await asyncio.gather(*(stopped(step / 100 + lane / 500) for lane in range(4)))


async def test_what_outlasts_the_stop_runs_again_later(scratch: ServiceDatabase, database: Database) -> None:
    cut = asyncio.Event()

    async def endless(*, number: int) -> None:
        if worked.runs[number] == 1:
            try:
                await asyncio.sleep(300)
            finally:
                cut.set()

    worked = Worked(endless)
    jobs = make_jobs(scratch, worked, stalled_seconds=3)
    await defer(jobs, database, 1)
    begin = time.monotonic()
    async with jobs.working(concurrency=1, stop_seconds=0.2):
        await worked.until(1)
    assert cut.is_set()
    assert time.monotonic() - begin < PATIENCE_SECONDS
    async with jobs.working(concurrency=1):
        await worked.until(2)
        await until_left(database, {"workers": 1})


async def test_nothing_is_said_when_nothing_is_wrong(
    scratch: ServiceDatabase, database: Database, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    worked = Worked()
    jobs = make_jobs(scratch, worked)
    await defer(jobs, database, *range(5))
    async with jobs.working(concurrency=2):
        await worked.until(5)
        await until_left(database, {"workers": 1})
    assert [one.message for one in caplog.records if one.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")
