"""Memory as a real process, on a Postgres and a Redis of its own: what the tests of this folder kill."""

import asyncio
import os
import random
import signal
import sys
import tempfile
import uuid
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psycopg
from google.protobuf.timestamp_pb2 import Timestamp
from psycopg.conninfo import make_conninfo

from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from services.runtime.migrations import migrate
from simulator.plan import Pace
from simulator.server import Running, running
from suite.databases import prepare_database
from suite.postgres import EmbeddedPostgres
from suite.redis import RedisServer, start_redis
from tests.chat.peers import WORKLOADS, running_auth
from tests.faults.stand import ROOT, START_SECONDS
from tests.issuer import Issuer
from tests.ports import free_port

BEGAN = 1_790_000_000
LETTERS = "bcdfghjklmnprstvwxz"
WORD_LETTERS = 12
# What a caller sees of a process, or of a Postgres behind it, that is gone; chat repeats on each of them.
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
# A call that is not answered soon is repeated; a new connection is tried at once.
CALL_SECONDS = 5.0
CHANNEL = (("grpc.max_reconnect_backoff_ms", 300), ("grpc.initial_reconnect_backoff_ms", 100))
# A crash of Postgres must lose nothing that was confirmed; one of the machine is not what is tested here.
POSTGRES = {"fsync": "off", "full_page_writes": "off"}


@dataclass
class MemoryStand:
    """One memory process and what it stands on. Whatever is killed comes back at the same address."""

    folder: Path
    issuer: Issuer
    simulator: Running
    postgres: EmbeddedPostgres
    redis: RedisServer
    environment: dict[str, str]
    channel: grpc.aio.Channel
    process: Process | None = None

    @property
    def stub(self) -> memory_pb2_grpc.MemoryServiceStub:
        return memory_pb2_grpc.MemoryServiceStub(self.channel)

    @property
    def target(self) -> str:
        return f"ipv4:{self.environment['LISTEN_ADDRESS']}"

    async def start_memory(self, **changed: str) -> None:
        self.environment |= changed
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.memory", cwd=ROOT, env=self.environment
        )
        async with asyncio.timeout(START_SECONDS):
            await self.channel.channel_ready()

    async def kill_memory(self) -> None:
        """Dies without a word; another takes its place."""
        await self.end_memory(signal.SIGKILL)
        await self.start_memory()

    async def end_memory(self, told: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(told)
            await asyncio.wait_for(self.process.wait(), 30)

    async def kill_postgres(self) -> None:
        """Immediate mode: nothing is written, nobody is waited for; the next start recovers."""
        os.kill(self.postgres.pid, signal.SIGQUIT)
        await asyncio.wait_for(self.postgres.wait(), 30)
        self.postgres = await EmbeddedPostgres.start(self.folder / "postgres", settings=POSTGRES)

    async def kill_redis(self) -> None:
        self.redis.process.kill()
        await asyncio.wait_for(self.redis.wait(), 30)
        self.redis = await start_redis(self.folder / "redis")

    async def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """As the superuser, whom row-level security does not hold."""
        url = make_conninfo(self.postgres.admin_url, dbname="parley_memory")
        async with await psycopg.AsyncConnection.connect(url) as connection:
            return await (await connection.execute(statement.encode())).fetchall()

    async def search(self, user_id: str, query: str, **asked: Any) -> memory_pb2.SearchMemoriesResponse:
        request = memory_pb2.SearchMemoriesRequest(query=query, **asked)
        return await self.stub.SearchMemories(request, metadata=self.issuer.as_user(user_id), timeout=CALL_SECONDS)


@asynccontextmanager
async def memory_stand(issuer: Issuer, settings: Mapping[str, str], *, pace_ms: float = 0) -> AsyncIterator[MemoryStand]:
    """The stand with its memory started, and a provider that thinks for `pace_ms`; everything ends with the block."""
    async with AsyncExitStack() as parts:
        # Not pytest's: other runs close that to the account that Postgres runs as.
        named = tempfile.TemporaryDirectory(prefix="parley-memory-", ignore_cleanup_errors=True)
        folder = Path(parts.enter_context(named))
        credential = folder / "credential"
        credential.write_text(WORKLOADS["memory"])
        postgres = await EmbeddedPostgres.start(folder / "postgres", settings=POSTGRES)
        redis = await start_redis(folder / "redis")
        simulator = await parts.enter_async_context(running(pace=Pace(first_token_ms=pace_ms)))
        auth = await parts.enter_async_context(running_auth(issuer))
        database = await prepare_database(postgres.admin_url, name="parley_memory", passwords="not-a-secret")
        await asyncio.to_thread(migrate, "services.memory", database.migration_url, service_role=database.service_role)
        address = f"127.0.0.1:{free_port()}"
        environment = {
            "PATH": os.environ["PATH"],
            "LISTEN_ADDRESS": address,
            "METRICS_ADDRESS": f"127.0.0.1:{free_port()}",
            "DATABASE_URL": database.url,
            "REDIS_URL": redis.url,
            "AUTH_TARGET": auth,
            "WORKLOAD_CREDENTIAL_FILE": str(credential),
            "OPENAI_API_KEY": "any",
            "OPENAI_BASE_URL": simulator.base_url,
            "DRAIN_WAIT_SECONDS": "0",
            "LOG_LEVEL": "ERROR",
            **settings,
        }
        channel = await parts.enter_async_context(grpc.aio.insecure_channel(f"ipv4:{address}", options=CHANNEL))
        stand = MemoryStand(folder, issuer, simulator, postgres, redis, environment, channel)
        try:
            await stand.start_memory()
            yield stand
        finally:
            await stand.end_memory(signal.SIGKILL)
            await stand.redis.stop()
            await stand.postgres.stop()


def _word_of(text: str) -> str:
    return next(word for word in text.rstrip(".").split() if len(word) == WORD_LETTERS and not set(word) - {"q", *LETTERS})


def unique_word(chance: random.Random) -> str:
    """A word that no other text holds, and that no stemmer shortens."""
    return "q" + "".join(chance.choices(LETTERS, k=WORD_LETTERS - 1))


@dataclass
class Caller:
    """Plays chat for one user: tells memory of turns, and repeats each call until it is confirmed."""

    stand: MemoryStand
    chance: random.Random
    user_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    conversations: dict[str, int] = field(default_factory=dict)
    says: str = "The parcel called {word} waits at the gate."
    # The text of every message that memory has confirmed, by its one word that no other has.
    accepted: dict[str, str] = field(default_factory=dict)
    repeats: int = 0

    async def talk(self, until: asyncio.Event) -> None:
        while not until.is_set():
            await self.record([self.turns() for _ in range(self.chance.randint(1, 3))])
            await asyncio.sleep(self.chance.uniform(0, 0.03))

    def turns(self) -> memory_pb2.ConversationTurns:
        """One or two turns more of a conversation, an old or a new one."""
        known = list(self.conversations)
        conversation_id = self.chance.choice([*known[-3:], str(uuid.uuid4())])
        messages = []
        for _ in range(2 * self.chance.randint(1, 2)):
            sequence = self.conversations[conversation_id] = self.conversations.get(conversation_id, 0) + 1
            messages.append(self.message(sequence))
        return memory_pb2.ConversationTurns(user_id=self.user_id, conversation_id=conversation_id, messages=messages)

    def message(self, sequence: int) -> memory_pb2.ContextMessage:
        return memory_pb2.ContextMessage(
            message_id=str(uuid.uuid4()),
            sequence=sequence,
            role="user" if sequence % 2 else "assistant",
            text=self.says.format(word=unique_word(self.chance)) if sequence % 2 else f"I see, {unique_word(self.chance)}.",
            create_time=Timestamp(seconds=BEGAN + sequence),
        )

    async def record(self, turns: Sequence[memory_pb2.ConversationTurns]) -> None:
        """Until it is confirmed. A conversation a call: chat does not name one twice in a call either."""
        for one in turns:
            request = memory_pb2.RecordTurnsRequest(conversations=[one])
            while not await self.confirmed(request):
                self.repeats += 1
                await asyncio.sleep(0.1)
            for message in one.messages:
                self.accepted[_word_of(message.text)] = message.text

    async def confirmed(self, request: memory_pb2.RecordTurnsRequest) -> bool:
        metadata = self.stand.issuer.as_service("chat", audience="memory")
        try:
            answer = await self.stand.stub.RecordTurns(request, metadata=metadata, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() not in AWAY:
                raise
            return False
        assert not answer.refused_conversation_ids
        return True

    async def found_once(self) -> None:
        """Everything that was confirmed is found by its word, once."""
        for word, text in self.accepted.items():
            answer = await self.stand.search(self.user_id, f"Where is {word}?", kind="message", limit=100)
            found = [one.memory.text for one in answer.memories if word in one.memory.text]
            assert found == [text], (word, found)
