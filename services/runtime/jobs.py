"""Work that is accepted now and done later: jobs in the service's own Postgres (procrastinate).

A job is stored in the same transaction as its cause, so neither exists without the other. It runs at least once, in a
worker inside the service's process; handlers are idempotent. Arguments hold ids only, never content. A job that fails is
tried again with growing delay until it succeeds; one whose worker died is put back.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import procrastinate
import structlog
from procrastinate.jobs import DeleteJobCondition, Job
from sqlalchemy.ext.asyncio import AsyncConnection

log = structlog.get_logger(__name__)

Id = str | int
Handler = Callable[..., Awaitable[None]]
_LONGEST_DELAY_SECONDS = 300.0
_STALLED_SECONDS = 30.0
_SWEEP_SECONDS = 15.0


class _Backoff(procrastinate.BaseRetryStrategy):
    """Tries for ever: 1 s, 2 s, 4 s … 5 min, each spread by a fifth so that a queue does not come back all at once."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> procrastinate.RetryDecision:
        seconds = min(2.0 ** min(job.attempts, 20), _LONGEST_DELAY_SECONDS)
        log.warning("job.failed", job=job.task_name, job_id=job.id, attempt=job.attempts + 1, error=type(exception).__name__)
        delay = timedelta(seconds=seconds * random.uniform(0.8, 1.2))  # noqa: S311
        return procrastinate.RetryDecision(retry_at=datetime.now(UTC) + delay)


class Jobs:
    """A service's queue. Register every handler, then work and defer.

    `database_url` is the plain role's. The worker keeps three connections of its own: fetch, finish, listen.
    """

    def __init__(self, database_url: str) -> None:
        connector = procrastinate.PsycopgConnector(conninfo=database_url, min_size=1, max_size=3)
        self._app = procrastinate.App(connector=connector)

    def register(self, name: str, handler: Handler) -> None:
        """Names the handler of a job; it gets the ids that were deferred, as keyword arguments."""
        self._app.task(name=name, retry=_Backoff())(handler)

    async def defer(self, connection: AsyncConnection, name: str, /, **ids: Id) -> None:
        """Stores a job in the transaction of `connection`: it exists if and only if that commits."""
        raw = await connection.get_raw_connection()
        await self._app.configure_task(name, connection=raw.driver_connection).defer_async(**ids)

    @contextlib.asynccontextmanager
    async def working(self, *, concurrency: int, stop_seconds: float = 5.0) -> AsyncIterator[None]:
        """Works jobs inside the block. At its end jobs under way get `stop_seconds`; what is left runs later, elsewhere."""
        async with self._app.open_async():
            worker = asyncio.create_task(self._work(concurrency, stop_seconds))
            sweeper = asyncio.create_task(self._put_back_stalled())
            try:
                yield
            finally:
                for task in (sweeper, worker):
                    task.cancel()
                await asyncio.gather(sweeper, worker, return_exceptions=True)

    async def _work(self, concurrency: int, stop_seconds: float) -> None:
        while True:
            try:
                await self._app.run_worker_async(
                    concurrency=concurrency,
                    install_signal_handlers=False,
                    delete_jobs=DeleteJobCondition.SUCCESSFUL,
                    shutdown_graceful_timeout=stop_seconds,
                    fetch_job_polling_interval=5,
                )
            except procrastinate.exceptions.ConnectorException as error:
                # Postgres went away: jobs are safe in it, and wait.
                log.warning("jobs.worker_lost_database", error=type(error).__name__)
            await asyncio.sleep(1)

    async def _put_back_stalled(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311
            try:
                manager = self._app.job_manager
                for job in await manager.get_stalled_jobs(seconds_since_heartbeat=_STALLED_SECONDS):
                    log.warning("job.stalled", job=job.task_name, job_id=job.id)
                    await manager.retry_job(job)
            except procrastinate.exceptions.ConnectorException as error:
                log.warning("jobs.sweep_lost_database", error=type(error).__name__)
