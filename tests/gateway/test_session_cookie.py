"""Identity by cookie, never past the edge. Who may write with one is test_exchange.py's."""

from collections.abc import AsyncIterator

import httpx2
import pytest
from google.rpc import code_pb2

from parley.auth.v1 import auth_pb2
from tests.gateway.backend import Script, Service, endpoints_of
from tests.gateway.conftest import ORIGIN
from tests.gateway.edge import Edge, error_of, running_edge
from tests.gateway.test_following import EVENTS
from tests.gateway.test_streams import events
from tests.issuer import Issuer

ME = "/api/v1/auth/me"
OPAQUE = "abc123.c2lnbmVk"
MISSING = (401, code_pb2.UNAUTHENTICATED, "IDENTITY_MISSING")


@pytest.fixture
def token(signed_in: dict[str, str]) -> str:
    return signed_in["authorization"].removeprefix("Bearer ")


@pytest.mark.parametrize(
    "cookie",
    [
        "session_token={token}",
        "better-auth.session_token={token}",
        "theme=dark; session_token={token}; other=a=b",
        'session_token="{token}"',
        f"session_token={OPAQUE}; better-auth.session_token={{token}}",
        "session_token=; session_token={token}",
        "umlaut=\xfc; session_token={token}",
    ],
)
async def test_a_cookie_with_an_access_token_reads(
    client: httpx2.AsyncClient, script: Script, token: str, cookie: str
) -> None:
    script.answers("GetMe", auth_pb2.User(username="ana"))
    response = await client.get(ME, headers={b"cookie": cookie.format(token=token).encode("latin-1")})
    assert response.json()["username"] == "ana"
    assert response.headers["cache-control"] == "no-store"
    metadata = script.only_call("GetMe").metadata
    assert metadata["authorization"] == f"Bearer {token}"
    assert "cookie" not in metadata


@pytest.mark.parametrize(
    "cookie", [f"session_token={OPAQUE}", "session_token=rubbish", "session_token=", "my_session_token={token}", "{token}"]
)
async def test_a_cookie_without_an_access_token_is_no_identity(
    client: httpx2.AsyncClient, script: Script, token: str, cookie: str
) -> None:
    assert error_of(await client.get(ME, headers={"cookie": cookie.format(token=token)})) == MISSING
    assert "GetMe" not in script.calls


async def test_a_bad_token_in_a_cookie_is_a_bad_token(client: httpx2.AsyncClient, issuer: Issuer) -> None:
    expired = issuer.sign({"aud": "parley", "sub": "s", "sid": "s", "roles": ["user"]}, expires_in=-10)
    response = await client.get(ME, headers={"cookie": f"session_token={expired}"})
    assert error_of(response) == (401, code_pb2.UNAUTHENTICATED, "TOKEN_EXPIRED")


async def test_the_header_goes_before_the_cookie(client: httpx2.AsyncClient, script: Script, token: str) -> None:
    script.answers("GetMe", auth_pb2.User())
    headers = {"authorization": "Bearer a.b.c", "cookie": f"session_token={token}"}
    assert error_of(await client.get(ME, headers=headers)) == (401, code_pb2.UNAUTHENTICATED, "TOKEN_INVALID")


async def test_a_public_path_passes_no_cookie_on(client: httpx2.AsyncClient, script: Script) -> None:
    response = await client.get("/.well-known/jwks.json", headers={"cookie": "session_token=a.b.c"})
    assert response.status_code == 200
    assert not [call for call in script.calls["GetJwks"] if "authorization" in call.metadata or "cookie" in call.metadata]


async def test_an_event_source_follows_with_its_cookie(client: httpx2.AsyncClient, script: Script, token: str) -> None:
    script.streams["SubscribeGeneration"] = events
    headers = {"cookie": f"session_token={token}", "accept": "text/event-stream", "last-event-id": "1"}
    response = await client.get(EVENTS, headers=headers)
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert "cookie" not in script.only_call("SubscribeGeneration").metadata


async def test_a_page_of_a_named_origin_may_send_its_cookies(client: httpx2.AsyncClient, script: Script, token: str) -> None:
    script.answers("GetMe", auth_pb2.User())
    response = await client.get(ME, headers={"cookie": f"session_token={token}", "origin": ORIGIN})
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["access-control-allow-credentials"] == "true"
    asked = {"origin": ORIGIN, "access-control-request-method": "GET", "access-control-request-headers": "last-event-id"}
    preflight = await client.options(EVENTS, headers=asked)
    assert preflight.headers["access-control-allow-credentials"] == "true"
    stranger = await client.get(ME, headers={"cookie": f"session_token={token}", "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in stranger.headers


@pytest.fixture
async def open_edge(services: dict[str, Service], signed_in: dict[str, str]) -> AsyncIterator[Edge]:
    """An edge that every page may call, with a cookie of its own."""
    settings = {"cors_allowed_origins": ("*",), "session_cookies": ("mine",)}
    async with running_edge(endpoints_of(services), **settings) as edge:
        await edge.until_verifies(signed_in)
        yield edge


async def test_pages_of_any_origin_get_no_credentials_and_the_names_are_a_setting(
    open_edge: Edge, script: Script, token: str
) -> None:
    script.answers("GetMe", auth_pb2.User())
    async with open_edge.client() as client:
        response = await client.get(ME, headers={"cookie": f"mine={token}", "origin": ORIGIN})
        assert response.status_code == 200
        assert "access-control-allow-credentials" not in response.headers
        assert error_of(await client.get(ME, headers={"cookie": f"session_token={token}"})) == MISSING
        schemes = (await client.get("/openapi.json")).json()["components"]["securitySchemes"]
        assert schemes["cookie_mine"]["in"] == "cookie"
