"""The probe service, served by the real server with the real interceptors, and a database of the tests' own."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
import structlog

from services.runtime.channels import open_channel
from services.runtime.database import Database, open_database
from services.runtime.migrations import migrate
from suite.databases import ServiceDatabase, prepare_database
from suite.postgres import EmbeddedPostgres
from tests.conftest import truncate
from tests.issuer import Issuer
from tests.runtime.auth_twin import Auth, AuthTwin, auth_server
from tests.runtime.probe import Client, Probe, probe_server


@pytest.fixture(scope="session", autouse=True)
def _plain_log() -> None:
    """Without structlog's own default, which draws each traceback with its variables, slowly."""
    plain: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        structlog.processors.KeyValueRenderer(),
    ]
    structlog.configure(processors=plain)


Serve = Callable[..., Awaitable[Client]]


@pytest.fixture
def trusted() -> Issuer:
    """An issuer of this test alone: it may end sessions."""
    return Issuer()


@pytest.fixture
async def serve(trusted: Issuer) -> AsyncIterator[Serve]:
    """Serves a probe and returns a client of it; both end with the test."""
    async with AsyncExitStack() as stack:

        async def start(probe: Probe | None = None, **options: Any) -> Client:
            server = probe_server(probe or Probe(), trusted, **options)
            port = await server.start()
            stack.push_async_callback(server.stop, wait_seconds=0, drain_seconds=0)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
            return Client(channel, trusted, port)

        yield start


@pytest.fixture(scope="session")
async def scratch_database(postgres: EmbeddedPostgres) -> ServiceDatabase:
    made = await prepare_database(postgres.admin_url, name="parley_scratch", passwords="not-a-secret")
    await asyncio.to_thread(migrate, "tests.runtime.scratch", made.migration_url, service_role=made.service_role)
    return made


@pytest.fixture
async def scratch(scratch_database: ServiceDatabase) -> ServiceDatabase:
    """The scratch database, empty."""
    await truncate(scratch_database)
    return scratch_database


@pytest.fixture
async def database(scratch: ServiceDatabase) -> AsyncIterator[Database]:
    """A pool of two connections to the scratch database."""
    opened = open_database(scratch.url, pool_size=2)
    yield opened
    await opened.close()


@pytest.fixture
async def auth(trusted: Issuer) -> AsyncIterator[Auth]:
    twin = AuthTwin(trusted)
    server = auth_server(twin, "127.0.0.1:0")
    port = await server.start()
    async with open_channel(f"ipv4:127.0.0.1:{port}", audience="auth", tokens=None, timeout_seconds=5) as channel:
        made = Auth(twin, server, port, channel)
        yield made
        await made.go()


async def until(condition: Any, seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
