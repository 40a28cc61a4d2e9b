"""`python -m services.memory` as a process of its own."""

import asyncio
import os
import signal
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from services.memory.settings import MemorySettings
from services.runtime.settings import read_settings
from suite.databases import ServiceDatabase
from tests.memory.conftest import NO_PROVIDER
from tests.memory.service import eventually
from tests.ports import free_port


async def _run(**variables: str) -> asyncio.subprocess.Process:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.memory",
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip


async def test_it_serves_without_redis_and_auth_and_stops_in_order(database: ServiceDatabase, tmp_path: Path) -> None:
    credential = tmp_path / "credential"
    credential.write_text("secret-of-memory")
    port, metrics_port = free_port(), free_port()
    process = await _run(
        DATABASE_URL=database.url,
        REDIS_URL=f"unix://{tmp_path}/nobody.sock",
        LISTEN_ADDRESS=f"127.0.0.1:{port}",
        METRICS_ADDRESS=f"127.0.0.1:{metrics_port}",
        AUTH_TARGET="ipv4:127.0.0.1:1",
        WORKLOAD_CREDENTIAL_FILE=str(credential),
        OPENAI_API_KEY="secret-of-provider",
        OPENAI_BASE_URL=NO_PROVIDER,
        DRAIN_WAIT_SECONDS="0",
        LOG_FORMAT="json",
    )
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = health_pb2.HealthCheckRequest(service="parley.memory.v1.MemoryService")
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            answer = await check(request, wait_for_ready=True, timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        url = f"http://127.0.0.1:{metrics_port}/metrics"
        async for _ in eventually():
            with await asyncio.to_thread(urllib.request.urlopen, url, timeout=5) as page:
                if b"parley_memory_working_set" in page.read():
                    break
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, output
    assert b"server.stopped" in output
    assert b"secret-of-" not in output
    assert b"Traceback" not in output


def test_bad_settings_are_all_named_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("REDIS_TIMEOUT_SECONDS", "soon")
    monkeypatch.setenv("WORKING_SET_TTL_SECONDS", "0")
    monkeypatch.setenv("REDIS_URL", "http://localhost")
    with pytest.raises(SystemExit) as ended:
        read_settings(MemorySettings)
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for variable in ("DATABASE_URL", "REDIS_URL", "AUTH_TARGET", "REDIS_TIMEOUT_SECONDS", "WORKING_SET_TTL_SECONDS"):
        assert variable in line


def test_a_default_budget_above_the_greatest_is_refused() -> None:
    with pytest.raises(ValueError, match="DEFAULT_CONTEXT_TOKENS must not be greater than GREATEST_CONTEXT_TOKENS"):
        MemorySettings.model_validate(
            {
                "listen_address": "127.0.0.1:0",
                "metrics_address": "127.0.0.1:0",
                "database_url": "postgresql:///x",
                "redis_url": "redis://x",
                "auth_target": "x",
                "workload_credential_file": "x",
                "openai_api_key": "x",
                "default_context_tokens": 5,
                "greatest_context_tokens": 4,
            }
        )
