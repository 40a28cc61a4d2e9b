"""`python -m simulator`: what it prints, how it refuses, how it ends."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from openai import APIConnectionError, AsyncOpenAI

from simulator.__main__ import main


@asynccontextmanager
async def process(*arguments: str, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "simulator",
        *arguments,
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def test_it_says_what_it_is_and_does_not_wait_for_open_streams_to_end() -> None:
    async with process("--port", "0", SIMULATOR_CONTROL="1") as started:
        assert started.stdout
        assert started.stderr
        banner = (await asyncio.wait_for(started.stdout.readline(), 10)).decode()
        assert banner.startswith("SIMULATOR with its control door open: rule-based")
        async with AsyncOpenAI(api_key="k", base_url=banner.split()[-1], max_retries=0, timeout=5) as client:
            stream = await client.responses.create(model="sim-10000-10-0", input="go", stream=True)
            stalled = await client.responses.create(model="sim-5-0-0-stall-1", input="go", stream=True)
            await client.responses.create(model="sim-10000-10-0", input="go", background=True)
            await anext(aiter(stream))
            await anext(aiter(stalled))
            started.send_signal(signal.SIGTERM)
            # The streams last for a hundred seconds.
            assert await asyncio.wait_for(started.wait(), 15) == 0
            try:
                types = [event.type async for event in stream]
            except APIConnectionError:
                types = []
            assert "response.completed" not in types
            await stalled.close()
        assert await started.stderr.read() == b""


def test_bad_settings_are_named_all_at_once_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["simulator"])
    monkeypatch.setenv("SIMULATOR_PORT", "seven")
    monkeypatch.setenv("SIMULATOR_INTERVAL_MS", "-1")
    assert main() == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in told] == ["SIMULATOR_PORT", "SIMULATOR_INTERVAL_MS"]


def test_a_busy_port_is_one_line_and_exit_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["simulator", "--port", str(port)])
        assert main() == 1
    assert capsys.readouterr().err == f"simulator: cannot listen on 127.0.0.1:{port}: Address already in use\n"
