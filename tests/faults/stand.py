"""Chat as real processes on real parts: what the tests of this folder kill, stop and continue."""

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from parley.chat.v1 import chat_pb2
from simulator.server import Running, running
from suite.databases import ServiceDatabase
from tests.chat.peers import WORKLOADS, MemoryStandIn, running_auth, running_memory
from tests.chat.service import User
from tests.conftest import truncate
from tests.issuer import Issuer
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
LEASE_SECONDS = 1.5
# Of a machine that does other things besides; three on one that does not.
START_SECONDS = 60
USER = "0199aaaa-0000-7000-8000-000000000001"


@dataclass
class Chat:
    """One `python -m services.chat`."""

    process: Process
    channel: grpc.aio.Channel
    issuer: Issuer

    def user(self, user_id: str) -> User:
        return User(self.channel, self.issuer.as_user(user_id), user_id)

    def tell(self, told: signal.Signals) -> None:
        self.process.send_signal(told)

    async def exit_code(self) -> int:
        async with asyncio.timeout(20):
            return await self.process.wait()


@dataclass
class Stand:
    """What chat processes stand on, and those that were started."""

    environment: Mapping[str, str]
    issuer: Issuer
    simulator: Running
    memory: MemoryStandIn
    started: list[Chat] = field(default_factory=list)

    async def start(self, **changed: str) -> Chat:
        port = free_port()
        addresses = {"LISTEN_ADDRESS": f"127.0.0.1:{port}", "METRICS_ADDRESS": f"127.0.0.1:{free_port()}"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.chat", cwd=ROOT, env={**self.environment, **addresses, **changed}
        )
        chat = Chat(process, grpc.aio.insecure_channel(f"ipv4:127.0.0.1:{port}"), self.issuer)
        self.started.append(chat)
        async with asyncio.timeout(START_SECONDS):
            await chat.channel.channel_ready()
        return chat

    async def stop(self) -> None:
        for chat in self.started:
            await chat.channel.close()
            if chat.process.returncode is None:
                chat.tell(signal.SIGKILL)
                await chat.process.wait()


@pytest.fixture
async def stand(chat_database: ServiceDatabase, redis_url: str, issuer: Issuer, tmp_path: Path) -> AsyncIterator[Stand]:
    await truncate(chat_database)
    credential, memory = tmp_path / "credential", MemoryStandIn()
    credential.write_text(WORKLOADS["chat"])
    async with AsyncExitStack() as parts:
        simulator = await parts.enter_async_context(running())
        environment = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": chat_database.url,
            "REDIS_URL": redis_url,
            "AUTH_TARGET": await parts.enter_async_context(running_auth(issuer)),
            "MEMORY_TARGET": await parts.enter_async_context(running_memory(memory, issuer)),
            "WORKLOAD_CREDENTIAL_FILE": str(credential),
            "OPENAI_API_KEY": "any",
            "MCP_LISTEN_ADDRESS": "127.0.0.1:0",
            "SEALING_KEY": "A" * 43 + "=",
            "OPENAI_BASE_URL": simulator.base_url,
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "LEASE_RENEW_SECONDS": "0.3",
            "DRAIN_WAIT_SECONDS": "0",
            "DRAIN_SECONDS": "4",
        }
        stand = Stand(environment, issuer, simulator, memory)
        parts.push_async_callback(stand.stop)
        yield stand


async def until_text(call: Any, events: list[chat_pb2.CompletionEvent]) -> None:
    async for event in call:
        events.append(event)
        if event.WhichOneof("event") == "text_delta":
            return


async def soon(condition: Callable[[], Awaitable[bool]], *, within_seconds: float) -> None:
    end = time.monotonic() + within_seconds
    while not await condition():
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.05)
