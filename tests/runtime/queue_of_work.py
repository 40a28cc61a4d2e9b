"""A queue with one kind of job, and what tests ask of it."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from sqlalchemy import text

from services.runtime.database import Database
from services.runtime.jobs import Jobs
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


def make_jobs(scratch: ServiceDatabase, handler: Handler, *, stalled_seconds: float = 30) -> Jobs:
    jobs = Jobs(scratch.url, stalled_seconds=stalled_seconds)

    async def work(*, number: int) -> None:
        await handler(number=number)

    jobs.register("work", work)
    return jobs


async def defer(jobs: Jobs, database: Database, *numbers: int) -> None:
    async with database.service_transaction() as connection:
        for number in numbers:
            await jobs.defer(connection, "work", number=number)


async def left(database: Database) -> dict[str, int]:
    """Rows in every table of the queue."""
    tables = ("jobs", "events", "workers", "periodic_defers")
    counts = ", ".join(f"(select count(*) from procrastinate_{table}) as {table}" for table in tables)  # noqa: S608
    async with database.service_transaction() as connection:
        row = (await connection.execute(text(f"select {counts}"))).one()
    return {name: count for name, count in row._mapping.items() if count}


async def until_left(database: Database, expected: dict[str, int], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while (found := await left(database)) != expected:
        assert time.monotonic() < end, found
        await asyncio.sleep(0.05)
