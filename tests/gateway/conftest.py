"""One edge and one set of services a run; each test scripts them anew."""

from collections.abc import AsyncIterator

import grpc
import httpx2
import pytest

from tests.gateway.backend import Script, Service, endpoints_of, key_set, running_services
from tests.gateway.edge import Edge, running_edge
from tests.issuer import Issuer

USER_ID = "01990000-0000-7000-8000-000000000001"
ORIGIN = "https://app.example.com"


@pytest.fixture(scope="package")
def shared_script() -> Script:
    return Script()


@pytest.fixture(scope="package")
async def services(shared_script: Script, issuer: Issuer) -> AsyncIterator[dict[str, Service]]:
    shared_script.answers("GetJwks", key_set(issuer.key, issuer.key_id))
    async with running_services(shared_script) as services:
        yield services


@pytest.fixture(scope="package")
async def edge(services: dict[str, Service], issuer: Issuer) -> AsyncIterator[Edge]:
    endpoints = endpoints_of(services)
    async with running_edge(endpoints, cors_allowed_origins=(ORIGIN,), jwks_refresh_seconds=1) as edge:
        await edge.until_answers("/health", 200)
        await edge.until_verifies(bearer(issuer))
        yield edge


@pytest.fixture(autouse=True)
def script(shared_script: Script, issuer: Issuer) -> Script:
    shared_script.clear()
    shared_script.answers("GetJwks", key_set(issuer.key, issuer.key_id))
    return shared_script


@pytest.fixture
async def client(edge: Edge) -> AsyncIterator[httpx2.AsyncClient]:
    async with edge.client() as client:
        yield client


@pytest.fixture
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{edge.port}") as channel:
        yield channel


def bearer(issuer: Issuer) -> dict[str, str]:
    return {"authorization": f"Bearer {issuer.user_token(USER_ID)}"}


@pytest.fixture
def signed_in(issuer: Issuer) -> dict[str, str]:
    return bearer(issuer)
