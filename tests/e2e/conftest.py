"""Two whole suites for the end-to-end tests, each started when it is first needed, their simulators open to scripts.

In the one two chat processes stand behind the edge, and what is scripted answers conversations alone: memory asks its model
for nothing there. In the other (`remembering`) it does, soon after each turn.
"""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from simulator.control import Control
from tests.e2e.harness import Client, Suite, environment

QUIET = {"EXTRACTION_ENABLED": "false", "SUMMARIES_ENABLED": "false"}
# By which a webhook is Twilio's; texts go to the console all the same.
TWILIO_TOKEN = "a-token-of-twilio"
# What a person would be left to finish speaking for.
SOON = {
    "EXTRACTION_DELAY_SECONDS": "0.2",
    "SUMMARY_DELAY_SECONDS": "0.2",
    "SUMMARY_AFTER_MESSAGES": "6",
    "SUMMARY_EVERY_MESSAGES": "4",
    "PORTRAIT_DELAY_SECONDS": "0.5",
}


@pytest.fixture(scope="package")
async def suite() -> AsyncIterator[Suite]:
    with tempfile.TemporaryDirectory(prefix="parley-e2e-", ignore_cleanup_errors=True) as folder:
        started = await Suite.start(
            environment(Path(folder), **QUIET, PARLEY_CHAT_PROCESSES="2", TWILIO_AUTH_TOKEN=TWILIO_TOKEN)
        )
        yield started
        assert await started.stop() == 0


@pytest.fixture(scope="package")
async def remembering() -> AsyncIterator[Suite]:
    with tempfile.TemporaryDirectory(prefix="parley-e2e-", ignore_cleanup_errors=True) as folder:
        started = await Suite.start(environment(Path(folder), **SOON))
        yield started
        assert await started.stop() == 0


@pytest.fixture
async def ana(remembering: Suite) -> AsyncIterator[Client]:
    opened = await Client(remembering.url).register()
    yield opened
    await opened.close()


@pytest.fixture
async def bert(remembering: Suite) -> AsyncIterator[Client]:
    opened = await Client(remembering.url).register()
    yield opened
    await opened.close()


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
