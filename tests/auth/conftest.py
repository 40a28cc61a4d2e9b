"""One auth server for all tests of auth, and a way to start others. Every test makes people of its own."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from pwdlib.hashers.argon2 import Argon2Hasher

from services.runtime.migrations import migrate
from suite.databases import ServiceDatabase, prepare_database
from suite.postgres import EmbeddedPostgres
from tests.auth.harness import Person, RunningAuth, make_settings, running_auth
from tests.ports import free_port


@pytest.fixture(scope="session")
async def auth(auth_database: ServiceDatabase, run_folder: Path) -> AsyncIterator[RunningAuth]:
    async with running_auth(auth_database, make_settings(auth_database, run_folder)) as running:
        yield running


@pytest.fixture
async def start_auth(auth_database: ServiceDatabase, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[RunningAuth]]]:
    """Starts another auth process' worth on the same database, with settings changed."""
    async with AsyncExitStack() as stack:

        async def start(**changes: Any) -> RunningAuth:
            settings = make_settings(auth_database, tmp_path, **changes)
            return await stack.enter_async_context(running_auth(auth_database, settings))

        yield start


@pytest.fixture
async def own_database(postgres: EmbeddedPostgres) -> ServiceDatabase:
    """A database of auth that no other test looks into."""
    name = f"parley_auth_{uuid.uuid4().hex[:8]}"
    database = await prepare_database(postgres.admin_url, name=name, passwords="not-a-secret")
    await asyncio.to_thread(migrate, "services.auth", database.migration_url, service_role=database.service_role)
    return database


@pytest.fixture
async def person(auth: RunningAuth) -> Person:
    return await auth.register()


@pytest.fixture
def hashings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hashes that were made or compared from now on, which is what a sign-in costs."""
    done: list[str] = []
    for name in ("hash", "verify"):
        monkeypatch.setattr(Argon2Hasher, name, _noted(getattr(Argon2Hasher, name), name, done))
    return done


def _noted(work: Callable[..., Any], name: str, done: list[str]) -> Callable[..., Any]:
    def noted(*arguments: Any, **named: Any) -> Any:
        done.append(name)
        return work(*arguments, **named)

    return noted


@pytest.fixture
def unused_port() -> int:
    """A port that nobody listens on."""
    return free_port()
