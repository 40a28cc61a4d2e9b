"""The MCP servers of a user as plain values. The headers are secrets and never print."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class McpServer:
    """A server that a user keeps; of its headers only the names. `approval` is never or always."""

    id: str
    label: str
    url: str
    header_names: Sequence[str]
    allowed_tools: Sequence[str]
    approval: str
    is_enabled: bool
    create_time: dt.datetime
    update_time: dt.datetime


@dataclass(frozen=True, slots=True)
class ServerDraft:
    """A server to keep."""

    label: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    allowed_tools: Sequence[str]
    approval: str
    is_enabled: bool


@dataclass(frozen=True, slots=True)
class ServerChanges:
    """What to change of a server; None leaves it as it is."""

    label: str | None = None
    url: str | None = None
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    allowed_tools: Sequence[str] | None = None
    approval: str | None = None
    is_enabled: bool | None = None
