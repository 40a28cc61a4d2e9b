"""MCP put together, for the composition root: the tools of users' servers, and the suite's own server at /mcp."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from services.chat.mcp.addresses import Addresses
from services.chat.mcp.listener import McpListener
from services.chat.mcp.server import McpServer, Verb
from services.chat.mcp.store import McpServerStore
from services.chat.mcp.tools import McpTools
from services.chat.mcp_settings import McpSettings
from services.runtime.identity import TokenVerifier
from services.runtime.tls import TlsSettings


class Mcp:
    """`tools` for replies, and the server at /mcp, which is a listener of its own."""

    def __init__(self, tools: McpTools, server: McpServer, *, address: str) -> None:
        self.tools = tools
        self._server = server
        self._address = address
        self._listener: McpListener | None = None

    @asynccontextmanager
    async def serving(self, verifier: TokenVerifier, tls: TlsSettings) -> AsyncIterator[McpListener]:
        """Serves /mcp until the block ends. Raises OSError when the address cannot be had."""
        async with self._server.serving(verifier, tls, address=self._address) as listener:
            self._listener = listener
            yield listener

    def drain(self, *, within_seconds: float) -> None:
        """Takes no more requests at /mcp and lets open ones end, cut when the time is up. Returns at once."""
        if self._listener is not None:
            self._listener.drain(within_seconds=within_seconds)


def open_mcp(
    settings: McpSettings,
    parts: AsyncExitStack,
    *,
    store: McpServerStore,
    addresses: Addresses,
    verbs: Sequence[Verb],
) -> Mcp:
    """MCP until `parts` closes. `verbs` are what /mcp offers."""
    tools = McpTools(store, addresses, settings)
    parts.push_async_callback(tools.close)
    return Mcp(tools, McpServer(verbs), address=settings.mcp_listen_address)
