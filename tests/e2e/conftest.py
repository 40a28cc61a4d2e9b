"""One whole suite for the end-to-end tests, two chat processes behind its edge, its simulator open to scripts."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from simulator.control import Control
from tests.e2e.harness import Client, Suite, environment


@pytest.fixture(scope="session")
async def suite() -> AsyncIterator[Suite]:
    with tempfile.TemporaryDirectory(prefix="parley-e2e-", ignore_cleanup_errors=True) as folder:
        started = await Suite.start(environment(Path(folder), PARLEY_CHAT_PROCESSES="2"))
        yield started
        assert await started.stop() == 0


@pytest.fixture
async def control(suite: Suite) -> AsyncIterator[Control]:
    """The suite's simulator. A scripted answer that nobody asked for fails the test."""
    async with Control(f"http://127.0.0.1:{suite.port('SIMULATOR')}") as opened:
        await opened.reset()
        yield opened
        await opened.verify_consumed()
        await opened.reset()


@pytest.fixture
async def client(suite: Suite) -> AsyncIterator[Client]:
    opened = await Client(suite.url).register()
    yield opened
    await opened.close()


@pytest.fixture
async def stranger(suite: Suite) -> AsyncIterator[Client]:
    opened = await Client(suite.url).register()
    yield opened
    await opened.close()
