"""What is told from outside about MCP, both ways."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.runtime.settings import Address


class McpSettings(BaseSettings):
    """Settings of the MCP server and of the client for the servers of users."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    mcp_listen_address: Address
    """Where /mcp is served, host:port: plain HTTP, for the edge."""
    mcp_mode: Literal["client", "hosted"] = "client"
    """Who calls the MCP servers of users: `client`, this service; `hosted`, the provider, which then gets their headers."""
    mcp_allow_private_addresses: bool = False
    """Whether users may name http:// and private addresses; anybody with an account then reaches this network."""
    mcp_connect_timeout_seconds: float = Field(default=5, gt=0, le=60)
    """How long a turn waits for the tools of an MCP server; then it goes on without them."""
