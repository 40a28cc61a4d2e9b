"""What is planted, a secret or what somebody says, is in no log, error or metric, and not in /health.

The suite logs everything that it can, and what is planted takes the ways that go well and those that fail.
"""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from simulator.control import Control, Fault, ScriptedAnswer
from simulator.server import Running, running
from tests.e2e.harness import Client, Json, Suite, environment

METRICS = ("AUTH_METRICS", "CHAT_METRICS", "MEMORY_METRICS", "SMS_METRICS", "LIMITER_METRICS", "EDGE_ADMIN")
# No address answers there: the call fails after the header was read.
NOWHERE = "http://127.0.0.1:9/mcp"


def planted(name: str) -> str:
    return f"canary-{name}-{uuid.uuid4().hex}"


@pytest.fixture
async def provider() -> AsyncIterator[Running]:
    async with running() as simulator:
        yield simulator


@pytest.fixture
async def talkative(provider: Running) -> AsyncIterator[Suite]:
    with tempfile.TemporaryDirectory(prefix="parley-e2e-", ignore_cleanup_errors=True) as folder:
        key = {"OPENAI_API_KEY": planted("api-key"), "OPENAI_BASE_URL": provider.base_url}
        logs = {"LOG_LEVEL": "DEBUG", "MCP_ALLOW_PRIVATE_ADDRESSES": "true", "EXTRACTION_DELAY_SECONDS": "0"}
        started = await Suite.start(environment(Path(folder), **key, **logs))
        yield started
        assert await started.stop() == 0


def secrets_of(suite: Suite) -> Iterator[str]:
    """What the suite itself keeps secret."""
    yield suite.environment["OPENAI_API_KEY"]
    yield (suite.data / "postgres" / "admin-password").read_text().strip()
    for path in (suite.data / "credentials").iterdir():
        if path.suffix != ".json":
            yield path.read_text().strip()


async def everything_that_may_fail(client: Client, control: Control) -> tuple[list[str], list[str]]:
    """The words that were planted, and every answer that was an error."""
    words, errors = [], []

    async def tell(method: str, path: str, **request: object) -> None:
        answer = await client.http.request(method, path, **{"headers": client.headers, **request})  # type: ignore[arg-type]
        if answer.status_code >= 400:
            errors.append(answer.text)

    def word(name: str) -> str:
        words.append(planted(name))
        return words[-1]

    await tell("POST", "/api/v1/auth/login", json={"username": client.username, "password": word("password")})
    await tell("POST", "/api/v1/auth/register", json={"username": "a b", "email": "x", "password": word("new-password")})
    await tell("POST", "/api/v1/auth/refresh", json={"refresh_token": word("refresh-token")})
    await tell("GET", "/api/v1/auth/me", headers={"authorization": f"Bearer {word('bearer')}"})
    await tell("GET", "/api/v1/auth/me", headers={"authorization": f"Basic {word('basic')}"})
    await tell("GET", "/api/v1/chat/conversations", headers={"cookie": f"session_token={word('cookie')}"})
    await tell("POST", "/api/v1/chat/completions", json={"message": word("message")})
    await tell("POST", "/api/v1/chat/completions", json={"message": word("nul-message") + "\x00"})
    await tell("POST", "/api/v1/chat/completions", json={"message": word("bad-model"), "model": "sim-status-400"})
    await tell("POST", "/api/v1/chat/completions", json={"message": word("down"), "model": "sim-status-500"})
    await tell("POST", "/api/v1/chat/completions", content=b'{"message": "' + word("broken-json").encode())
    await tell("PATCH", "/api/v1/users/me/preferences", json={"instructions": word("instructions")})
    await tell("POST", "/api/v1/tasks", json={"title": word("task"), "description": word("description")})
    await tell("POST", "/api/v1/memories", json={"text": f"The user likes {word('memory')}."})
    await tell("POST", "/api/v1/memories/search", json={"query": word("query")})
    await tell("POST", "/api/v1/chat/conversations:search", json={"query": word("search")})
    server = {"label": "nowhere", "url": NOWHERE, "headers": {"authorization": f"Bearer {word('mcp-header')}"}}
    await tell("POST", "/api/v1/mcp-servers", json=server)
    await tell("POST", "/api/v1/chat/completions", json={"message": "Hello", "mcp_servers": [{**server, "label": "other"}]})
    await tell("POST", "/api/v1/chat/conversations", json={"title": word("title")})
    await control.script(ScriptedAnswer(text=word("reply"), fault=Fault(kind="malformed", after_tokens=1)))
    await tell("POST", "/api/v1/chat/completions", json={"message": word("malformed")})
    return words, errors


async def told(suite: Suite, client: Client) -> dict[str, str]:
    """Everything that others than the caller may read."""
    pages = {}
    async with httpx2.AsyncClient(timeout=10) as http:
        for name in METRICS:
            path = "/stats/prometheus" if name == "EDGE_ADMIN" else "/metrics"
            try:
                answer = await http.get(f"http://127.0.0.1:{suite.port(name)}{path}")
            except httpx2.ConnectError:
                lines = [line for line in suite.output if b"rpc.answered" not in line]
                raise AssertionError(f"{name} does not answer: {b''.join(lines[-30:]).decode()}") from None
            assert answer.status_code == 200, name
            pages[name] = answer.text
    pages["health"] = (await client.http.get("/health")).text
    pages["log"] = "".join(path.read_text(errors="replace") for path in (suite.data / "logs").iterdir())
    return pages


async def test_nothing_that_was_planted_is_told(talkative: Suite, provider: Running) -> None:
    client = await Client(talkative.url).register()
    try:
        words, errors = await everything_that_may_fail(client, provider.control)
        # What is owed for these turns is done, or fails, and says so.
        await asyncio.sleep(2)
        pages = await told(talkative, client)
    finally:
        await client.close()
    assert len(errors) >= 8, "the ways that fail have failed"
    assert client.user["id"] in pages["log"], "the log is that of these calls"
    assert "parley_" in pages["CHAT_METRICS"]
    tokens: Json = client.tokens
    secrets = [*words, *secrets_of(talkative), tokens["access_token"], tokens["refresh_token"]]
    assert len(secrets) > len(words) + 3
    found = [(secret[:30], place) for secret in secrets for place, page in pages.items() if secret in page]
    assert found == []
    # An error may say again what its own caller sent as a name, never a secret.
    said_again = [text for text in errors for word in words if word in text]
    assert said_again == []
