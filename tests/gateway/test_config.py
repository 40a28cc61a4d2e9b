"""Settings and the configuration made of them, checked by Envoy itself."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import Message
from pydantic import ValidationError

from gateway.config import write
from gateway.contract import DESCRIPTORS, ContractError, exposed_rpcs, read_descriptors
from gateway.routes import route_configuration
from gateway.settings import Address, EdgeSettings
from parley.chat.v1 import chat_pb2
from parley.options.v1 import options_pb2
from tests.gateway.backend import Script, Service, endpoints_of
from tests.gateway.edge import ENVOY, running_edge
from tests.issuer import Issuer

ODD_SETTINGS = [
    {},
    {
        "EDGE_ADDRESS": "0.0.0.0:80",
        "EDGE_ADMIN_ADDRESS": "[::1]:9000",
        "AUTH_ENDPOINTS": "10.0.0.1:50051,10.0.0.2:50051",
        "CHAT_ENDPOINTS": "chat.default.svc:50061, chat-2:50061",
        "MEMORY_ENDPOINTS": "[::1]:50071",
        "CORS_ALLOWED_ORIGINS": "https://a.example.com,http://localhost:3000",
        "ALLOWED_HOSTS": "api.example.com,*.example.org",
        "EDGE_ACCESS_LOG": "json",
        "REQUEST_TIMEOUT_SECONDS": "600",
        "MAX_BODY_BYTES": "262144",
        "EDGE_CONCURRENCY": "16",
        "LIMITS_ENABLED": "false",
        "EXTERNAL_TOKENS_ENABLED": "true",
        "EDGE_PROXIES": "2",
    },
    {"CORS_ALLOWED_ORIGINS": "*", "ALLOWED_HOSTS": "*"},
]
BAD_SETTINGS = [
    ("EDGE_ADDRESS", "8080"),
    ("EDGE_ADDRESS", "127.0.0.1:99999"),
    ("EDGE_ADMIN_ADDRESS", "127.0.0.1:8080"),
    ("AUTH_ENDPOINTS", ""),
    ("CHAT_ENDPOINTS", "http://chat:1"),
    ("CORS_ALLOWED_ORIGINS", "app.example.com"),
    ("CORS_ALLOWED_ORIGINS", "https://app.example.com/"),
    ("ALLOWED_HOSTS", "api.example.com:443"),
    ("ALLOWED_HOSTS", "a,a"),
    ("REQUEST_TIMEOUT_SECONDS", "120"),
    ("STREAM_IDLE_TIMEOUT_SECONDS", "15"),
    ("MAX_BODY_BYTES", "99999999999"),
    ("EDGE_ACCESS_LOG", "verbose"),
    ("JWKS_REFRESH_SECONDS", "301"),
]


async def run(*command: str | Path, variables: dict[str, str]) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


@pytest.mark.parametrize("variables", ODD_SETTINGS)
async def test_envoy_accepts_what_the_command_writes(tmp_path: Path, variables: dict[str, str]) -> None:
    code, output = await run(sys.executable, "-m", "gateway", "--output", tmp_path, variables=variables)
    assert code == 0, output
    assert output.strip() == str(tmp_path / "envoy.yaml")
    code, output = await run(ENVOY, "--mode", "validate", "-c", tmp_path / "envoy.yaml", variables={})
    assert code == 0, output
    assert output.rstrip().endswith("OK")


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS)
def test_bad_settings_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        EdgeSettings()
    (fault,) = caught.value.errors()
    assert not fault["loc"] or str(fault["loc"][0]).upper() == name


async def test_command_names_every_bad_variable_at_once(tmp_path: Path) -> None:
    variables = {"EDGE_ADDRESS": "nowhere", "AUTH_ENDPOINTS": "x"}
    code, output = await run(sys.executable, "-m", "gateway", "--output", tmp_path, variables=variables)
    assert code == 2
    assert [line.split(":")[0] for line in output.splitlines()] == ["EDGE_ADDRESS", "AUTH_ENDPOINTS"]
    assert not (tmp_path / "envoy.yaml").exists()


def test_names_are_resolved_and_addresses_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHAT_ENDPOINTS", "chat:50061")
    config = yaml.safe_load(write(EdgeSettings(), tmp_path).read_text(encoding="utf-8"))
    kinds = {cluster["name"]: cluster["type"] for cluster in config["static_resources"]["clusters"]}
    assert (kinds["auth"], kinds["chat"]) == ("STATIC", "STRICT_DNS")


def test_each_filter_has_its_reason_above_it(tmp_path: Path) -> None:
    lines = write(EdgeSettings(), tmp_path).read_text(encoding="utf-8").splitlines()
    chain = [number for number, line in enumerate(lines) if line.startswith("          - name: ") and "http" in line]
    assert len(chain) >= 8
    assert all(lines[number - 1].strip().startswith("# ") for number in chain)


def test_writing_twice_gives_the_same_files(tmp_path: Path) -> None:
    settings = EdgeSettings(edge_address=Address("127.0.0.1", 1234))
    first = {path: path.read_bytes() for path in write(settings, tmp_path).parent.rglob("*") if path.is_file()}
    second = {path: path.read_bytes() for path in write(settings, tmp_path).parent.rglob("*") if path.is_file()}
    assert first == second
    assert len(first) >= 9


def test_a_folder_too_deep_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="choose a folder with a shorter path"):
        write(EdgeSettings(), tmp_path / ("deep" * 30))


async def test_access_log_is_json_without_queries_and_secrets(services: dict[str, Service], issuer: Issuer) -> None:
    async with running_edge(endpoints_of(services), edge_access_log="json") as edge, edge.client() as client:
        token = issuer.user_token("u")
        await client.get("/nowhere?secret=1", headers={"authorization": f"Bearer {token}", "x-request-id": "abc"})
        log = edge.directory / "envoy.log"
        async with asyncio.timeout(5):
            # Another process writes it, in its own time.
            while b'"/nowhere"' not in log.read_bytes():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        text = log.read_text(encoding="utf-8")
    (line,) = [json.loads(line) for line in text.splitlines() if '"/nowhere"' in line]
    assert (line["request_id"], line["status"], line["method"]) == ("abc", 404, "GET")
    assert "secret" not in text
    assert token not in text


async def test_draining_lets_open_streams_end(
    services: dict[str, Service], script: Script, signed_in: dict[str, str]
) -> None:
    drained = asyncio.Event()

    async def events(_request: Any, _context: Any) -> AsyncIterator[Message]:
        yield chat_pb2.CompletionEvent(sequence=1)
        await asyncio.wait_for(drained.wait(), timeout=10)
        yield chat_pb2.CompletionEvent(sequence=2)

    script.streams["StreamCompletion"] = events
    async with running_edge(endpoints_of(services)) as edge, edge.client() as client:
        await edge.until_verifies(signed_in)
        async with client.stream("POST", "/api/v1/chat/stream", json={}, headers=signed_in) as response:
            chunks = response.aiter_text()
            assert (await anext(chunks)).startswith("id: 1\n")
            await client.post(f"{edge.admin_url}/drain_listeners?graceful")
            await edge.until_refuses()
            drained.set()
            assert "".join([chunk async for chunk in chunks]).startswith("id: 2\n")


def test_no_exposed_rpc_is_for_services() -> None:
    rpcs = exposed_rpcs(read_descriptors(DESCRIPTORS))
    for_people = {options_pb2.ACCESS_PUBLIC, options_pb2.ACCESS_USER, options_pb2.ACCESS_ADMIN}
    assert {rpc.access for rpc in rpcs} <= for_people | {options_pb2.ACCESS_PROVIDER}
    services = {rpc.full_service for rpc in rpcs}
    assert services == {
        "parley.auth.v1.AuthService",
        "parley.auth.v1.UserService",
        "parley.chat.v1.AdminService",
        "parley.chat.v1.ChatService",
        "parley.chat.v1.ConversationService",
        "parley.chat.v1.McpServerService",
        "parley.chat.v1.TaskService",
        "parley.memory.v1.MemoryService",
        "parley.sms.v1.CallService",
        "parley.sms.v1.HistoryService",
        "parley.sms.v1.SmsService",
    }


def _planted(limit: options_pb2.Limit.ValueType, *, rpc: str) -> FileDescriptorSet:
    """The contract with another limit on one RPC of auth."""
    descriptors = read_descriptors(DESCRIPTORS)
    (method,) = (
        method
        for file in descriptors.file
        if file.package == "parley.auth.v1"
        for service in file.service
        for method in service.method
        if method.name == rpc
    )
    method.options.Extensions[options_pb2.limit] = limit
    return descriptors


@pytest.mark.parametrize(
    ("rpc", "limit"),
    [
        ("Login", options_pb2.LIMIT_UNSPECIFIED),
        ("Login", options_pb2.LIMIT_GENERAL),
        ("GetMe", options_pb2.LIMIT_SIGN_IN),
    ],
)
def test_a_limit_that_does_not_fit_who_calls_is_refused(rpc: str, limit: options_pb2.Limit.ValueType) -> None:
    with pytest.raises(ContractError, match=f"{rpc} needs a limit"):
        exposed_rpcs(_planted(limit, rpc=rpc))


def _routes(directory: Path, limit: options_pb2.Limit.ValueType = options_pb2.LIMIT_UNSPECIFIED) -> list[Any]:
    rpcs = exposed_rpcs(_planted(limit, rpc="GetMe"))
    routes: list[Any] = route_configuration(EdgeSettings(), rpcs, directory, "1")["virtual_hosts"][0]["routes"]
    return routes


def test_what_is_not_limited_by_contract_has_no_limit_on_its_routes(tmp_path: Path) -> None:
    limited = {
        path: {"limit_by_address", "limit_by_user"} & set(route["typed_per_filter_config"])
        for route in _routes(tmp_path, options_pb2.LIMIT_NONE)
        if (path := route["match"].get("path", "")).startswith("/api/v1/auth/") and "route" in route
    }
    # What is traded for an identity is counted all the same.
    assert limited["/api/v1/auth/me"] == {"limit_by_address"}
    assert limited["/api/v1/auth/login"] == {"limit_by_address"}
    assert limited["/api/v1/auth/verify"] == {"limit_by_address", "limit_by_user"}


def test_every_route_that_trades_credentials_counts_them_by_address_and_no_other_does(tmp_path: Path) -> None:
    classes: dict[bool, set[str]] = {True: set(), False: set()}
    for route in _routes(tmp_path):
        per_filter = route["typed_per_filter_config"]
        rule = per_filter.get("limit_by_address", {"rate_limits": []})
        classes["exchange" in per_filter] |= {json.dumps(limit["actions"][0]) for limit in rule["rate_limits"]} or {"none"}
        # Envoy counts nothing on a route that goes nowhere.
        assert "exchange" not in per_filter or "route" in route
    mark = {"key": "parley", "path": [{"key": "credentials"}]}
    traded = {"metadata": {"descriptor_key": "limit", "metadata_key": mark, "source": "DYNAMIC"}}
    assert classes[True] == {json.dumps(traded)}
    assert "none" in classes[False]
    assert not classes[True] & classes[False]
