"""What a reply is made of while it is being written: what the model and the tools produce, piece by piece.

Plain values, no behaviour. A `str` is more text and by far the most frequent piece; the text of all of them is the reply.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.chat.records import Citation, CodeRun, ToolCall, Usage


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the summary of what the model thinks."""

    text: str


@dataclass(frozen=True, slots=True)
class Cited:
    """The text cites something. The span counts from the first character that this round of the model wrote."""

    citation: Citation


@dataclass(frozen=True, slots=True)
class CallStarted:
    """A tool was called: by the provider itself, or by us for the model."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class CallFinished:
    """The call has ended, well or not."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class CodeFinished:
    """The provider ran code."""

    run: CodeRun


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run at the provider was read: it can be resumed after this event, where the provider keeps it."""

    response_id: str
    sequence: int


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """What the model wants to be called; `arguments` is JSON as the model wrote it, which may be wrong."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class RoundEnd:
    """The end of one round of the model.

    `calls` are to be answered in the next round, for which `items` is what the provider put out in this one, reasoning and
    messages and calls paired as they came. Without calls the reply is at its end. `response_id` is the provider's.
    """

    usage: Usage | None
    incomplete_reason: str | None
    calls: Sequence[FunctionCall] = ()
    items: Sequence[Mapping[str, Any]] = ()
    response_id: str = ""


Piece = str | ReasoningDelta | Cited | CallStarted | CallFinished | CodeFinished | Position
"""What comes before the RoundEnd."""
