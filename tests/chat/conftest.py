"""Chat on real parts: migrated Postgres, the simulator on a socket, auth's and memory's stand-ins on gRPC servers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import pytest

from services.chat.settings import ChatSettings
from simulator.server import Running, running
from suite.databases import ServiceDatabase
from tests.chat.peers import MemoryStandIn, PreferencesStandIn, running_auth, running_memory
from tests.chat.service import ChatProcess, User, running_chat
from tests.conftest import truncate
from tests.issuer import Issuer

Start = Callable[..., AbstractAsyncContextManager[ChatProcess]]


@pytest.fixture(scope="session")
async def session_preferences() -> PreferencesStandIn:
    return PreferencesStandIn()


@pytest.fixture(scope="session")
async def auth_target(session_preferences: PreferencesStandIn, issuer: Issuer) -> AsyncIterator[str]:
    async with running_auth(issuer, session_preferences) as target:
        yield target


@pytest.fixture
def preferences(session_preferences: PreferencesStandIn) -> PreferencesStandIn:
    """What users prefer, as auth says; nobody prefers anything yet."""
    session_preferences.clear()
    return session_preferences


@pytest.fixture(scope="session")
async def session_memory() -> MemoryStandIn:
    return MemoryStandIn()


@pytest.fixture(scope="session")
async def memory_target(session_memory: MemoryStandIn, issuer: Issuer) -> AsyncIterator[str]:
    async with running_memory(session_memory, issuer) as target:
        yield target


@dataclass(frozen=True)
class Peers:
    auth_target: str
    memory_target: str


@pytest.fixture
def peers(memory: MemoryStandIn, preferences: PreferencesStandIn, auth_target: str, memory_target: str) -> Peers:
    """The services that chat calls; memory remembers nothing yet, and nobody prefers anything."""
    assert memory.turns == {}
    assert preferences.known == {}
    return Peers(auth_target, memory_target)


@pytest.fixture
def memory(session_memory: MemoryStandIn) -> MemoryStandIn:
    session_memory.clear()
    return session_memory


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
async def database(chat_database: ServiceDatabase) -> ServiceDatabase:
    await truncate(chat_database)
    return chat_database


@pytest.fixture
def start_chat(database: ServiceDatabase, redis_url: str, simulator: Running, peers: Peers, issuer: Issuer) -> Start:
    """Starts chat with the settings that it is called with; several at once are several processes' worth."""

    def start(**changed: object) -> AbstractAsyncContextManager[ChatProcess]:
        defaults: dict[str, object] = {
            "listen_address": "127.0.0.1:0",
            "metrics_address": "127.0.0.1:0",
            "database_url": database.url,
            "redis_url": redis_url,
            "auth_target": peers.auth_target,
            "memory_target": peers.memory_target,
            "workload_credential_file": "unused",
            "openai_api_key": "any",
            "mcp_listen_address": "127.0.0.1:0",
            "sealing_key": "A" * 43 + "=",
            "openai_base_url": simulator.base_url,
            "openai_max_retries": 0,
            # Titles would take the answers that a test has scripted.
            "titles_enabled": False,
        }
        return running_chat(ChatSettings.model_validate({**defaults, **changed}), issuer)

    return start


@pytest.fixture
async def chat(start_chat: Start) -> AsyncIterator[ChatProcess]:
    async with start_chat() as process:
        yield process


@pytest.fixture
def user(chat: ChatProcess) -> User:
    return chat.user()


@pytest.fixture
async def mute_redis() -> AsyncIterator[str]:
    """A Redis that takes every connection and answers nothing."""
    answering = set[asyncio.Task[Any]]()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: asyncio.Task[Any] | None = asyncio.current_task()
        assert task is not None
        answering.add(task)
        task.add_done_callback(answering.discard)
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    server.close()
    if answering:
        # What is left open when the loop ends would be told of in some other test.
        await asyncio.wait(answering, timeout=5)
