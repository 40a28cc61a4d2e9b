"""A real Envoy in front of the scripted services, and the clients that talk to it."""

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from gateway.config import write
from gateway.settings import Address, EdgeSettings
from tests.ports import free_ports

ENVOY = Path(sys.executable).parent / "envoy"
START_SECONDS = 15
ARGUMENTS = ["--disable-hot-restart", "--concurrency", "1", "--drain-time-s", "1", "--file-flush-interval-msec", "100"]


@dataclass(frozen=True)
class Edge:
    """An Envoy that runs."""

    port: int
    admin_port: int
    directory: Path
    has_tls: bool = False

    @property
    def url(self) -> str:
        return f"{'https' if self.has_tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    @asynccontextmanager
    async def client(self, *, http2: bool = False, connections: int = 10) -> AsyncIterator[httpx2.AsyncClient]:
        # Without TLS there is nothing to verify, and reading the certificates of the world takes longer than a test.
        options: dict[str, Any] = {"http1": not http2, "http2": http2, "verify": False, "trust_env": False}
        options["limits"] = httpx2.Limits(max_connections=connections)
        async with httpx2.AsyncClient(base_url=self.url, timeout=20, **options) as client:
            yield client

    async def until_answers(self, path: str, status: int) -> None:
        """Waits until a path answers with a status."""
        async with self.client() as client, asyncio.timeout(START_SECONDS):
            while True:
                try:
                    if (await client.get(path)).status_code == status:
                        return
                except httpx2.TransportError:
                    pass
                await asyncio.sleep(0.02)

    async def until_verifies(self, headers: Mapping[str, str]) -> None:
        """Waits until the edge has the keys: before that, a good token is met with 503."""
        async with self.client() as client, asyncio.timeout(START_SECONDS):
            while True:
                if (await client.get("/api/v1/auth/me", headers=headers)).status_code != 503:
                    return
                await asyncio.sleep(0.02)

    async def until_refuses(self) -> None:
        """Waits until new connections are refused."""
        async with asyncio.timeout(START_SECONDS):
            while True:
                try:
                    _reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except ConnectionRefusedError:
                    return
                writer.close()
                await asyncio.sleep(0.05)

    async def raw(self, request: bytes) -> tuple[int, dict[str, str], Any]:
        """Sends bytes as they are; status, headers and JSON body of the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        async with asyncio.timeout(10):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
        writer.close()
        return int(head[0].split()[1]), headers, json.loads(body) if body else None


@asynccontextmanager
async def running_edge(endpoints: Mapping[str, tuple[Address, ...]], **settings: Any) -> AsyncIterator[Edge]:
    """Envoy with these endpoints, on ports of its own; it ends with the block."""
    port, admin_port = free_ports(2)
    values: dict[str, Any] = {f"{name}_endpoints": where for name, where in endpoints.items()}
    # Not validated, on purpose: a test has less patience than an operator may have.
    edge_settings = EdgeSettings().model_copy(
        update={
            "edge_address": Address("127.0.0.1", port),
            "edge_admin_address": Address("127.0.0.1", admin_port),
            "limits_enabled": False,
            **values,
            **settings,
        }
    )
    with tempfile.TemporaryDirectory(prefix="parley-edge-") as folder:
        directory = Path(folder)
        config = write(edge_settings, directory)
        with (directory / "envoy.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(str(ENVOY), "-c", str(config), "-l", "warning", *ARGUMENTS),
                stdout=log,
                stderr=log,
            )
            edge = Edge(port, admin_port, directory, edge_settings.has_tls)
            try:
                await edge.until_answers("/api", 200)
                yield edge
            finally:
                process.terminate()
                await process.wait()


def error_of(response: httpx2.Response) -> tuple[int, int, str]:
    """Status, code and reason of an error, which must be in the one shape."""
    body = response.json()
    assert response.headers["content-type"] == "application/json"
    assert set(body) == {"code", "message", "details"}, body
    assert body["message"]
    info = body["details"][0]
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert info["domain"] == "parley"
    assert not [name for name in response.headers if name.startswith("grpc-")]
    return response.status_code, body["code"], info["reason"]
