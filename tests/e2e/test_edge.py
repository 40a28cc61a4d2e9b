"""The edge of a whole suite, as `make run` brings it up: other credentials, limits, TLS and what runs behind them."""

import base64
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from suite.certificates import write_certificates
from tests.e2e.harness import PASSWORD, Suite, environment, reason_of

ME, COMPLETIONS = "/api/v1/auth/me", "/api/v1/chat/completions"


@pytest.fixture(scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Suite]:
    """TLS at the edge, mutual TLS behind it, and a limit that a test can reach."""
    folder = tmp_path_factory.mktemp("guarded")
    write_certificates(folder / "certs")
    limits = {"LIMIT_MODEL": "3/minute,100/hour"}
    suite = await Suite.start(environment(folder / "data", PARLEY_CERTIFICATES=str(folder / "certs"), **limits))
    suite.url = suite.url.replace("http://", "https://")
    yield suite
    assert await suite.stop() == 0


@pytest.fixture
async def browser(guarded: Suite) -> AsyncIterator[httpx2.AsyncClient]:
    """A client that believes the suite's authority."""
    context = ssl.create_default_context(cafile=str(Path(guarded.environment["PARLEY_CERTIFICATES"]) / "ca.pem"))
    async with httpx2.AsyncClient(base_url=guarded.url, verify=context, trust_env=False, timeout=30) as client:
        yield client


def basic(name: str, password: str = PASSWORD) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


async def register(client: httpx2.AsyncClient, name: str) -> str:
    body = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
    answer = await client.post("/api/v1/auth/register", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["tokens"]["access_token"])


async def test_every_credential_reaches_every_service_over_tls(browser: httpx2.AsyncClient) -> None:
    token = await register(browser, "ana")
    ways = {
        "bearer": {"authorization": f"Bearer {token}"},
        "basic": basic("ana"),
        "cookie": {"cookie": f"session_token={token}", "origin": str(browser.base_url).rstrip("/")},
    }
    for way, headers in ways.items():
        assert (await browser.get(ME, headers=headers)).json()["username"] == "ana", way
        # Chat, which asks auth for preferences and memory for a context: three services behind one call.
        answer = await browser.post(COMPLETIONS, json={"message": "hello"}, headers=headers)
        assert answer.status_code == 200, (way, answer.text)
        memories = await browser.post("/api/v1/memories/search", json={"query": "hello"}, headers=headers)
        assert memories.status_code == 200, (way, memories.text)
    # Three of three were used, whatever they were used with.
    refused = await browser.post(COMPLETIONS, json={"message": "hello"}, headers=ways["basic"])
    assert refused.status_code == 429
    assert reason_of(refused) == "RATE_LIMITED"
    assert refused.headers["ratelimit-policy"] == "3;w=60, 100;w=3600"
    assert refused.headers["strict-transport-security"]
    listed = await browser.get("/api/v1/chat/conversations", headers=ways["basic"])
    assert len(listed.json()["conversations"]) == 3
    verified = await browser.post("/api/v1/auth/verify", json={}, headers=ways["basic"])
    assert verified.json()["valid"] is True


async def test_mcp_takes_a_name_and_password_too(browser: httpx2.AsyncClient) -> None:
    await register(browser, "bert")
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accepts = {"accept": "application/json, text/event-stream"}
    answer = await browser.post("/mcp", json=call, headers={**basic("bert"), **accepts})
    assert answer.status_code == 200, answer.text
    assert (
        reason_of(await browser.post("/mcp", json=call, headers={**basic("bert", "wrong"), **accepts}))
        == "CREDENTIALS_WRONG"
    )


async def test_a_service_takes_no_plain_connection(guarded: Suite) -> None:
    async with httpx2.AsyncClient(trust_env=False, http1=False, http2=True) as client:
        for service in ("AUTH", "CHAT", "MEMORY", "LIMITER"):
            with pytest.raises(httpx2.TransportError):
                await client.get(f"http://127.0.0.1:{guarded.port(service)}/")


async def test_a_suite_without_limits_starts_no_limiter(tmp_path: Path) -> None:
    suite = await Suite.start(environment(tmp_path, LIMITS_ENABLED="false"))
    try:
        async with httpx2.AsyncClient(base_url=suite.url, trust_env=False) as client:
            token = await register(client, "ana")
            answer = await client.get(ME, headers={"authorization": f"Bearer {token}"})
            assert answer.status_code == 200
            assert "ratelimit-limit" not in answer.headers
            with pytest.raises(httpx2.ConnectError):
                await client.get(f"http://127.0.0.1:{suite.port('LIMITER')}/")
    finally:
        assert await suite.stop() == 0
