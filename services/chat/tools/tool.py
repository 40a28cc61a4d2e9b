"""What a tool is to the loop that calls it.

Owns the protocols between a reply and whatever the model may have called: the user's tasks, the tools of MCP servers.
Invariant: a tool is told whose it is and which call it serves by its Invocation, never by what the model wrote. It refuses
by ToolError, whose sentence the model and the user see.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.chat.model.request import FunctionSpec, HostedMcpServer
from services.chat.options import ReplyOptions
from services.chat.records import ToolCall


class ToolError(Exception):
    """The call failed. The sentence is for the model, which may mend its arguments or tell the user, and for the user."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What the model had heard in this turn when it made a call, or may have: for tools that weigh whose words they serve.

    The user's message, who the memories came from that it was given, and the calls of tools so far, this one among them.
    """

    message_id: str
    text: str = field(repr=False)
    memory_stamps: frozenset[str]
    calls: Sequence[ToolCall] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Invocation:
    """For whom a tool runs, as which call of which generation, and after what."""

    user_id: str
    generation_id: str
    conversation_id: str
    call_id: str
    heard: Heard


class Tool(Protocol):
    """Something that the model may have called. `spec.name` is what the model calls it, unique in a toolbox."""

    @property
    def spec(self) -> FunctionSpec:
        """What the model is told of it. Its parameters also decide which arguments it is run with."""

    @property
    def tool(self) -> str:
        """What readers of the stream see as its name."""

    @property
    def server_label(self) -> str:
        """The label of the MCP server whose tool it is; empty otherwise."""

    @property
    def needs_approval(self) -> bool:
        """Whether it must not run: the call is shown as `approval_required`, and the model told to ask the user."""

    @property
    def is_exactly_once(self) -> bool:
        """Whether a call may be run again after a death in the middle of it.

        It then does its change and stores its result as that of the call in one transaction, and finds that the next time;
        or its change is elsewhere, and is made once however often it is asked for by the same call.
        """

    async def run(self, arguments: Mapping[str, Any], invocation: Invocation) -> str:
        """The result, for the model. The arguments fit the spec. Raises ToolError. May be cancelled at any await."""


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What the model may use while it writes one reply.

    `hosted` are MCP servers that the provider itself calls. `degraded` names what was asked for and cannot be had.
    """

    tools: Sequence[Tool]
    hosted: Sequence[HostedMcpServer] = ()
    degraded: Sequence[str] = ()


class ToolSource(Protocol):
    """Where tools come from."""

    def open(self, user_id: str, options: ReplyOptions) -> AbstractAsyncContextManager[Toolbox]:
        """The tools of one reply, for as long as the block lasts; an empty box where the options ask for none.

        What does not answer is named in `degraded`, and is no error. Bounded in time by itself.
        """
