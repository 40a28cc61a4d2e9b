"""A connection to one MCP server for one turn, opened when it is first needed.

Owns the life of the session: a task of its own holds it, since its parts must be closed by the task that opened them.
Invariants: opening, asking and closing each have a deadline; whatever a server does, the one who asks gets ServerFailed.
"""

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import anyio
import mcp_types as types
import structlog
from mcp.client.client import Client
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from services.chat.mcp.addresses import Addresses
from services.chat.mcp.transport import MOST_ANSWER_BYTES, READ_SECONDS, open_http
from services.chat.options import McpServerChoice

log = structlog.get_logger(__name__)

T = TypeVar("T")

MOST_TOOLS: Final = 128
_MOST_PAGES: Final = 8
_MOST_STARTS: Final = 2
_CLOSE_SECONDS: Final = 2.0
_INFO: Final = types.Implementation(name="parley", version="1")

Start = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class ServerFailed(Exception):
    """The server did not answer, or not as MCP has it. The text is for the model and the user."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How servers are reached: what all connections of a process share."""

    addresses: Addresses
    certificates: ssl.SSLContext
    connect_seconds: float


class Connection:
    """One server. `start` makes the task that holds the session and answers for its end."""

    def __init__(self, server: McpServerChoice, reach: Reach, start: Start) -> None:
        self._server = server
        self._reach = reach
        self._start = start
        self._starts = 0
        self._session: asyncio.Future[ClientSession] | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def tools(self) -> list[types.Tool]:
        """What the server offers, 128 tools at most. Raises ServerFailed."""
        session = await self._opened()
        found: list[types.Tool] = []
        cursor: str | None = None
        for _ in range(_MOST_PAGES):
            listed = await self._asked(session.list_tools(params=types.PaginatedRequestParams(cursor=cursor)))
            found += listed.tools
            cursor = listed.next_cursor
            if not cursor or len(found) >= MOST_TOOLS:
                break
        return found[:MOST_TOOLS]

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> types.CallToolResult:
        """Calls a tool. Raises ServerFailed. The caller bounds its time; 120 s is the most."""
        session = await self._opened()
        params = types.CallToolRequestParams(name=tool, arguments=dict(arguments))
        # Not `session.call_tool`, which would check the result by a schema of the server's own.
        return await self._asked(
            session.send_request(
                types.CallToolRequest(params=params), types.CallToolResult, request_read_timeout_seconds=READ_SECONDS
            )
        )

    def close(self) -> None:
        """Lets the session end, in its own task and within 2 seconds."""
        self._closing.set()

    async def _opened(self) -> ClientSession:
        if self._session is None or self._task is None or self._task.done():
            if self._starts >= _MOST_STARTS:
                raise self._failed("is not reached any more")
            self._starts += 1
            self._session = asyncio.get_running_loop().create_future()
            self._task = self._start(self._hold(self._session))
        return await asyncio.shield(self._session)

    async def _hold(self, session: asyncio.Future[ClientSession]) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as life, AsyncExitStack() as stack:
                async with asyncio.timeout(self._reach.connect_seconds):
                    session.set_result((await self._connected(stack)).session)
                await self._closing.wait()
                life.reschedule(loop.time() + _CLOSE_SECONDS)
        except Exception as error:  # noqa: BLE001 - whatever the package makes of what a stranger sent: it is that server's
            log.warning("mcp.connection_failed", server_label=self._server.label, error=_names(error))
        finally:
            if not session.done():
                session.set_exception(self._failed("does not answer"))
                session.exception()  # retrieved, whether or not anybody still waits

    async def _connected(self, stack: AsyncExitStack) -> Client:
        reach, server = self._reach, self._server
        http = open_http(
            reach.addresses, reach.certificates, headers=dict(server.headers), connect_seconds=reach.connect_seconds
        )
        await stack.enter_async_context(http)
        transport = streamable_http_client(server.url, http_client=http, max_sse_event_size=MOST_ANSWER_BYTES)
        return await stack.enter_async_context(Client(transport, client_info=_INFO, cache=None))

    async def _asked(self, answer: Coroutine[Any, Any, T]) -> T:
        try:
            return await answer
        except MCPError as error:
            if error.code == types.CONNECTION_CLOSED:
                self._session = None  # the next one who asks opens another
                raise self._failed("is not reached any more") from error
            raise self._failed(f"refuses: {error.message}") from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise self._failed("is not reached any more") from error
        except (ValidationError, RuntimeError, ValueError) as error:
            raise self._failed("answers in a way that is not MCP's") from error

    def _failed(self, what: str) -> ServerFailed:
        return ServerFailed(f"The MCP server {self._server.label} {what}")


def _names(error: BaseException) -> str:
    """The types of what went wrong: texts may quote what the server sent."""
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(_names(one) for one in error.exceptions)
    return type(error).__name__
