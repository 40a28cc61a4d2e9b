"""A worker in a process of its own: takes a job, says so, and is never done with it. To be killed."""

import asyncio
import os
import sys

from services.runtime.jobs import Jobs


async def main() -> None:
    async def endless(*, number: int) -> None:
        print(f"took {number}", flush=True)  # noqa: T201 - the test reads it
        await asyncio.sleep(600)

    jobs = Jobs(os.environ["DATABASE_URL"], stalled_seconds=float(sys.argv[1]))
    jobs.register("work", endless)
    async with jobs.working(concurrency=1):
        await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main())
