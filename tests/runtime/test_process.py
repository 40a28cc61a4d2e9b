"""A service as a process: its settings, its log, its signals."""

import asyncio
import json
import os
import signal
import sys
import urllib.request
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from services.runtime import migrations, process
from services.runtime.settings import read_settings
from suite.databases import ServiceDatabase
from tests.issuer import Issuer
from tests.ports import free_port
from tests.runtime import probe
from tests.runtime.probe_process import ProbeSettings, main
from tests.runtime.status import refused

SECRETS = {"DATABASE_URL": "mysql://me:a-database-secret@nowhere/x"}
GOOD = {
    "LISTEN_ADDRESS": "127.0.0.1:0",
    "METRICS_ADDRESS": "127.0.0.1:0",
    "DATABASE_URL": "postgresql://me:secret@/db?host=/nowhere",
    "AUTH_TARGET": "ipv4:127.0.0.1:1",
    "WORKLOAD_CREDENTIAL_FILE": "/nowhere",
}


async def _run(environment: Mapping[str, str], *arguments: str) -> tuple[int, str, str]:
    begun = await _begin(environment, *arguments)
    out, err = await asyncio.wait_for(begun.communicate(), 30)
    assert begun.returncode is not None
    return begun.returncode, out.decode(), err.decode()


async def _begin(environment: Mapping[str, str], *arguments: str) -> Process:
    paths = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.runtime.probe_process",
        *arguments,
        env={**paths, **environment},
        stdout=PIPE,
        stderr=PIPE,
    )


async def test_every_missing_and_malformed_variable_is_named_in_one_line_and_no_value() -> None:
    bad = {
        "METRICS_ADDRESS": "here:99999",
        "DRAIN_SECONDS": "soon",
        "LOG_FORMAT": "xml-value",
        "LOG_LEVEL": "loud",
        **SECRETS,
    }
    missing = {"LISTEN_ADDRESS", "AUTH_TARGET", "WORKLOAD_CREDENTIAL_FILE"}
    code, out, err = await _run(bad)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("bad settings: ")
    assert all(f"{name}: " in err for name in [*bad, *missing]), err
    assert not any(value in err for value in bad.values())
    assert "secret" not in err


def test_a_list_that_is_not_json_is_named_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {**GOOD, "NAMES": "not-json-but-a-secret"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        read_settings(ProbeSettings)
    err = capsys.readouterr().err
    assert (ended.value.code, err.count("\n"), "secret" in err, '"names"' in err) == (2, 1, False, True)


def test_an_argument_is_told_that_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["probe", "dance"])
    with pytest.raises(SystemExit, match=r"usage: python -m services\.probe; its settings are environment variables"):
        process.run("probe", ProbeSettings, main)


def test_a_migration_without_its_url_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DATABASE_URL", GOOD["DATABASE_URL"])
    monkeypatch.setattr(sys, "argv", ["migrations", "chat"])
    with pytest.raises(SystemExit) as ended:
        migrations.main()
    assert (ended.value.code, capsys.readouterr().err) == (2, "bad settings: MIGRATION_DATABASE_URL: Field required\n")


@dataclass
class Running:
    """The process, a client of it, and the lines that it logged."""

    process: Process
    client: probe.Client
    metrics_address: str
    lines: list[dict[str, Any]] = field(default_factory=list)
    raw: str = ""

    async def line(self, event: str, **fields: Any) -> dict[str, Any]:
        """The next line of this event; reads on until it comes."""
        while True:
            found = await self._read()
            if found.get("event") == event and fields.items() <= found.items():
                return found

    async def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        raw = await asyncio.wait_for(self.process.stdout.readline(), 20)
        assert raw, "the process ended"
        self.raw += raw.decode()
        line: dict[str, Any] = json.loads(raw)
        self.lines.append(line)
        return line


@pytest.fixture
async def running(scratch_database: ServiceDatabase) -> AsyncIterator[Running]:
    own = {"LISTEN_ADDRESS": f"127.0.0.1:{free_port()}", "METRICS_ADDRESS": f"127.0.0.1:{free_port()}"}
    environment = {**GOOD, **own, "DATABASE_URL": scratch_database.url, "LOG_FORMAT": "json", "DRAIN_SECONDS": "5"}
    begun = await _begin(environment)
    async with grpc.aio.insecure_channel(own["LISTEN_ADDRESS"]) as channel:
        made = Running(begun, probe.Client(channel, Issuer(), 0), own["METRICS_ADDRESS"])
        await made.line("server.started", address=own["LISTEN_ADDRESS"])
        yield made
    if begun.returncode is None:
        begun.kill()
        await begun.wait()


async def test_the_log_is_json_and_holds_no_secret_of_a_call(running: Running) -> None:
    token, secret = "Bearer a-users-token", "the-users-words"
    calls = [("fault", "rpc.faulted"), ("query", "rpc.faulted"), ("group", "rpc.faulted"), ("lib", "a library failed")]
    for number, (name, event) in enumerate(calls):
        metadata = (("authorization", token), ("x-request-id", f"log-{number}"))
        call = running.client.call("ForAnybody", probe.request(text=secret, name=name), metadata)
        if name == "lib":
            await call
        else:
            assert secret not in (await refused(call)).everything()
        line = await running.line(event)
        assert (line["service"], line["request_id"], line["level"]) == ("probe", f"log-{number}", "error")
        assert line["exception"][0]["frames"]
        assert "timestamp" in line
        await running.line("rpc.answered", request_id=f"log-{number}")
    assert "locals" not in running.raw
    assert "a-users-token" not in running.raw
    assert secret not in running.raw
    # The first line of an exception's text is kept: it says what went wrong.
    values = [stack["exc_value"] for line in running.lines for stack in line.get("exception", [])]
    assert (values[0], values[-1]) == ("a fault", "")
    assert "a group (1 sub-exception)" in values


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own
        return str(answer.read().decode())


async def test_a_metrics_port_that_is_taken_is_said_clearly(running: Running) -> None:
    code, _, err = await _run({**GOOD, "METRICS_ADDRESS": running.metrics_address})
    told = f"probe cannot serve: cannot serve metrics on {running.metrics_address}: is the port taken?"
    assert (code, err.splitlines()) == (1, [told])


async def test_metrics_are_served_and_sigterm_lets_a_call_finish(running: Running) -> None:
    call = running.client.call("ForAnybody", probe.request(name="slow"))
    await asyncio.sleep(0.2)
    metrics = await asyncio.to_thread(_get, f"http://{running.metrics_address}/metrics")
    assert 'parley_rpc_open_calls{method="/probe.v1.ProbeService/ForAnybody"} 1.0' in metrics
    running.process.send_signal(signal.SIGTERM)
    assert (await call).text == "done"
    assert await asyncio.wait_for(running.process.wait(), 20) == 0
    assert running.process.stdout is not None
    assert running.process.stderr is not None
    rest = [json.loads(line) for line in (await running.process.stdout.read()).splitlines()]
    events = [line["event"] for line in rest]
    assert events[-1] == "server.stopped"
    assert "server.stopping" in events
    assert await running.process.stderr.read() == b""
