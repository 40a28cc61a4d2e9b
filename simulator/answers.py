"""What the simulated model answers, before it becomes a Responses stream or a chat completion.

Owns the vocabulary between the rules (which decide), the scripts (which dictate) and the choreographies (which put an
answer on the wire). An answer is an ordered tuple of these items; every text is already cut into the tokens that will be
its deltas.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Citation:
    """A web source and the span of the text, in characters, that it supports."""

    url: str
    title: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Thinking before the answer: a summary to show (may be empty) and the tokens that stay hidden."""

    summary: tuple[str, ...]
    hidden_tokens: int


@dataclass(frozen=True, slots=True)
class Text:
    """A message of the assistant."""

    tokens: tuple[str, ...]
    citations: tuple[Citation, ...] = ()


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A call of a function that the caller runs; `arguments` is JSON."""

    name: str
    arguments: str
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class WebSearch:
    """A search that the provider ran."""

    query: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CodeRun:
    """Python that the provider ran, what it printed, and the container that it ran in."""

    code: str
    logs: str
    container_id: str = ""


@dataclass(frozen=True, slots=True)
class McpTools:
    """The tools that an MCP server offers."""

    server_label: str
    tools: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class McpApproval:
    """A question to the person, whether this MCP tool may run."""

    server_label: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class McpRun:
    """A call of an MCP tool that the provider made."""

    server_label: str
    name: str
    arguments: str
    output: str
    approval_request_id: str | None = None


AnswerItem: TypeAlias = Reasoning | Text | FunctionCall | WebSearch | CodeRun | McpTools | McpApproval | McpRun
Answer: TypeAlias = tuple[AnswerItem, ...]
