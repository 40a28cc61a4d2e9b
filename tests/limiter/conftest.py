"""A real limiter on the run's Redis; every test counts under names of its own."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from tests.limiter.harness import RunningLimiter, running_limiter

Start = Callable[..., Awaitable[RunningLimiter]]


@pytest.fixture
async def start_limiter(redis_url: str) -> AsyncIterator[Start]:
    """Starts a limiter, one of several on the same Redis, with settings changed."""
    async with AsyncExitStack() as stack:

        async def start(**changes: object) -> RunningLimiter:
            return await stack.enter_async_context(running_limiter(**{"redis_url": redis_url, **changes}))

        yield start


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex
