"""The output items of a response and the events that announce, fill and close each of them.

Owns item ids and the order of events within an item. Invariant: an item appears in the response's output from its
`added` event on and is final with its `done` event; the token limit is never passed.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from simulator.answers import (
    Answer,
    AnswerItem,
    Citation,
    CodeRun,
    FunctionCall,
    McpApproval,
    McpRun,
    McpTools,
    Reasoning,
    Text,
    WebSearch,
)
from simulator.requests import JsonObject
from simulator.tokens import tokenize

_KINDS: dict[type[AnswerItem], tuple[str, str]] = {
    Reasoning: ("rs", "reasoning"),
    Text: ("msg", "message"),
    FunctionCall: ("fc", "function_call"),
    WebSearch: ("ws", "web_search_call"),
    CodeRun: ("ci", "code_interpreter_call"),
    McpTools: ("mcpl", "mcp_list_tools"),
    McpApproval: ("mcpr", "mcp_approval_request"),
    McpRun: ("mcp", "mcp_call"),
}


@dataclass(frozen=True, slots=True)
class Step:
    """An event without its sequence number; `is_token` where it carries one token of the answer."""

    event: JsonObject
    is_token: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """Where writing ends early: `tokens` of output in all, or a fault after so many `deltas`."""

    tokens: int | None = None
    deltas: int | None = None
    leaves_item_open: bool = False


class ItemWriter:
    """Writes an answer into a response's output, counting tokens and stopping at the limits."""

    def __init__(self, limits: Limits, *, include: frozenset[str]) -> None:
        self.tokens = 0
        self.reasoning_tokens = 0
        self.cut: Literal["tokens", "deltas"] | None = None
        self._deltas = 0
        self._limits = limits
        self._include = include
        self._index = 0
        self._item: JsonObject = {}
        self._growing: tuple[JsonObject, str, list[str]] | None = None

    def steps(self, answer: Answer, output: list[JsonObject]) -> Iterator[Step]:
        """The events of every item. One that meets a limit is closed as incomplete, or left open as the limits say."""
        for self._index, item in enumerate(answer):
            self._item = self._new_item(item)
            output.append(self._item)
            yield Step({"type": "response.output_item.added", "output_index": self._index, "item": self._item})
            yield from self._fill(item)
            if self._left_open:
                return
            if "status" in self._item:
                self._item["status"] = "incomplete" if self.cut else "completed"
            yield Step({"type": "response.output_item.done", "output_index": self._index, "item": self._item})
            if self.cut:
                return

    def settle(self) -> None:
        """Bring the growing text of the open item into the output; on demand, since it costs the whole text."""
        if self._growing:
            holder, key, said = self._growing
            holder[key] = "".join(said)

    @property
    def _left_open(self) -> bool:
        return self.cut == "deltas" and self._limits.leaves_item_open

    def _take(self, tokens: tuple[str, ...], *, hidden: bool = False) -> tuple[str, ...]:
        """As many of the tokens as the limits leave; notes it where that is not all."""
        of_tokens = self._left(self._limits.tokens, self.tokens, len(tokens))
        of_deltas = len(tokens) if hidden else self._left(self._limits.deltas, self._deltas, len(tokens))
        left = min(of_tokens, of_deltas)
        if left < len(tokens):
            self.cut = "tokens" if of_tokens <= of_deltas else "deltas"
        return tokens[:left]

    def _left(self, limit: int | None, used: int, wanted: int) -> int:
        return wanted if limit is None else min(max(limit - used, 0), wanted)

    def _deltas_of(self, kind: str, text: tuple[str, ...], into: tuple[JsonObject, str], **fields: Any) -> Iterator[Step]:
        """One delta event a token, as far as the limits allow; `into` is where the text ends up."""
        said: list[str] = []
        self._growing = (*into, said)
        for token in self._take(text):
            yield self._event(kind, token=True, **fields, delta=token)
            # Counted once it has left: whoever waits before the next one must not see that in a snapshot.
            said.append(token)
            self.tokens += 1
            self._deltas += 1
        self.settle()

    def _new_item(self, item: AnswerItem) -> JsonObject:
        """The item as it is announced: empty, with its id."""
        prefix, kind = _KINDS[type(item)]
        announced: JsonObject = {"id": _id(prefix), "type": kind}
        if isinstance(item, Reasoning):
            return announced | {"summary": []} | self._encrypted(announced["id"])
        if isinstance(item, McpTools | McpApproval | McpRun):
            return announced | _announced_mcp(item)
        announced["status"] = "in_progress"
        match item:
            case Text():
                announced.update(role="assistant", content=[])
            case FunctionCall(name=name):
                announced.update(name=name, arguments="", call_id=item.call_id or _id("call"))
            case WebSearch():
                announced["action"] = self._action(item)
            case CodeRun():
                announced.update(container_id=item.container_id, code="", outputs=None)
        return announced

    def _encrypted(self, item_id: str) -> JsonObject:
        return {"encrypted_content": f"simulated-{item_id}"} if "reasoning.encrypted_content" in self._include else {}

    def _fill(self, item: AnswerItem) -> Iterator[Step]:
        match item:
            case Reasoning():
                yield from self._reasoning(item)
            case Text():
                yield from self._text(item)
            case FunctionCall(arguments=arguments):
                yield from self._arguments("response.function_call_arguments", arguments)
            case WebSearch():
                yield from self._phases("response.web_search_call", "in_progress", "searching", "completed")
            case CodeRun():
                yield from self._code(item)
            case McpTools(tools=tools):
                yield from self._phases("response.mcp_list_tools", "in_progress", "completed")
                self._item["tools"] = list(tools)
            case McpApproval():
                pass
            case McpRun():
                yield from self._mcp_run(item)

    def _reasoning(self, item: Reasoning) -> Iterator[Step]:
        spent = len(self._take(("",) * item.hidden_tokens, hidden=True))
        self.tokens += spent
        before = self.tokens - spent
        if item.summary and not self.cut:
            yield from self._summary(item.summary)
        self.reasoning_tokens = self.tokens - before

    def _summary(self, summary: tuple[str, ...]) -> Iterator[Step]:
        kind = "response.reasoning_summary"
        part: JsonObject = {"type": "summary_text", "text": ""}
        place: JsonObject = {"summary_index": 0}
        yield self._event(f"{kind}_part.added", **place, part=part)
        self._item["summary"].append(part)
        yield from self._deltas_of(f"{kind}_text.delta", summary, (part, "text"), **place)
        if self._left_open:
            return
        yield self._event(f"{kind}_text.done", **place, text=part["text"])
        yield self._event(f"{kind}_part.done", **place, part=part)

    def _text(self, item: Text) -> Iterator[Step]:
        part: JsonObject = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        place: JsonObject = {"content_index": 0}
        yield self._event("response.content_part.added", **place, part=part)
        self._item["content"].append(part)
        kind = "response.output_text.delta"
        yield from self._deltas_of(kind, item.tokens, (part, "text"), **place, logprobs=[])
        if self._left_open:
            return
        yield from self._annotations(item.citations, part)
        yield self._event("response.output_text.done", **place, text=part["text"], logprobs=[])
        yield self._event("response.content_part.done", **place, part=part)

    def _annotations(self, citations: tuple[Citation, ...], part: JsonObject) -> Iterator[Step]:
        supported = [citation for citation in citations if citation.end <= len(part["text"])]
        for index, citation in enumerate(supported):
            shown = {"type": "url_citation", "url": citation.url, "title": citation.title}
            annotation = {**shown, "start_index": citation.start, "end_index": citation.end}
            part["annotations"].append(annotation)
            place: JsonObject = {"content_index": 0, "annotation_index": index}
            yield self._event("response.output_text.annotation.added", **place, annotation=annotation)

    def _arguments(self, prefix: str, arguments: str) -> Iterator[Step]:
        yield from self._deltas_of(f"{prefix}.delta", tokenize(arguments), (self._item, "arguments"))
        if not self._left_open:
            yield self._event(f"{prefix}.done", arguments=self._item["arguments"])

    def _mcp_run(self, item: McpRun) -> Iterator[Step]:
        yield from self._phases("response.mcp_call", "in_progress")
        yield from self._arguments("response.mcp_call_arguments", item.arguments)
        if not self.cut:
            yield from self._phases("response.mcp_call", "completed")
            self._item["output"] = item.output

    def _code(self, item: CodeRun) -> Iterator[Step]:
        yield from self._phases("response.code_interpreter_call", "in_progress")
        kind = "response.code_interpreter_call_code"
        yield from self._deltas_of(f"{kind}.delta", tokenize(item.code), (self._item, "code"))
        if self.cut:
            return
        yield self._event(f"{kind}.done", code=item.code)
        yield from self._phases("response.code_interpreter_call", "interpreting", "completed")
        if "code_interpreter_call.outputs" in self._include:
            self._item["outputs"] = [{"type": "logs", "logs": item.logs}]

    def _action(self, item: WebSearch) -> JsonObject:
        action: JsonObject = {"type": "search", "query": item.query, "queries": [item.query]}
        if "web_search_call.action.sources" in self._include:
            action["sources"] = [{"type": "url", "url": url} for url in item.sources]
        return action

    def _phases(self, prefix: str, *phases: str) -> Iterator[Step]:
        for phase in phases:
            yield self._event(f"{prefix}.{phase}")

    def _event(self, kind: str, *, token: bool = False, **fields: Any) -> Step:
        place = {"type": kind, "item_id": self._item["id"], "output_index": self._index}
        return Step({**place, **fields}, is_token=token)


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def _announced_mcp(item: McpTools | McpApproval | McpRun) -> JsonObject:
    match item:
        case McpTools(server_label=label):
            return {"server_label": label, "tools": [], "error": None}
        case McpApproval(server_label=label, name=name, arguments=arguments):
            return {"server_label": label, "name": name, "arguments": arguments}
        case McpRun(server_label=label, name=name, approval_request_id=approval):
            shown = {"server_label": label, "name": name, "arguments": "", "approval_request_id": approval}
            return {"status": "in_progress", **shown, "output": None, "error": None}
