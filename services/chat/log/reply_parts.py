"""What a reply is made of besides text, while it is being written.

Invariant: parts stand in the order in which they came, with the text between them; a call is one part, whose end takes the
place of its beginning.
"""

from collections.abc import Sequence
from dataclasses import replace

from services.chat.records import Citation, Part, Reasoning, TextLength, ToolCall


class ReplyParts:
    """The parts of one reply. `at` is always how long its text is by then."""

    __slots__ = ("_finished", "_parts", "_start", "_started", "citations")

    def __init__(self) -> None:
        self.citations: list[Citation] = []
        self._parts: list[Part] = []
        self._start = 0
        self._started: dict[str, int] = {}
        self._finished: set[str] = set()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing but text."""
        return not self._parts

    def add(self, part: Part, *, at: int) -> None:
        """Something that is not text."""
        if at > self._start:
            self._parts.append(TextLength(at - self._start))
            self._start = at
        self._parts.append(part)

    def add_reasoning(self, text: str, *, at: int) -> None:
        """More reasoning: of the same part until something else comes."""
        last = self._parts[-1] if self._parts and self._start == at else None
        if isinstance(last, Reasoning):
            self._parts[-1] = Reasoning(last.text + text)
        else:
            self.add(Reasoning(text), at=at)

    def start_call(self, call: ToolCall, *, at: int) -> bool:
        """A call has begun; False when that is known."""
        if call.id in self._started:
            return False
        self.add(call, at=at)
        self._started[call.id] = len(self._parts) - 1
        return True

    def finish_call(self, call: ToolCall) -> bool:
        """A call that had begun has ended; False when that is known."""
        if call.id in self._finished:
            return False
        self._finished.add(call.id)
        self._parts[self._started[call.id]] = call
        return True

    @property
    def calls(self) -> Sequence[ToolCall]:
        """The calls of tools so far."""
        return [part for part in self._parts if isinstance(part, ToolCall)]

    def all(self, *, length: int) -> Sequence[Part]:
        """Every part of a reply that ends at this length; none for one of text alone."""
        if not self._parts:
            return ()
        left = length - self._start
        parts = [_over(part) for part in self._parts]
        return [*parts, TextLength(left)] if left else parts


def _over(part: Part) -> Part:
    """A call whose end nobody saw has failed, for all that one knows."""
    if isinstance(part, ToolCall) and part.status == "running":
        return replace(
            part, status="failed", error="The reply ended before the call did; whether it took effect is unknown."
        )
    return part
