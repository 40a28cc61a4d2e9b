"""MCP servers for tests: a real one of the mcp package on a socket, and strangers that speak HTTP by hand."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import CallToolResult, ImageContent, ResourceLink, TextContent

SECRET = "canary-9f2c"


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """The root URL of an ASGI app on a socket."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=1)
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@dataclass
class Seen:
    """What a server was asked: HTTP headers of each request, arguments of each call."""

    headers: list[dict[str, str]] = field(default_factory=list)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


def tools_server(seen: Seen) -> MCPServer:
    """A server with tools of every kind of answer."""
    server = MCPServer("notes")

    @server.tool(description="Adds two numbers")
    async def add(a: int, b: int) -> str:
        seen.calls.append(("add", {"a": a, "b": b}))
        return str(a + b)

    @server.tool()
    async def fail() -> str:
        raise ToolError("the notes are closed")

    @server.tool()
    async def long(length: int) -> str:
        return "x" * length

    @server.tool()
    async def mixed() -> list[Any]:
        return [
            TextContent(text="two things:\x00"),
            ImageContent(data="aGVsbG8=", mime_type="image/png"),
            ResourceLink(name="report", uri="https://notes.example/1", description="of May"),
        ]

    @server.tool()
    async def structured() -> dict[str, int]:
        return {"count": 3}

    @server.tool()
    async def huge() -> CallToolResult:
        return CallToolResult(content=[], structured_content={"count": 10**30})

    @server.tool()
    async def slow(context: Context) -> str:
        await context.report_progress(1, 2)
        await asyncio.sleep(30)
        return "late"

    return server


@asynccontextmanager
async def running_mcp(server: MCPServer, seen: Seen, *, stateless: bool = False) -> AsyncIterator[str]:
    """The URL of a real MCP server."""
    app = server.streamable_http_app(
        stateless_http=stateless, transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False)
    )

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        await app(scope, receive, send)

    async with serving(noting) as url:
        yield f"{url}/mcp"


@dataclass
class Request:
    """One HTTP request as a stranger received it."""

    method: str
    headers: dict[str, str]
    body: Any


Handler = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def stranger(handler: Handler) -> AsyncIterator[tuple[str, list[Request]]]:
    """The URL of a server that does with each request what `handler` does, and what it was asked."""
    requests: list[Request] = []
    open_connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        open_connections.add(task)
        task.add_done_callback(open_connections.discard)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            request = Request(head[0].split()[0], headers, orjson.loads(body) if body else None)
            requests.append(request)
            await handler(request, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp", requests
    finally:
        server.close()
        for task in open_connections:
            task.cancel()
        await asyncio.gather(*open_connections, return_exceptions=True)


def answer(writer: asyncio.StreamWriter, request: Request, result: Any) -> None:
    """A JSON-RPC result, or 202 for a notification."""
    if request.body is None or "id" not in request.body:
        writer.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        return
    send_json(writer, {"jsonrpc": "2.0", "id": request.body["id"], "result": result})


def send_json(writer: asyncio.StreamWriter, body: Any, *, status: str = "200 OK", headers: str = "") -> None:
    content = orjson.dumps(body)
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
    writer.write(f"{head}{headers}connection: close\r\n\r\n".encode() + content)


def shake_hands(request: Request, writer: asyncio.StreamWriter) -> bool:
    """Answers what comes before the tools; whether it did."""
    method = (request.body or {}).get("method")
    if method == "server/discover":
        error = {"jsonrpc": "2.0", "id": request.body["id"], "error": {"code": -32601, "message": "no such method"}}
        send_json(writer, error)
    elif method == "initialize":
        info = {"name": "stranger", "version": "1"}
        answer(writer, request, {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info})
    elif method is None or "id" not in request.body:
        answer(writer, request, None)
    else:
        return False
    return True


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object"}, **fields}
