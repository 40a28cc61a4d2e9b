"""Work that is accepted now and done later: jobs in the service's own Postgres (procrastinate).

A job is stored in the same transaction as its cause, so neither exists without the other. It runs at least once, in a
worker inside the service's process; handlers are idempotent. Arguments hold ids only, never content. A job that fails is
tried again with growing delay until it succeeds, or is given up where that was said of it; one whose worker died is put
back.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import procrastinate
import structlog
from procrastinate.app import WorkerOptions
from procrastinate.jobs import DeleteJobCondition, Job
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import CONNECT_TIMEOUT_SECONDS, NOTICE_DEATH, STATEMENT_TIMEOUT_SECONDS
from services.runtime.duties import beside

log = structlog.get_logger(__name__)

Id = str | int
Handler = Callable[..., Awaitable[None]]
_LONGEST_DELAY_SECONDS = 300.0
# New jobs are notified. Found by looking are those whose delay is over, and those of which word came while a worker looked,
# which it forgets.
_LOOK_SECONDS = 1.0
# Beyond what jobs under way are given.
_END_SECONDS = 2.0
# One statement, so that two processes that sweep at once cannot put back a job that already runs again.
PUT_BACK = """
with stalled as (
  select job.id from procrastinate_jobs job left join procrastinate_workers worker on worker.id = job.worker_id
  where job.status = 'doing'
    and (worker.id is null or worker.last_heartbeat < now() - make_interval(secs => %(seconds)s))
  for update of job skip locked
)
update procrastinate_jobs job set status = 'todo', worker_id = null, attempts = attempts + 1, scheduled_at = now()
from stalled where job.id = stalled.id returning job.id, job.task_name
"""


class _Backoff(procrastinate.BaseRetryStrategy):
    """Tries for ever, or `tries` times: after 1 s, 2 s, 4 s … 5 min, each spread by a fifth so that not all come at once."""

    def __init__(self, tries: int | None) -> None:
        self._tries = tries

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> procrastinate.RetryDecision | None:
        if self._tries is not None and job.attempts + 1 >= self._tries:
            log.warning("job.given_up", job=job.task_name, job_id=job.id, error=type(exception).__name__)
            return None
        seconds = min(2.0 ** min(job.attempts, 20), _LONGEST_DELAY_SECONDS)
        log.warning("job.failed", job=job.task_name, job_id=job.id, attempt=job.attempts + 1, error=type(exception).__name__)
        delay = timedelta(seconds=seconds * random.uniform(0.8, 1.2))  # noqa: S311
        return procrastinate.RetryDecision(retry_at=datetime.now(UTC) + delay)


class _Connector(procrastinate.PsycopgConnector):
    """A connector that tells of statements that were lost.

    procrastinate marks a job as finished in a task that nobody awaits: should that fail, the job would stay with a worker
    that lives, does not work on it, and is therefore never called dead.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.lost = asyncio.Event()

    async def execute_query_async(self, query: LiteralString, **arguments: Any) -> None:
        try:
            await super().execute_query_async(query, **arguments)
        except procrastinate.exceptions.ConnectorException as error:
            log.warning("jobs.statement_lost", error=type(error.__cause__).__name__)
            self.lost.set()


class Jobs:
    """A service's queue. Register every handler, then work and defer.

    `database_url` is the plain role's. The worker has up to four connections of its own: three to fetch, finish and
    sweep, one to listen. A worker that gave no sign of life for `stalled_seconds` is dead, and its jobs are put back.
    """

    def __init__(self, database_url: str, *, stalled_seconds: float = 30.0) -> None:
        self._connector = _Connector(
            conninfo=database_url,
            min_size=1,
            max_size=3,
            kwargs={
                "connect_timeout": CONNECT_TIMEOUT_SECONDS,
                "options": f"-c statement_timeout={STATEMENT_TIMEOUT_SECONDS * 1000}",
                **NOTICE_DEATH,
            },
        )
        self._app = procrastinate.App(connector=self._connector)
        self._names: list[str] = []
        self._slow_names: list[str] = []
        self._stalled_seconds = stalled_seconds

    def register(self, name: str, handler: Handler, *, tries: int | None = None, is_slow: bool = False) -> None:
        """Names the handler of a job; it gets the ids that were deferred, as keyword arguments.

        After `tries` failures it is given up for good. What is slow has a worker of its own (and a connection of its own,
        which listens), so that nothing else waits behind it.
        """
        # A queue for each job: a process of an older release leaves the jobs that it does not know to the newer.
        self._app.task(name=name, queue=name, retry=_Backoff(tries))(handler)
        (self._slow_names if is_slow else self._names).append(name)

    async def defer(self, connection: AsyncConnection, name: str, /, **ids: Id) -> None:
        """Stores a job in the transaction of `connection`: it exists if and only if that commits.

        Raises TaskNotFound for a name that was not registered.
        """
        raw = await connection.get_raw_connection()
        await self._app.configure_task(name, allow_unknown=False, connection=raw.driver_connection).defer_async(**ids)

    @contextlib.asynccontextmanager
    async def working(self, *, concurrency: int, stop_seconds: float = 5.0) -> AsyncIterator[None]:
        """Works jobs inside the block. At its end jobs under way get `stop_seconds`; what is left runs later, elsewhere."""
        lanes = [names for names in (self._names, self._slow_names) if names]
        workers = [self._work(names, concurrency, stop_seconds) for names in lanes]
        async with self._app.open_async(), beside(*workers, self._put_back_stalled()):
            yield

    async def _work(self, names: Sequence[str], concurrency: int, stop_seconds: float) -> None:
        """Keeps a worker running: a new one, under a new id, whenever one ended or lost a statement.

        What the old one left unfinished then belongs to no worker, and is put back.
        """
        while True:
            self._connector.lost.clear()
            worker = asyncio.create_task(self._app.run_worker_async(**self._options(names, concurrency, stop_seconds)))
            lost = asyncio.create_task(self._connector.lost.wait())
            try:
                await asyncio.wait({worker, lost}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                lost.cancel()
                await _end(worker, within_seconds=stop_seconds + _END_SECONDS)
            error = None if worker.cancelled() else worker.exception()
            if error is None or isinstance(error, procrastinate.exceptions.ConnectorException):
                # Postgres went away: jobs are safe in it, and wait.
                log.warning("jobs.worker_lost_database")
            else:
                log.error("jobs.worker_failed", exc_info=error)
            await asyncio.sleep(1)

    def _options(self, names: Sequence[str], concurrency: int, stop_seconds: float) -> WorkerOptions:
        return {
            "concurrency": concurrency,
            "queues": names,
            "install_signal_handlers": False,
            # Also those that were given up.
            "delete_jobs": DeleteJobCondition.ALWAYS,
            "shutdown_graceful_timeout": stop_seconds,
            "fetch_job_polling_interval": _LOOK_SECONDS,
            "update_heartbeat_interval": self._stalled_seconds / 3,
            "stalled_worker_timeout": self._stalled_seconds,
        }

    async def _put_back_stalled(self) -> None:
        while True:
            await asyncio.sleep(self._stalled_seconds / 2 * random.uniform(0.8, 1.2))  # noqa: S311
            try:
                for row in await self._connector.execute_query_all_async(PUT_BACK, seconds=self._stalled_seconds):
                    log.warning("job.stalled", job=row["task_name"], job_id=row["id"])
            except procrastinate.exceptions.ConnectorException as error:
                log.warning("jobs.sweep_lost_database", error=type(error).__name__)


async def _end(worker: "asyncio.Task[None]", *, within_seconds: float) -> None:
    """Cancels until it has ended.

    A cancellation can be lost where it meets a wait that is just over (asyncio.wait_for before Python 3.12), as when a
    worker is stopped while it begins: it would then work for ever, and whoever waits for its end with it.
    """
    while not worker.done():
        worker.cancel()
        await asyncio.wait({worker}, timeout=within_seconds)
