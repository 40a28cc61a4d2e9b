"""The tools of a user's MCP servers, for the model.

Owns which servers a turn may use (those that the user keeps and those of the request, whose label wins) and what the model
is told of their tools. Invariants: a server that is broken, slow or hostile costs the turn nothing but its own tools, and
its label is named as degraded; nothing that a server says is believed: names, descriptions, schemas, results are bounded.
"""

import asyncio
import hashlib
import re
import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import mcp_types as types
import orjson
import structlog

from services.chat.mcp.addresses import AddressError, Addresses, is_public
from services.chat.mcp.client import MOST_TOOLS, Connection, Reach, ServerFailed
from services.chat.mcp.parameters import ParametersError, harmless_parameters
from services.chat.mcp.results import clean, cut, text_of
from services.chat.mcp.store import McpServerStore
from services.chat.mcp_settings import McpSettings
from services.chat.model.request import FunctionSpec, HostedMcpServer
from services.chat.options import McpServerChoice, ReplyOptions
from services.chat.tools.tool import Invocation, Toolbox, ToolError
from services.runtime.database import DATABASE_FAILURES

log = structlog.get_logger(__name__)

_ALWAYS: Final = "always"
_KEPT_SERVERS: Final = "mcp_servers"
_LONGEST_NAME: Final = 64
_LONGEST_REAL_NAME: Final = 256
_LONGEST_DESCRIPTION: Final = 1_000
_LONGEST_ERROR: Final = 2_000
# Of what all tools of a turn say of themselves: the model reads it in every round.
_MOST_SPEC_BYTES: Final = 200_000
# What was learned of a server: its tools, or that it does not answer.
_LISTING_SECONDS: Final = 60.0
_FAILURE_SECONDS: Final = 30.0
_MOST_LEARNED: Final = 128
_MOST_LEARNED_BYTES: Final = 32 * 1024 * 1024
_CLOSE_SECONDS: Final = 3.0
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True)
class Listed:
    """A tool as its server offers it, made harmless.

    Its parameters as JSON: what is kept of many servers is a twentieth of what it would be as objects.
    """

    name: str
    description: str
    parameters: bytes
    needs_session: bool
    """Whether the SDK must have listed it in the session that calls it, to send the headers that it asks for."""

    @property
    def size(self) -> int:
        """What it says of itself, about in bytes."""
        return len(self.parameters) + len(self.description)


@dataclass(frozen=True, slots=True)
class McpTool:
    """A tool of a server, under the name that the model knows it by."""

    spec: FunctionSpec
    tool: str
    server_label: str
    needs_approval: bool
    connection: Connection
    is_exactly_once: bool = False

    async def run(self, arguments: Mapping[str, Any], invocation: Invocation) -> str:  # noqa: ARG002
        """The server's answer as text. Raises ToolError; the server knows nothing of the invocation."""
        try:
            result = await self.connection.call(self.tool, arguments)
        except ServerFailed as error:
            raise ToolError(cut(clean(str(error)), _LONGEST_ERROR)) from error
        text = text_of(result)
        if result.is_error:
            raise ToolError(cut(text, _LONGEST_ERROR))
        return text


@dataclass(frozen=True, slots=True)
class _Offer:
    """A tool that may be used, under a name of its own."""

    name: str
    listed: Listed
    server: McpServerChoice
    connection: Connection

    def tool(self) -> McpTool:
        listed, server = self.listed, self.server
        spec = FunctionSpec(self.name, listed.description, orjson.loads(listed.parameters))
        return McpTool(spec, listed.name, server.label, server.approval == _ALWAYS, self.connection)


class _Learned:
    """What is known of servers for a while, 128 and 32 MiB at most; the oldest is forgotten first."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, tuple[float, Sequence[Listed] | None]] = OrderedDict()
        self._bytes = 0

    def look(self, key: int) -> tuple[bool, Sequence[Listed] | None]:
        """Whether anything is known, and what: the tools, or None for a server that does not answer."""
        expire_time, known = self._known.get(key, (0.0, None))
        return expire_time > time.monotonic(), known

    def note(self, key: int, tools: Sequence[Listed] | None) -> None:
        seconds = _FAILURE_SECONDS if tools is None else _LISTING_SECONDS
        _, earlier = self._known.pop(key, (0.0, None))
        self._known[key] = (time.monotonic() + seconds, tools)
        self._bytes += _size_of(tools) - _size_of(earlier)
        while len(self._known) > _MOST_LEARNED or self._bytes > _MOST_LEARNED_BYTES:
            _, (_, forgotten) = self._known.popitem(last=False)
            self._bytes -= _size_of(forgotten)


class McpTools:
    """A ToolSource. Owns the tasks of all connections of the process; close it at the end."""

    def __init__(self, store: McpServerStore, addresses: Addresses, settings: McpSettings) -> None:
        self._store = store
        self._addresses = addresses
        self._is_hosted = settings.mcp_mode == "hosted"
        self._connect_seconds = settings.mcp_connect_timeout_seconds
        self._reach = Reach(addresses, ssl.create_default_context(), settings.mcp_connect_timeout_seconds)
        self._learned = _Learned()
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Waits for the ends of connections that are being closed, 3 seconds at most, and cuts the others."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_CLOSE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    @asynccontextmanager
    async def open(self, user_id: str, options: ReplyOptions) -> AsyncIterator[Toolbox]:
        """The tools of the servers that this turn may use. Waits MCP_CONNECT_TIMEOUT_SECONDS for them at most."""
        servers, degraded = await self._servers(user_id, options)
        hosted, own = await self._divided(servers)
        connections = [Connection(server, self._reach, self._start) for server in own]
        try:
            tools, silent = await self._offered(own, connections, user_id)
            yield Toolbox(tools, hosted=[_hosted(server) for server in hosted], degraded=[*degraded, *silent])
        finally:
            # Not waited for: the end of a session is its server's business, and the reply is done.
            for connection in connections:
                connection.close()

    async def _servers(self, user_id: str, options: ReplyOptions) -> tuple[list[McpServerChoice], list[str]]:
        """The servers of the turn, one a label, and what must be done without."""
        found = {server.label.lower(): server for server in options.mcp_servers}
        try:
            kept = await self._store.offered_servers(user_id=user_id)
        except DATABASE_FAILURES as error:
            log.warning("mcp.kept_servers_unavailable", error=type(error).__name__)
            return list(found.values()), [_KEPT_SERVERS]
        for server in kept.servers:
            found.setdefault(server.label.lower(), server)
        return list(found.values()), [label for label in kept.sealed_labels if label.lower() not in found]

    async def _divided(self, servers: Sequence[McpServerChoice]) -> tuple[list[McpServerChoice], list[McpServerChoice]]:
        """Those that the provider calls, and those that we call: all, or those that the provider cannot reach."""
        if not self._is_hosted:
            return [], list(servers)
        reachable = await asyncio.gather(*map(self._is_reachable, servers))
        hosted = [server for server, is_reachable in zip(servers, reachable, strict=True) if is_reachable]
        return hosted, [server for server in servers if server not in hosted]

    async def _is_reachable(self, server: McpServerChoice) -> bool:
        url = httpx2.URL(server.url)
        try:
            return url.scheme == "https" and all(map(is_public, await self._addresses.resolve(url.host)))
        except (AddressError, OSError):
            return False

    async def _offered(
        self, servers: Sequence[McpServerChoice], connections: Sequence[Connection], user_id: str
    ) -> tuple[list[McpTool], list[str]]:
        """The tools of these servers, and the labels of those that do not say what they offer."""
        listings = await asyncio.gather(*map(self._listing, servers, connections, [user_id] * len(servers)))
        silent = [server.label for server, listed in zip(servers, listings, strict=True) if listed is None]
        return list(_fitting(_named(zip(servers, connections, listings, strict=True)))), silent

    async def _listing(self, server: McpServerChoice, connection: Connection, user_id: str) -> Sequence[Listed] | None:
        """What the server offers, from memory or from itself; None when it does not say."""
        key = hash((user_id, server.url, *sorted(server.headers.items())))
        is_known, known = self._learned.look(key)
        if is_known:
            return known
        try:
            async with asyncio.timeout(self._connect_seconds):
                listed = [one async for one in _harmless(await connection.tools(), server.label)]
        except (ServerFailed, TimeoutError) as error:
            log.warning("mcp.server_failed", server_label=server.label, error=type(error).__name__)
            self._learned.note(key, None)
            return None
        if not any(one.needs_session for one in listed):
            self._learned.note(key, listed)
        return listed

    def _start(self, holding: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(holding)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _harmless(offered: Sequence[types.Tool], label: str) -> AsyncIterator[Listed]:
    for tool in offered:
        # A schema takes some milliseconds; others run in between.
        await asyncio.sleep(0)
        try:
            parameters = harmless_parameters(tool.input_schema)
        except ParametersError as error:
            log.warning("mcp.tool_left_out", server_label=label, reason=str(error))
            continue
        if tool.name != clean(tool.name) or not 0 < len(tool.name) <= _LONGEST_REAL_NAME:
            log.warning("mcp.tool_left_out", server_label=label, reason="its name cannot be used")
            continue
        description = clean(tool.description or tool.title or "")[:_LONGEST_DESCRIPTION]
        yield Listed(tool.name, description, orjson.dumps(parameters), "x-mcp-header" in str(tool.input_schema))


def _size_of(tools: Sequence[Listed] | None) -> int:
    return sum(one.size for one in tools or ())


def _named(offers: Iterator[tuple[McpServerChoice, Connection, Sequence[Listed] | None]]) -> Iterator[_Offer]:
    taken: set[str] = set()
    for server, connection, listed in offers:
        for one in listed or ():
            name = _name(server.label, one.name, taken)
            if name in taken or (server.allowed_tools and one.name not in server.allowed_tools):
                continue
            taken.add(name)
            yield _Offer(name, one, server, connection)


def _name(label: str, tool: str, taken: set[str]) -> str:
    """`label__tool` where that is free and the provider takes it, else its beginning and a digest of the whole."""
    whole = f"{label}__{tool}"
    if len(whole) <= _LONGEST_NAME and not _FOREIGN.search(whole) and whole not in taken:
        return whole
    digest = hashlib.sha256(f"{label}\0{tool}".encode()).hexdigest()[:8]
    return f"{_FOREIGN.sub('_', whole)[: _LONGEST_NAME - 9]}_{digest}"


def _fitting(offers: Iterator[_Offer]) -> Iterator[McpTool]:
    count = size = left_out = 0
    for offer in offers:
        if count == MOST_TOOLS or size + offer.listed.size > _MOST_SPEC_BYTES:
            left_out += 1
            continue
        count, size = count + 1, size + offer.listed.size
        yield offer.tool()
    if left_out:
        log.warning("mcp.tools_left_out", count=left_out)


def _hosted(server: McpServerChoice) -> HostedMcpServer:
    return HostedMcpServer(server.label, server.url, server.headers, server.allowed_tools, server.approval)
