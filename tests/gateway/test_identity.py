"""Who is let in at the door, over REST, and what becomes of it when keys change or auth is away."""

import asyncio
import time

import httpx2
import jwt
import pytest
from google.rpc import code_pb2

from gateway.settings import Address
from parley.auth.v1 import auth_pb2
from parley.chat.v1 import conversation_pb2
from tests.gateway.backend import Script, Service, endpoints_of, key_set
from tests.gateway.edge import Edge, error_of, running_edge
from tests.issuer import Issuer

ME = "/api/v1/auth/me"
CLAIMS = {"aud": "parley", "sub": "01990000-0000-7000-8000-000000000001", "sid": "s", "roles": ["user"]}


async def test_no_token(client: httpx2.AsyncClient, script: Script) -> None:
    for headers in ({}, {"authorization": "Digest YTpi"}):
        response = await client.get(ME, headers=headers)
        assert error_of(response) == (401, code_pb2.UNAUTHENTICATED, "IDENTITY_MISSING")
        assert response.headers["www-authenticate"].startswith("Bearer ")
    assert "GetMe" not in script.calls


async def test_token_in_the_query_is_no_token(client: httpx2.AsyncClient, issuer: Issuer) -> None:
    response = await client.get(f"{ME}?access_token={issuer.user_token('u')}")
    assert error_of(response) == (401, code_pb2.UNAUTHENTICATED, "IDENTITY_MISSING")


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEaReR"])
async def test_the_scheme_is_taken_in_any_case_and_passed_on_in_one(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str], scheme: str
) -> None:
    script.answers("GetMe", auth_pb2.User())
    headers = {"authorization": signed_in["authorization"].replace("Bearer", scheme)}
    assert (await client.get(ME, headers=headers)).status_code == 200
    assert script.only_call("GetMe").metadata["authorization"] == signed_in["authorization"]


async def test_of_two_identities_none_is_taken(client: httpx2.AsyncClient, issuer: Issuer, script: Script) -> None:
    script.answers("GetMe", auth_pb2.User())
    one, other = issuer.user_token("one"), issuer.user_token("other")
    both = [("authorization", f"Bearer {one}"), ("authorization", f"Bearer {other}")]
    joined = [("authorization", f"Bearer {one},Bearer {other}")]
    for headers in (both, joined, [("authorization", f"Bearer {one} {other}")]):
        response = await client.get(ME, headers=headers)
        assert error_of(response)[0] == 401, headers
    assert "GetMe" not in script.calls


async def test_expired_token(client: httpx2.AsyncClient, issuer: Issuer, script: Script) -> None:
    response = await client.get(ME, headers={"authorization": f"Bearer {issuer.sign(CLAIMS, expires_in=-10)}"})
    assert error_of(response) == (401, code_pb2.UNAUTHENTICATED, "TOKEN_EXPIRED")
    assert 'error="invalid_token"' in response.headers["www-authenticate"]
    assert "GetMe" not in script.calls


async def test_tokens_that_are_not_ours(client: httpx2.AsyncClient, issuer: Issuer, script: Script) -> None:
    now = int(time.time())
    whole = {**CLAIMS, "iss": "parley", "exp": now + 60}
    without_expiry = jwt.encode({**CLAIMS, "iss": "parley"}, issuer.key, "EdDSA", {"kid": issuer.key_id})
    tokens = {
        "garbage": "garbage",
        "another key under our id": Issuer().sign(CLAIMS),
        "an unknown key": issuer.sign(CLAIMS, kid="unknown"),
        "another audience": issuer.service_token("chat", audience="memory"),
        "another issuer": issuer.sign({**CLAIMS, "iss": "elsewhere"}),
        "no signature": jwt.encode(whole, "", "none"),
        "signed with a shared secret": jwt.encode(whole, "a shared secret of more than 32 bytes", "HS256"),
        "for ever": without_expiry,
    }
    for name, token in tokens.items():
        response = await client.get(ME, headers={"authorization": f"Bearer {token}"})
        assert error_of(response) == (401, code_pb2.UNAUTHENTICATED, "TOKEN_INVALID"), name
    assert "GetMe" not in script.calls


async def test_public_rpcs_need_no_token_and_leave_a_bad_one_to_the_service(
    client: httpx2.AsyncClient, script: Script
) -> None:
    script.answers("Login", auth_pb2.LoginResponse())
    for headers in ({}, {"authorization": "Bearer bad"}):
        assert (await client.post("/api/v1/auth/login", json={}, headers=headers)).status_code == 200
    assert script.calls["Login"][1].metadata["authorization"] == "Bearer bad"


async def test_every_rpc_that_is_not_public_asks_for_a_token(client: httpx2.AsyncClient, edge: Edge) -> None:
    document = (await client.get("/openapi.json")).json()
    operations = [
        (method, path, operation) for path, item in document["paths"].items() for method, operation in item.items()
    ]
    closed = [(method, path) for method, path, operation in operations if operation["security"]]
    assert len(closed) > 10
    for method, path in closed:
        response = await client.request(method.upper(), f"{edge.url}{path.replace('{', '').replace('}', '')}")
        assert error_of(response) == (401, code_pb2.UNAUTHENTICATED, "IDENTITY_MISSING"), (method, path)


async def test_keys_change_without_a_restart(client: httpx2.AsyncClient, script: Script, issuer: Issuer) -> None:
    script.answers("GetMe", auth_pb2.User())
    other = Issuer()
    other.key_id = "next-key"
    both = key_set(issuer.key, issuer.key_id)
    both.MergeFrom(key_set(other.key, other.key_id))
    headers = {"authorization": f"Bearer {other.user_token('u')}"}
    assert (await client.get(ME, headers=headers)).status_code == 401
    script.answers("GetJwks", both)
    async with asyncio.timeout(5):
        while (await client.get(ME, headers=headers)).status_code != 200:  # noqa: ASYNC110 (another process tells nothing)
            await asyncio.sleep(0.05)


@pytest.fixture
async def late_auth(script: Script) -> Service:
    """An auth service that has a port and does not listen on it yet."""
    service = Service("auth", script)
    await service.start()
    await service.stop()
    return service


async def test_auth_may_come_late_and_go_again(
    services: dict[str, Service], late_auth: Service, script: Script, signed_in: dict[str, str]
) -> None:
    script.answers("ListConversations", conversation_pb2.ListConversationsResponse())
    endpoints = endpoints_of(services)
    endpoints["auth"] = (Address("127.0.0.1", late_auth.port),)
    url = "/api/v1/chat/conversations"
    async with running_edge(endpoints, jwks_refresh_seconds=1) as edge, edge.client() as client:
        response = await client.get(url, headers=signed_in)
        # The token is good: it must not be called bad because the keys are not there.
        assert error_of(response) == (503, code_pb2.UNAVAILABLE, "IDENTITY_UNAVAILABLE")
        assert response.headers["retry-after"] == "1"
        await late_auth.start()
        await edge.until_verifies(signed_in)
        await late_auth.stop()
        # Longer than the keys are kept when they can be had.
        await asyncio.sleep(1.5)
        assert (await client.get(url, headers=signed_in)).status_code == 200
