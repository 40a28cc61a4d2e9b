"""An EventSource that is not ours (npm's `eventsource`), behind a proxy that cuts it: it follows, resumes, and stops."""

import asyncio
import json
import shutil
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Client, Event, Suite, check_sequence, generation_of, text_of
from tests.e2e.test_resuming import begun

SCRIPT = Path(__file__).with_name("event_source.mjs")
PACKAGE = "eventsource@4.1.0"
INSTALL_SECONDS, FOLLOW_SECONDS = 60.0, 40.0
CUT_BYTES = 3000


@pytest.fixture(scope="module")
def node_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="parley-node-") as folder:
        yield Path(folder)


@pytest.fixture
async def installed(node_folder: Path) -> Path:
    """The script beside its package; skips by name where there is no node, or no registry to have the package from."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("no node on this machine")
    arguments = ("install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(node_folder), PACKAGE)
    install = await asyncio.create_subprocess_exec(npm, *arguments, stdout=PIPE, stderr=PIPE)
    with suppress(TimeoutError):
        await asyncio.wait_for(install.communicate(), INSTALL_SECONDS)
    if install.returncode is None:
        install.kill()
        await install.wait()
    if install.returncode != 0:
        pytest.skip(f"npm cannot install {PACKAGE} here")
    script = node_folder / SCRIPT.name
    script.write_text(SCRIPT.read_text())
    return script


@asynccontextmanager
async def cutting_proxy(port: int, *, cuts: int) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A TCP proxy that breaks its first connections after some bytes of the answer; its port, and the requests' heads."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head)
        limit = CUT_BYTES if len(heads) <= cuts else None
        upstream, request = await asyncio.open_connection("127.0.0.1", port)
        # One request a connection, so that each of the reader's is seen here.
        request.write(head.replace(b"connection: keep-alive", b"connection: close"))
        sent = 0
        with suppress(ConnectionError):
            while (limit is None or sent < limit) and (chunk := await upstream.read(500)):
                writer.write(chunk)
                await writer.drain()
                sent += len(chunk)
        request.close()
        writer.transport.abort() if limit is not None else writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heads


async def test_an_event_source_with_a_cookie_follows_is_cut_resumes_and_stops(
    suite: Suite, client: Client, installed: Path
) -> None:
    first = await begun(client, 1, model="sim-80-20-0")
    path = f"/api/v1/chat/generations/{generation_of(first)}/events"
    cookie = f"session_token={client.tokens['access_token']}"
    async with cutting_proxy(suite.port("EDGE"), cuts=1) as (port, heads):
        told = await _followed(installed, f"http://127.0.0.1:{port}{path}", cookie)
    messages = [Event(int(one["id"]), one["data"]) for one in told[:-1]]
    check_sequence(messages)
    assert text_of(messages) == " ".join(f"tok{number}" for number in range(80))
    assert told[-1] == {"closed": 204}
    assert len(heads) == 3  # cut, whole, no content
    assert b"last-event-id" not in heads[0].lower()
    assert f"last-event-id: {len(messages)}".encode() in heads[2].lower()


async def _followed(script: Path, url: str, cookie: str) -> list[dict[str, Any]]:
    node = await asyncio.create_subprocess_exec(
        "node", str(script), url, cookie, cwd=script.parent, stdout=PIPE, stderr=PIPE
    )
    try:
        output, errors = await asyncio.wait_for(node.communicate(), FOLLOW_SECONDS)
    finally:
        if node.returncode is None:
            node.kill()
            await node.wait()
    assert node.returncode == 0, errors.decode()
    return [json.loads(line) for line in output.decode().splitlines()]
