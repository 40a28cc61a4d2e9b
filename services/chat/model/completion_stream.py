"""A streamed reply of Chat Completions, read: the same pieces as those of the Responses API, and items in its form.

Invariant: a stream without a finish reason is an error, never a short answer; the text before what is malformed is told.
Such a server keeps no run, so there are no Positions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.chat.model.frames import DONE, Frames
from services.chat.model.provider_calls import bounded
from services.chat.model.spoken import Spoken
from services.chat.model.whole_response import without_nul
from services.chat.pieces import Cited, FunctionCall, Piece, Position, ReasoningDelta, RoundEnd
from services.chat.records import Citation, Usage
from services.runtime.errors import ServiceError
from services.runtime.openai import Refusal, from_refusal, unavailable
from services.runtime.rules import CONTROL_CHARACTERS

MAX_CALLS: Final = 128
_INCOMPLETE: Final = {"length": "MAX_OUTPUT_TOKENS", "content_filter": "CONTENT_FILTER"}
Event = Mapping[str, Any]


class CompletionStream:
    """Reads one round, whatever the boundaries of the socket's reads. Bounded."""

    position: Position | None = None

    def __init__(self, model: str) -> None:
        self.error: ServiceError | None = None
        """What ended the stream badly; what was told before it is good."""
        self.has_ended = False
        self.has_told = False
        self._model = model
        self._frames = Frames((), model)
        self._spoken = Spoken()
        self._said: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}
        self._pieces: list[Piece | RoundEnd] = []
        self._response_id = ""
        self._finish_reason: str | None = None
        self._usage: Usage | None = None

    def read(self, chunk: bytes) -> Sequence[Piece | RoundEnd]:
        """The pieces that these bytes complete; no bytes are the end. After one that has ended badly `error` is set."""
        texts: list[str] = []
        try:
            # Some servers end without the marker: a finish reason before the end will do.
            for frame in self._frames.split(chunk) if chunk else [b"data: [DONE]"]:
                event = self._frames.event(frame)
                if event is DONE:
                    self._flush(texts)
                    self._end()
                    break
                if event is not None:
                    self._take(without_nul(event) if b"\\u0000" in frame else event, texts)
        except ServiceError as error:
            self.error = error
        except (AttributeError, KeyError, TypeError, ValueError):
            self.error = unavailable(self._model)
        self._flush(texts)
        pieces, self._pieces = self._pieces, []
        self.has_told = self.has_told or bool(pieces)
        return pieces

    @property
    def has_text(self) -> bool:
        """Whether text was given."""
        return self._spoken.length > 0

    def abandon(self) -> Sequence[Piece]:
        """What must still be told where the round begins anew: nothing, such a server calls nothing by itself."""
        return ()

    def _take(self, event: Event, texts: list[str]) -> None:
        if error := event.get("error"):
            refusal = Refusal(None, error)
            raise from_refusal(refusal, self._model) from refusal
        if usage := event.get("usage"):
            self._usage = _usage(usage)
        self._response_id = self._response_id or str(event.get("id") or "")
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            if text := delta.get("content") or delta.get("refusal"):
                if type(text) is not str:
                    raise TypeError("a delta is text")
                texts.append(text)
            if len(delta) > 1 or not text:
                self._take_rest(delta, texts)
            self._finish_reason = choice.get("finish_reason") or self._finish_reason

    def _take_rest(self, delta: Event, texts: list[str]) -> None:
        """What is not text: reasoning, where the server shows it, calls, sources."""
        if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
            self._flush(texts)
            self._pieces.append(ReasoningDelta(CONTROL_CHARACTERS.sub("", reasoning)))
        for call in delta.get("tool_calls") or ():
            self._add_call(call)
        for annotation in delta.get("annotations") or ():
            self._flush(texts)
            self._cite(annotation.get("url_citation"))

    def _add_call(self, told: Event) -> None:
        index = told.get("index", len(self._calls))
        if index not in self._calls and len(self._calls) >= MAX_CALLS:
            raise ValueError("more calls than can be made")
        call = self._calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
        function = told.get("function") or {}
        call["id"] = call["id"] or told.get("id") or ""
        call["name"] += function.get("name") or ""
        call["arguments"] += function.get("arguments") or ""

    def _cite(self, told: Event | None) -> None:
        if told:
            begin, end = self._spoken.place(told["start_index"]), self._spoken.place(told["end_index"])
            self._pieces.append(Cited(Citation(bounded(told["url"]), bounded(told.get("title")), begin, end)))

    def _flush(self, texts: list[str]) -> None:
        if texts and (told := self._spoken.tell("".join(texts))):
            self._say(told)
        texts.clear()

    def _say(self, told: str) -> None:
        self._said.append(told)
        self._pieces.append(told)

    def _end(self) -> None:
        if self._finish_reason is None:
            raise unavailable(self._model)
        if rest := self._spoken.end_part():
            self._say(rest)
        incomplete = _INCOMPLETE.get(self._finish_reason)
        calls = [] if incomplete else [self._call(index) for index in sorted(self._calls)]
        end = RoundEnd(self._usage, incomplete, calls=calls, items=self._items(calls), response_id=self._response_id)
        self._pieces.append(end)
        self.has_ended = True

    def _call(self, index: int) -> FunctionCall:
        call = self._calls[index]
        # Some servers give calls no id: the results need one.
        return FunctionCall(call["id"] or f"call_{self._response_id}_{index}", call["name"], call["arguments"] or "{}")

    def _items(self, calls: Sequence[FunctionCall]) -> list[Event]:
        items: list[Event] = []
        if self._said:
            part = {"type": "output_text", "text": "".join(self._said), "annotations": []}
            items.append({"type": "message", "role": "assistant", "status": "completed", "content": [part]})
        for call in calls:
            told = {"call_id": call.call_id, "name": call.name, "arguments": call.arguments}
            items.append({"type": "function_call", "status": "completed", **told})
        return items


def _usage(stated: Event) -> Usage:
    return Usage(
        input_tokens=int(stated.get("prompt_tokens") or 0),
        cached_tokens=int((stated.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        output_tokens=int(stated.get("completion_tokens") or 0),
        reasoning_tokens=int((stated.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0),
    )
