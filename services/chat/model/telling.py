"""What the events of one round say, piece by piece, in the provider's order.

Owns the state that gives an event its meaning: the text so far, calls that were begun, sources that were cited. Invariant: a
piece is told once, also where the provider says it twice. Raises KeyError, TypeError, AttributeError or ServiceError for an
event of another shape than the API's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from services.chat.model.provider_calls import ProviderCalls, bounded
from services.chat.model.spoken import Spoken
from services.chat.model.whole_response import END_KINDS, round_end
from services.chat.pieces import (
    CallFinished,
    CallStarted,
    Cited,
    CodeFinished,
    Piece,
    ReasoningDelta,
    RoundEnd,
)
from services.chat.records import Citation
from services.runtime.rules import CONTROL_CHARACTERS

_SPOKEN_PARTS: Final = ("output_text", "refusal")
Event = Mapping[str, Any]


class Telling:
    """One round so far. `pieces` are those that were not taken yet."""

    def __init__(self, model: str) -> None:
        self.pieces: list[Piece | RoundEnd] = []
        self.has_ended = False
        self._model = model
        self._spoken = Spoken()
        self._calls = ProviderCalls()
        self._cited: set[Citation] = set()
        self._items: list[Event] = []
        self._last_told = ""
        self._reasoning_length = 0
        self._breaks_reasoning = False

    @property
    def has_text(self) -> bool:
        """Whether any text was told."""
        return self._spoken.length > 0

    def abandon(self) -> list[CallFinished]:
        """What must still be told where the round begins anew."""
        return list(self._calls.abandon())

    def text(self, text: str) -> None:
        """More text."""
        self._tell(self._spoken.tell(text))

    def untold(self, pieces: Sequence[Piece | RoundEnd]) -> Iterator[Piece | RoundEnd]:
        """Those of a whole round's pieces that were not told here."""
        text_length, reasoning_length = self._spoken.length, self._reasoning_length
        for piece in pieces:
            match piece:
                case str():
                    if rest := piece[text_length:]:
                        yield rest
                    text_length = max(0, text_length - len(piece))
                case ReasoningDelta(text=text):
                    if rest := text[reasoning_length:]:
                        yield ReasoningDelta(rest)
                    reasoning_length = max(0, reasoning_length - len(text))
                case Cited(citation=citation) if citation in self._cited:
                    continue
                case CallStarted(call=call) if call.id in self._calls.started:
                    continue
                case CallFinished(call=call) if call.id in self._calls.ended:
                    continue
                case CodeFinished(run=run) if run.id in self._calls.ended:
                    continue
                case _:
                    yield piece

    def item_added(self, event: Event) -> None:
        """An output item has appeared."""
        item = event["item"]
        if item["type"] != "message":
            self.pieces.extend(self._calls.begin(item))
            return
        self._tell(self._spoken.end_part())
        if self._spoken.length and not self._last_told.endswith("\n"):
            # Another message of the same round: its text must not run into the one before.
            self._tell(self._spoken.tell("\n\n"))
            self._spoken.end_part()

    def part_added(self, event: Event) -> None:
        """A part of a message has appeared."""
        if event["part"]["type"] in _SPOKEN_PARTS:
            self._tell(self._spoken.end_part())

    def refusal(self, event: Event) -> None:
        """More of a refusal, which is text."""
        self._tell(self._spoken.tell(event["delta"]))

    def annotation(self, event: Event) -> None:
        """The text cites something."""
        self._cite(event.get("annotation") or {})

    def item_done(self, event: Event) -> None:
        """An output item is whole."""
        item = event["item"]
        self._items.append(item)
        if item["type"] != "message":
            self.pieces.extend(self._calls.end(item))
            return
        parts = [part for part in item.get("content") or () if part.get("type") == "output_text"]
        for annotation in parts[0].get("annotations") or () if len(parts) == 1 else ():
            # Servers that do not tell annotations as they come have them here.
            self._cite(annotation)

    def reasoning_part(self, _event: Event) -> None:
        """Another part of the summary of reasoning."""
        self._breaks_reasoning = self._reasoning_length > 0

    def reasoning(self, event: Event) -> None:
        """More of the summary of reasoning."""
        text = CONTROL_CHARACTERS.sub("", event["delta"])
        if self._breaks_reasoning:
            text, self._breaks_reasoning = f"\n\n{text}", False
        self._reasoning_length += len(text)
        self.pieces.append(ReasoningDelta(text))

    def end(self, event: Event) -> None:
        """The end of the round, good or (ServiceError) bad."""
        end = round_end(event, self._items, self._model)
        self._tell(self._spoken.end_part())
        self.pieces.append(end)
        self.has_ended = True

    def _cite(self, annotation: Event) -> None:
        if annotation.get("type") != "url_citation":
            return
        begin, end = annotation["start_index"], annotation["end_index"]
        title = bounded(annotation.get("title"))
        citation = Citation(bounded(annotation["url"]), title, self._spoken.place(begin), self._spoken.place(end))
        if citation not in self._cited:
            self._cited.add(citation)
            self.pieces.append(Cited(citation))

    def _tell(self, told: str) -> None:
        if told:
            self._last_told = told
            self.pieces.append(told)


TELLERS: Final[Mapping[str, Callable[[Telling, Event], None]]] = {
    "response.output_item.added": Telling.item_added,
    "response.content_part.added": Telling.part_added,
    "response.refusal.delta": Telling.refusal,
    "response.output_text.annotation.added": Telling.annotation,
    "response.output_item.done": Telling.item_done,
    "response.reasoning_summary_part.added": Telling.reasoning_part,
    "response.reasoning_summary_text.delta": Telling.reasoning,
    **dict.fromkeys(END_KINDS, Telling.end),
}
"""What to do with each kind of event but the frequent one."""
