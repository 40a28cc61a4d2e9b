"""What one round of the model is asked.

Plain values. Invariant: nothing in them but the headers of hosted MCP servers is secret, and those are not printed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.chat.options import ReplyOptions
from services.chat.records import ContextMessage, Image


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """A function that the model may have called; `parameters` is a JSON schema of an object.

    One that is optional was asked for by nobody: a model that takes no functions is asked without it.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class HostedMcpServer:
    """An MCP server that the provider itself calls; `allowed_tools` empty means all; `approval` is never or always."""

    label: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    allowed_tools: Sequence[str]
    approval: str


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One round of the model: the conversation as the model sees it, and what it may do.

    `messages` are oldest first, the last is the user's, to which `images` belong. `items` are of the rounds before, in
    order: each RoundEnd.items, then `{"type": "function_call_output", "call_id", "output"}` for each of its calls.
    """

    model: str
    conversation_id: str
    options: ReplyOptions
    messages: Sequence[ContextMessage]
    images: Sequence[Image] = ()
    items: Sequence[Mapping[str, Any]] = ()
    functions: Sequence[FunctionSpec] = ()
    hosted_mcp: Sequence[HostedMcpServer] = ()
    is_background: bool = False
