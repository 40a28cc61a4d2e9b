"""/health: one word for everybody, what each part answers for administrators, nothing secret for anybody."""

from collections.abc import AsyncIterator

import httpx2
import pytest

from tests.gateway.backend import Script, Service, endpoints_of, key_set, running_services
from tests.gateway.edge import Edge, running_edge
from tests.issuer import Issuer

PATHS = ("/health", "/api/v1/health")


@pytest.fixture
def admin(issuer: Issuer) -> dict[str, str]:
    return {"authorization": f"Bearer {issuer.user_token('an-admin', roles=('user', 'admin'))}"}


@pytest.fixture
async def own_services(issuer: Issuer) -> AsyncIterator[dict[str, Service]]:
    script = Script()
    script.answers("GetJwks", key_set(issuer.key, issuer.key_id))
    async with running_services(script) as services:
        yield services


@pytest.fixture
async def own_edge(own_services: dict[str, Service], signed_in: dict[str, str]) -> AsyncIterator[Edge]:
    async with running_edge(endpoints_of(own_services), health_check_interval_seconds=0.1) as edge:
        await edge.until_answers("/health", 200)
        await edge.until_verifies(signed_in)
        yield edge


async def test_everybody_gets_the_word(client: httpx2.AsyncClient, signed_in: dict[str, str]) -> None:
    for path in PATHS:
        public = await client.get(path)
        assert set(public.json()) == {"status", "version"}
        assert public.headers["cache-control"] == "max-age=5"
        user = await client.get(path, headers=signed_in)
        assert user.status_code == 200
        assert user.json() == public.json()
        assert user.headers["cache-control"] == "no-store"


async def test_an_administrator_gets_the_parts(client: httpx2.AsyncClient, admin: dict[str, str]) -> None:
    for path in PATHS:
        answer = await client.get(path, headers=admin)
        parts = answer.json()["parts"]
        assert answer.json()["status"] == "serving"
        for name in ("auth", "chat", "memory"):
            assert parts[name] == {"status": "serving", "healthy": 1, "processes": 1}
        assert "127.0.0.1" not in answer.text


async def test_a_part_that_is_away_is_named_to_administrators_alone(
    own_edge: Edge, own_services: dict[str, Service], admin: dict[str, str], signed_in: dict[str, str]
) -> None:
    await own_services["memory"].stop()
    await own_edge.until_answers("/health", 503)
    async with own_edge.client() as client:
        told = await client.get("/health", headers=admin)
        assert told.status_code == 503
        assert told.json()["status"] == "not_serving"
        assert told.json()["parts"]["memory"] == {"status": "not_serving", "healthy": 0, "processes": 1}
        assert told.json()["parts"]["auth"]["status"] == "serving"
        assert set((await client.get("/health", headers=signed_in)).json()) == {"status", "version"}


async def test_who_shows_no_good_identity_is_told_so(client: httpx2.AsyncClient) -> None:
    forged = {"authorization": f"Bearer {Issuer().user_token('u', roles=('admin',))}"}
    assert (await client.get("/health", headers=forged)).status_code == 401


async def test_every_answer_carries_the_headers_of_a_careful_server(client: httpx2.AsyncClient) -> None:
    for path in ("/api", "/health", "/openapi.json", "/no/such/path", "/api/v1/auth/me", "/.well-known/jwks.json"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert "strict-transport-security" not in headers
        assert "x-powered-by" not in headers
    for path in ("/docs", "/redoc"):
        policy = (await client.get(path)).headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "script-src 'self'" in policy
