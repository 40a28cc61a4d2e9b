"""Standing duties: work that a process does beside its calls for as long as it lives, like sweeps and feeds.

A duty that meets an error which nobody foresaw ends the process, in order and with that error: a duty that ended in silence
would be missed only when something has gone wrong for want of it.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager

import structlog

from services.runtime.database import DATABASE_FAILURES
from services.runtime.errors import ServiceError

log = structlog.get_logger(__name__)


def go_on() -> None:
    """Raises the cancellation that a library turned into an error of its own, as redis-py does while it connects.

    For loops that take errors for a part that is away: without it they would go on for ever after they were told to end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


@asynccontextmanager
async def beside(*duties: Coroutine[None, None, None], expected: tuple[type[Exception], ...] = ()) -> AsyncIterator[None]:
    """Runs the duties while the block runs. When one fails the block is cancelled, and the duty's error comes out.

    Several may fail in one turn of the loop, before the first can cancel the others. Where each error is one of `expected`
    the first comes out, as it would alone; else a group of all: a fault among them is not to pass for a part that is away.
    """
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(duty) for duty in duties]
            try:
                yield
            finally:
                for task in running:
                    task.cancel()
    except BaseExceptionGroup as errors:
        if len(errors.exceptions) > 1 and not all(isinstance(error, expected) for error in errors.exceptions):
            raise
        # As it was raised: whoever starts the process knows an OSError, say, and no group of one.
        raise errors.exceptions[0] from None


async def repeat(name: str, duty: Callable[[], Awaitable[object]], *, interval_seconds: float, jitter: float = 0.2) -> None:
    """Does the duty for ever, first after one interval. `jitter` spreads the replicas: 0.2 is a fifth more or less.

    A database or service that does not answer is logged as `duty.postponed`, and the next time comes.
    """
    while True:
        await asyncio.sleep(interval_seconds * random.uniform(1 - jitter, 1 + jitter))  # noqa: S311 - a beat, no secret
        try:
            await duty()
        except (ServiceError, *DATABASE_FAILURES) as error:
            log.warning("duty.postponed", duty=name, error=type(error).__name__)
