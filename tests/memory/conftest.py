"""The memory service on real parts: migrated Postgres, Redis, a gRPC server with the real interceptors."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from services.memory.settings import MemorySettings
from simulator.server import Running, running
from suite.databases import ServiceDatabase
from tests.conftest import truncate
from tests.issuer import Issuer
from tests.memory.service import MemoryService, running_memory

# Nobody listens there.
NO_PROVIDER = "http://127.0.0.1:1/v1"

Start = Callable[..., AbstractAsyncContextManager[MemoryService]]


@pytest.fixture
async def database(memory_database: ServiceDatabase) -> ServiceDatabase:
    await truncate(memory_database)
    return memory_database


@pytest.fixture
def start_memory(database: ServiceDatabase, redis_url: str, issuer: Issuer) -> Start:
    """Starts the service with the settings that it is called with; several at once are several processes' worth."""

    def start(**changed: object) -> AbstractAsyncContextManager[MemoryService]:
        defaults: dict[str, object] = {
            "listen_address": "127.0.0.1:0",
            "metrics_address": "127.0.0.1:0",
            "database_url": database.url,
            "redis_url": redis_url,
            "auth_target": "ipv4:127.0.0.1:1",
            "workload_credential_file": "unused",
            # The machine that runs the tests may be busy: only the tests about a slow Redis ask for less.
            "redis_timeout_seconds": 2.0,
            "openai_api_key": "any",
            "openai_base_url": NO_PROVIDER,
            # On in the tests that are about it, with the fixture `provider`.
            "embeddings_enabled": False,
            "extraction_enabled": False,
        }
        return running_memory(MemorySettings.model_validate({**defaults, **changed}), issuer)

    return start


@pytest.fixture(scope="session")
async def session_simulator() -> AsyncIterator[Running]:
    async with running() as simulator:
        yield simulator


@pytest.fixture
async def simulator(session_simulator: Running) -> AsyncIterator[Running]:
    """The provider, without a past; whatever a test scripts must be used."""
    await session_simulator.control.reset()
    yield session_simulator
    await session_simulator.control.release()
    await session_simulator.control.verify_consumed()


@pytest.fixture
def provider(simulator: Running) -> dict[str, object]:
    """Settings for `start_memory` with a provider that answers, and embeddings by it."""
    return {"openai_base_url": simulator.base_url, "embeddings_enabled": True}


@pytest.fixture
async def memory(start_memory: Start) -> AsyncIterator[MemoryService]:
    async with start_memory() as service:
        yield service
