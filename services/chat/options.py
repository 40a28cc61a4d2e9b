"""How one reply is to be written: what a request, the user's preferences and the settings decide together.

Owns the values and the form in which they outlive their process. Invariant: `to_stored` holds no secret; the headers of MCP
servers travel beside it, encrypted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from services.runtime.openai import ReasoningEffort


@dataclass(frozen=True, slots=True)
class McpServerChoice:
    """An MCP server whose tools the model may use; `allowed_tools` empty means all; `approval` is never or always."""

    label: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    allowed_tools: Sequence[str]
    approval: str


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """How a reply is to be written. What is None is left to the provider."""

    instructions: str
    reasoning_effort: ReasoningEffort | None
    max_output_tokens: int | None
    temperature: float | None
    user_digest: str
    response_schema: Mapping[str, Any] | None = None
    use_web_search: bool = False
    use_code_interpreter: bool = False
    use_tasks: bool = False
    memory_enabled: bool = True
    mcp_servers: Sequence[McpServerChoice] = ()
    degraded: Sequence[str] = ()
    """Parts of the suite that could not be asked when this was decided: `preferences`."""

    def to_stored(self) -> dict[str, Any]:
        """The options as JSON, without the headers of MCP servers."""
        # Not asdict, which copies the schema deeply: every turn comes here.
        stored = {name: getattr(self, name) for name in _OPTION_NAMES}
        stored["mcp_servers"] = [{name: getattr(one, name) for name in _SERVER_NAMES} for one in self.mcp_servers]
        return stored

    def secrets(self) -> dict[str, dict[str, str]]:
        """The headers of each MCP server by its label: what `to_stored` leaves out."""
        return {server.label: dict(server.headers) for server in self.mcp_servers if server.headers}

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any], secrets: Mapping[str, Mapping[str, str]]) -> "ReplyOptions":
        """The options that `to_stored` and `secrets` came from."""
        servers = [McpServerChoice(headers=secrets.get(server["label"], {}), **server) for server in stored["mcp_servers"]]
        return replace(cls(**{**stored, "mcp_servers": ()}), mcp_servers=servers)


_OPTION_NAMES = tuple(one.name for one in fields(ReplyOptions))
_SERVER_NAMES = tuple(one.name for one in fields(McpServerChoice) if one.name != "headers")
