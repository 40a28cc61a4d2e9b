"""What the tests of the suite share: one embedded Postgres, and a way to run the real command."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from suite.postgres import EmbeddedPostgres

FAST = {"fsync": "off"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for one test. Not pytest's: that one is closed to every other account, at any moment, by another pytest."""
    with tempfile.TemporaryDirectory(prefix="parley-test-", ignore_cleanup_errors=True) as made:
        yield Path(made)


@pytest_asyncio.fixture(scope="session")
async def spare() -> AsyncIterator[Path]:
    """The data folder of a Postgres that is not running; a test that starts it stops it again."""
    with tempfile.TemporaryDirectory(prefix="parley-test-", ignore_cleanup_errors=True) as made:
        await (await EmbeddedPostgres.start(Path(made), settings=FAST)).stop()
        yield Path(made)
