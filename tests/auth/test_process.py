"""auth as a process: bad settings are named, a stop is clean, and nothing secret reaches the log."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import grpc
import pytest
from pydantic import ValidationError

from parley.auth.v1 import auth_pb2, auth_pb2_grpc
from services.runtime.settings import explain
from suite.databases import ServiceDatabase
from tests.auth.harness import (
    CHEAP_HASHES,
    CREDENTIALS,
    NOWHERE,
    PASSWORD,
    SEALING_KEY,
    bearer,
    make_settings,
    new_name,
    refusal,
    write_digests,
)

START_SECONDS = 15


def environment(database: ServiceDatabase, folder: Path, **changes: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {
        **kept,
        "LISTEN_ADDRESS": "127.0.0.1:0",
        "METRICS_ADDRESS": "127.0.0.1:0",
        "DATABASE_URL": database.url,
        "WORKLOAD_DIGESTS_FILE": str(write_digests(folder / "digests.json")),
        "CHAT_TARGET": NOWHERE,
        "MEMORY_TARGET": NOWHERE,
        "SEALING_KEY": SEALING_KEY,
        "LOG_FORMAT": "json",
        "DRAIN_WAIT_SECONDS": "0",
        **{name.upper(): str(value) for name, value in CHEAP_HASHES.items()},
        **changes,
    }


async def start(*arguments: str, environment: dict[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.auth",
        *arguments,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def ended(process: asyncio.subprocess.Process) -> str:
    async with asyncio.timeout(START_SECONDS):
        output, _ = await process.communicate()
    return output.decode()


async def test_every_bad_setting_is_named_and_no_value_is_told(auth_database: ServiceDatabase, tmp_path: Path) -> None:
    bad = {
        "WORKLOAD_DIGESTS_FILE": str(tmp_path / "missing.json"),
        "ACCESS_TOKEN_LIFETIME_SECONDS": "soon",
        "DATABASE_URL": "",
    }
    env = environment(auth_database, tmp_path, **bad)
    del env["DATABASE_URL"]
    process = await start(environment=env)
    output = await ended(process)
    assert process.returncode == 2
    assert len(output.splitlines()) == 1
    for name in bad:
        assert name in output
    assert "soon" not in output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("signing_key_publish_ahead_seconds", 600),
        ("signing_key_rotation_seconds", 3_000),
        ("refresh_token_lifetime_seconds", 300),
    ],
)
def test_lifetimes_that_contradict_each_other_are_refused(
    auth_database: ServiceDatabase, tmp_path: Path, name: str, value: int
) -> None:
    with pytest.raises(ValidationError, match=name.upper()):
        make_settings(auth_database, tmp_path, **{name: value})


@pytest.mark.parametrize("content", ["junk", '["chat"]', '{"chat": "short"}', '{"nobody": "' + "0" * 64 + '"}'])
def test_a_digests_file_that_cannot_be_used_is_refused_by_name(
    auth_database: ServiceDatabase, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValidationError) as refused:
        make_settings(auth_database, tmp_path, workload_digests_file=path)
    explained = explain(refused.value)
    assert explained.startswith("WORKLOAD_DIGESTS_FILE: ")
    assert str(path) in explained


async def test_the_process_serves_stops_cleanly_and_logs_no_secret(
    auth_database: ServiceDatabase, unused_port: int, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{unused_port}"
    process = await start(environment=environment(auth_database, tmp_path, LISTEN_ADDRESS=address))
    async with grpc.aio.insecure_channel(address) as channel:
        secrets = await use(auth_pb2_grpc.AuthServiceStub(channel), auth_pb2_grpc.TokenServiceStub(channel))
    process.send_signal(signal.SIGTERM)
    output = await ended(process)
    assert process.returncode == 0, output
    for event in ("auth.registered", "auth.sign_in_refused", "auth.signed_in", "server.stopped"):
        assert event in output
    assert [secret for secret in secrets if secret in output] == []


async def use(auth: auth_pb2_grpc.AuthServiceStub, tokens: auth_pb2_grpc.TokenServiceStub) -> list[str]:
    """Calls of every kind that carry secrets; returns the secrets."""
    name, wrong = new_name(), "not the password"
    registering = auth_pb2.RegisterRequest(username=name, email=f"{name}@example.com", password=PASSWORD)
    pair = (await auth.Register(registering, wait_for_ready=True, timeout=START_SECONDS)).tokens
    await refusal(auth.Login(auth_pb2.LoginRequest(username=name, password=wrong)))
    again = (await auth.Login(auth_pb2.LoginRequest(username=name, password=PASSWORD))).tokens
    refreshed = (await auth.RefreshTokens(auth_pb2.RefreshTokensRequest(refresh_token=pair.refresh_token))).tokens
    await refusal(auth.RefreshTokens(auth_pb2.RefreshTokensRequest(refresh_token="no-such-token")))
    await refusal(auth.GetMe(auth_pb2.GetMeRequest(), metadata=bearer("no.such.jwt")))
    issuing = auth_pb2.IssueServiceTokenRequest(workload="chat", credential=CREDENTIALS["chat"], audience="auth")
    service_token = (await tokens.IssueServiceToken(issuing)).token
    await auth.Logout(auth_pb2.LogoutRequest(all_sessions=True), metadata=bearer(again.access_token))
    pairs = [secret for one in (pair, again, refreshed) for secret in (one.access_token, one.refresh_token)]
    return [*pairs, PASSWORD, wrong, "no-such-token", "no.such.jwt", CREDENTIALS["chat"], service_token, name]
