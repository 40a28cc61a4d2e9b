"""A whole suite for the matrix, and everybody who tries its doors."""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx2
import jwt
import psutil
import pytest

from parley.auth.v1 import auth_pb2, auth_pb2_grpc
from tests.access.contract import Rpc
from tests.access.world import AUTH, RPCS, Person, World, bearer
from tests.e2e.harness import Suite, environment
from tests.issuer import Metadata
from tests.ports import free_ports
from tests.suite_process import ROOT, start_command

# The matrix calls thousands of times within a minute, and would be refused for that alone.
UNLIMITED: Mapping[str, str] = {"LIMITS_ENABLED": "false"}
QUIET = {"EXTRACTION_ENABLED": "false", "SUMMARIES_ENABLED": "false", "TITLES_ENABLED": "false"}
# Everybody's tokens are made before the first test and used to the last, which may be more than the usual 15 minutes later.
LONG_LIVED = {"ACCESS_TOKEN_LIFETIME_SECONDS": "3500", "SIGNING_KEY_PUBLISH_AHEAD_SECONDS": "7200"}
SHORT_SECONDS = 10


@pytest.fixture(scope="package")
async def world() -> AsyncIterator[World]:
    async with running_world() as made:
        made.bad = await _bad_identities(made)
        yield made


@asynccontextmanager
async def running_world() -> AsyncIterator[World]:
    """A suite with an administrator, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="parley-access-", ignore_cleanup_errors=True) as folder:
        more = {**QUIET, **UNLIMITED, **LONG_LIVED, "MCP_ALLOW_PRIVATE_ADDRESSES": "true"}
        suite = await Suite.start(environment(Path(folder), **more))
        async with httpx2.AsyncClient(base_url=suite.url, timeout=30, trust_env=False) as http:
            made = World(suite, http)
            made.admin = await made.make_admin()
            yield made
            await made.close()
        assert await suite.stop() == 0


async def _bad_identities(world: World) -> dict[str, "Bad"]:
    """What each is good for at an RPC: nothing."""
    victim, leaver = await world.register(), await world.register()
    forged = await world.forgeries(victim)
    expired = await _expired(world, victim)
    await world.ask(f"{AUTH}.AuthService.Logout", {}, leaver.headers)
    elsewhere = {audience: bearer(await world.on_behalf("chat", audience, victim)) for audience in ("auth", "memory")}
    as_bearer = {service: bearer(await world.service_token("chat", service)) for service in ("auth", "memory")}
    found = {name: Bad(dict.fromkeys(_services(), headers)) for name, headers in forged.items()}
    found["an expired token"] = Bad(dict.fromkeys(_services(), expired))
    found["a session that ended"] = Bad(dict.fromkeys(_services(), leaver.headers))
    found["a token for another audience"] = Bad(
        {service: elsewhere["memory" if service != "memory" else "auth"] for service in _services()}
    )
    found["a service's token as a user's"] = Bad(
        {service: as_bearer.get(service, as_bearer["memory"]) for service in _services()}
    )
    if f"{AUTH}.UserService.UpdateUser" in RPCS:
        found["a deactivated user"] = Bad(dict.fromkeys(_services(), await _deactivated(world)))
    # Ended and deactivated are known to every service within a second.
    await asyncio.sleep(1.5)
    return found


class Bad:
    """An identity, as it is shown to each service."""

    def __init__(self, headers: Mapping[str, Metadata]) -> None:
        self._headers = headers

    def __call__(self, rpc: Rpc) -> Metadata:
        return self._headers[rpc.service]


def _services() -> set[str]:
    return {rpc.service for rpc in RPCS.values()}


async def _deactivated(world: World) -> Metadata:
    person = await world.register()
    change = {"user_id": person.id, "user": {"is_active": False}}
    await world.ask(f"{AUTH}.UserService.UpdateUser", change, world.admin.headers)
    return person.headers


async def _expired(world: World, person: Person) -> Metadata:
    """A token that auth itself has signed, some seconds after its end."""
    async with _short_lived_auth(world.suite) as channel:
        request = auth_pb2.LoginRequest(username=person.username, password=person.password)
        stub = auth_pb2_grpc.AuthServiceStub(channel)
        token = (await stub.Login(request, timeout=20, wait_for_ready=True)).tokens.access_token
    end = jwt.decode(token, options={"verify_signature": False})["exp"]
    assert end - time.time() <= SHORT_SECONDS
    await asyncio.sleep(max(0.0, end - time.time()) + 1)
    return bearer(token)


@asynccontextmanager
async def _short_lived_auth(suite: Suite) -> AsyncIterator[grpc.aio.Channel]:
    """Another process of the suite's auth, with the same settings but for how long its tokens live."""
    [running] = [one for one in psutil.Process(suite.process.pid).children() if "services.auth" in one.cmdline()]
    port, metrics_port = free_ports(2)
    changed = {
        "ACCESS_TOKEN_LIFETIME_SECONDS": str(SHORT_SECONDS), "LISTEN_ADDRESS": f"127.0.0.1:{port}",
        "METRICS_ADDRESS": f"127.0.0.1:{metrics_port}", "PATH": os.environ["PATH"],
    }  # fmt: skip
    process = await start_command({**running.environ(), **changed}, ROOT, "-m", "services.auth")
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        process.terminate()
        await process.communicate()


@pytest.fixture
async def owner(world: World) -> Person:
    return await world.register()


@pytest.fixture
async def stranger(world: World) -> Person:
    return await world.register()
