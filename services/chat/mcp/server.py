"""The suite's own MCP server: verbs of a user, as tools for any MCP client.

Stateless streamable HTTP: every request stands alone, so any replica serves it. Invariants: the user is the verified caller
of the request, never an argument; arguments fit the verb's schema before it runs; a refusal is a result that the model can
read, and a fault of ours tells nothing of its insides.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Final, Protocol

import mcp_types as types
import orjson
import structlog
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings

from services.chat.mcp.listener import MOST_BODY_BYTES, App, McpListener
from services.chat.model.request import FunctionSpec
from services.chat.tools.arguments import read_arguments
from services.chat.tools.tool import ToolError
from services.runtime.calls import current_request_id, current_user_id
from services.runtime.errors import ServiceError, to_service_error
from services.runtime.identity import TokenVerifier
from services.runtime.tls import TlsSettings

log = structlog.get_logger(__name__)

_NAME: Final = "parley"


class Verb(Protocol):
    """Something that a user can have done."""

    @property
    def spec(self) -> FunctionSpec:
        """Its name, what it does, and the schema of its arguments."""

    async def run(self, arguments: Mapping[str, Any], *, user_id: str) -> str:
        """The result for the model. Raises ToolError, ServiceError."""


class McpServer:
    """The verbs as an MCP server; `serving` it takes a listener's address."""

    def __init__(self, verbs: Sequence[Verb]) -> None:
        self._verbs = {verb.spec.name: verb for verb in verbs}
        self._server: Server[Any] = Server(
            _NAME, version=version("parley"), on_list_tools=self._list_tools, on_call_tool=self._call_tool
        )

    @asynccontextmanager
    async def serving(self, verifier: TokenVerifier, tls: TlsSettings, *, address: str) -> AsyncIterator[McpListener]:
        """Serves at /mcp of an address until the block ends. Raises OSError when the address cannot be had."""
        sessions = StreamableHTTPSessionManager(
            self._server,
            stateless=True,
            # One answer a request; nothing here says anything in between.
            json_response=True,
            # Which Hosts are served is the edge's business; identity is by header, which no page of another origin has.
            security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
            max_request_body_size=MOST_BODY_BYTES,
        )
        app: App = sessions.handle_request
        listener = McpListener(app, verifier, tls, address=address)
        started, ending = asyncio.Event(), asyncio.Event()
        # In a task of its own: the package's must be left by the task that entered them, wherever this block is left.
        holding = asyncio.create_task(_hold(sessions, started, ending))
        await started.wait()
        try:
            async with listener.serving():
                yield listener
        finally:
            ending.set()
            await holding

    async def _list_tools(
        self, _context: ServerRequestContext[Any], _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_tool(verb.spec) for verb in self._verbs.values()])

    async def _call_tool(
        self, _context: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        try:
            return _said(await self._run(params.name, params.arguments or {}))
        except ToolError as error:
            return _said(str(error), is_error=True)
        except ServiceError as error:
            return _said(error.message, is_error=True)
        except Exception as error:
            # The border to a package that would tell the client what an exception says.
            log.exception("mcp.tool_faulted", tool=params.name if params.name in self._verbs else None)
            return _said(to_service_error(error, current_request_id()).message, is_error=True)

    async def _run(self, name: str, arguments: Mapping[str, Any]) -> str:
        verb = self._verbs.get(name)
        if verb is None:
            raise ToolError("There is no such tool.")
        try:
            written = orjson.dumps(arguments).decode()
        except orjson.JSONEncodeError:
            raise ToolError("The arguments hold a number of more than 64 bits.") from None
        checked = read_arguments(written, verb.spec.parameters)
        return await verb.run(checked, user_id=current_user_id())


async def _hold(sessions: StreamableHTTPSessionManager, started: asyncio.Event, ending: asyncio.Event) -> None:
    async with sessions.run():
        started.set()
        await ending.wait()


def _tool(spec: FunctionSpec) -> types.Tool:
    return types.Tool(name=spec.name, description=spec.description, input_schema=dict(spec.parameters))


def _said(text: str, *, is_error: bool = False) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=text)], is_error=is_error)
