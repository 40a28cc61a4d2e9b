"""A real auth server for tests: real database, real interceptors, a real port, and what tests ask of it."""

import asyncio
import base64
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import psycopg
import pytest
from sqlalchemy import event

from parley.auth.v1 import auth_pb2, auth_pb2_grpc, user_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.__main__ import Assembly, assembled
from services.auth.settings import AuthSettings
from services.runtime.errors import ServiceError, from_rpc_error
from services.runtime.peers import ServiceTokens
from suite.databases import ServiceDatabase

PASSWORD = "correct horse battery"
CREDENTIALS = {"chat": "chat-credential", "memory": "memory-credential", "sms": "sms-credential"}
CHEAP_HASHES = {"argon2_time_cost": 1, "argon2_memory_kib": 8, "argon2_parallelism": 1}
CALL_SECONDS = 20
# A port that nobody listens on.
NOWHERE = "ipv4:127.0.0.1:1"
SEALING_KEY = base64.b64encode(b"k" * 32).decode()
NOT_NOTED = ("set_config", "sessions.end_time >", "signing_keys")

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who registered, with the tokens of one session."""

    id: str
    username: str
    email: str
    tokens: auth_pb2.TokenPair

    @property
    def metadata(self) -> Metadata:
        return bearer(self.tokens.access_token)


class RunningAuth:
    """A served auth, and a client of it."""

    def __init__(self, assembly: Assembly, port: int, database: ServiceDatabase) -> None:
        self.assembly = assembly
        self.target = f"127.0.0.1:{port}"
        self.database = database
        self.channel = grpc.aio.insecure_channel(self.target, options=[("grpc.use_local_subchannel_pool", 1)])
        self.auth = auth_pb2_grpc.AuthServiceStub(self.channel)
        self.tokens = auth_pb2_grpc.TokenServiceStub(self.channel)
        self.users = user_pb2_grpc.UserServiceStub(self.channel)

    async def register(self, name: str | None = None) -> Person:
        """A new person, under a name that nobody else has."""
        username = name or new_name()
        request = auth_pb2.RegisterRequest(username=username, email=f"{username}@example.com", password=PASSWORD)
        answer = await self.auth.Register(request, timeout=CALL_SECONDS)
        return Person(answer.user.id, username, answer.user.email, answer.tokens)

    async def administrator(self) -> Person:
        """A new person who is an administrator, and whose token says so."""
        person = await self.register()
        await self.execute("update users set is_admin = true where id = %s", person.id)
        return Person(person.id, person.username, person.email, await self.login(person.username))

    async def login(self, name: str, password: str = PASSWORD, **metadata: str) -> auth_pb2.TokenPair:
        request = auth_pb2.LoginRequest(username=name, password=password)
        answer = await self.auth.Login(request, metadata=tuple(metadata.items()), timeout=CALL_SECONDS)
        return answer.tokens

    async def refresh(self, refresh_token: str) -> auth_pb2.TokenPair:
        request = auth_pb2.RefreshTokensRequest(refresh_token=refresh_token)
        return (await self.auth.RefreshTokens(request, timeout=CALL_SECONDS)).tokens

    async def me(self, access_token: str) -> auth_pb2.User:
        return await self.auth.GetMe(auth_pb2.GetMeRequest(), metadata=bearer(access_token), timeout=CALL_SECONDS)

    async def is_signed_in(self, access_token: str) -> bool:
        """Whether the access token's session is open, by auth's database."""
        try:
            await self.me(access_token)
        except grpc.aio.AioRpcError as error:
            if from_rpc_error(error).reason != reasons.ERROR_REASON_SESSION_ENDED:
                raise
            return False
        return True

    def service_tokens(self, workload: str) -> ServiceTokens:
        """What the service `workload` would use to get its tokens."""
        return ServiceTokens(self.channel, workload=workload, credential=CREDENTIALS[workload])

    async def as_service(self, workload: str) -> Metadata:
        return await self.service_tokens(workload).as_metadata("auth")

    async def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Runs SQL as the service itself: what an earlier release, an import or an operator would have done."""
        connecting = psycopg.AsyncConnection.connect(self.database.url, autocommit=True)
        async with await connecting as connection:
            await connection.execute("select set_config('parley.scope', 'service', false)")
            cursor = await connection.execute(statement.encode(), values)
            return await cursor.fetchall() if cursor.description else []

    @contextmanager
    def noted_statements(self) -> Iterator[list[tuple[str, Any]]]:
        """The statements that the server runs meanwhile and their parameters.

        Without those that set up a transaction, and without the standing duties' own.
        """
        statements: list[tuple[str, Any]] = []

        def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
            if not any(part in statement for part in NOT_NOTED):
                statements.append((statement, parameters))

        engine = self.assembly.database.engine.sync_engine
        event.listen(engine, "before_cursor_execute", note)
        try:
            yield statements
        finally:
            event.remove(engine, "before_cursor_execute", note)


@asynccontextmanager
async def besides(auth: RunningAuth) -> AsyncIterator[psycopg.AsyncConnection]:
    """A transaction of another process of the service."""
    async with await psycopg.AsyncConnection.connect(auth.database.url) as connection:
        await connection.execute("select set_config('parley.scope', 'service', false)")
        yield connection


async def who_waits(auth: RunningAuth) -> list[tuple[Any, ...]]:
    """The processes of auth's database that wait for a lock."""
    return await auth.execute(
        "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    )


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


def new_name() -> str:
    return f"ana-{uuid.uuid4().hex[:16]}"


async def refusal(call: Awaitable[Any]) -> ServiceError:
    """The error that the call must end with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def until(condition: Callable[[], Awaitable[T]], *, within_seconds: float = 30) -> T:
    """What the condition gives, once that is something."""
    end = time.monotonic() + within_seconds
    while not (found := await condition()):
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.05)
    return found


def write_digests(path: Path) -> Path:
    digests = {name: hashlib.sha256(secret.encode()).hexdigest() for name, secret in CREDENTIALS.items()}
    path.write_text(json.dumps(digests))
    return path


def make_settings(database: ServiceDatabase, folder: Path, **changes: Any) -> AuthSettings:
    values: dict[str, Any] = {
        "listen_address": "127.0.0.1:0",
        "metrics_address": "127.0.0.1:0",
        "database_url": database.url,
        "chat_target": NOWHERE,
        "memory_target": NOWHERE,
        "sealing_key": SEALING_KEY,
        # All the tests come from one address.
        "sign_in_free_failures_per_address": 100_000,
        "workload_digests_file": write_digests(folder / f"digests-{uuid.uuid4().hex}.json"),
        **CHEAP_HASHES,
    }
    return AuthSettings(**{**values, **changes})


@asynccontextmanager
async def running_auth(database: ServiceDatabase, settings: AuthSettings) -> AsyncIterator[RunningAuth]:
    """Serves until the block ends. The server lives in a task of its own: fixtures begin and end in different ones."""
    stop = asyncio.Event()
    served: asyncio.Future[RunningAuth] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(_serve(database, settings, served, stop))
    await asyncio.wait((task, served), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    auth = await served
    try:
        yield auth
    finally:
        stop.set()
        await task


async def _serve(
    database: ServiceDatabase, settings: AuthSettings, served: asyncio.Future[RunningAuth], stop: asyncio.Event
) -> None:
    async with assembled(settings) as assembly:
        auth = RunningAuth(assembly, await assembly.server.start(), database)
        served.set_result(auth)
        await stop.wait()
        await auth.channel.close()
        await assembly.server.stop(wait_seconds=0, drain_seconds=2)
