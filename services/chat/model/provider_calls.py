"""What the provider does by itself while it writes, as pieces: web search, code, MCP servers that it calls.

Owns the reading of those output items. Invariant: a call that ends was told to begin; texts are bounded and hold nothing
that Postgres cannot store.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import orjson

from services.chat.pieces import CallFinished, CallStarted, CodeFinished, Piece
from services.chat.records import CodeRun, ToolCall
from services.runtime.rules import CONTROL_CHARACTERS

MAX_RESULT_CHARACTERS: Final = 100_000
LISTING: Final = "list_tools"
"""The tool that a failed listing of an MCP server's tools is told as."""
Item = Mapping[str, Any]


class ProviderCalls:
    """The calls of one round. Each is told to begin and to end at most once, however often its item comes."""

    def __init__(self) -> None:
        self.started: dict[str, ToolCall] = {}
        self.ended: set[str] = set()

    def begin(self, item: Item) -> Iterator[Piece]:
        """The pieces of an item that has appeared."""
        if item.get("type") in ("web_search_call", "mcp_call") and (call := _call(item)).id not in self.started:
            self.started[call.id] = call
            yield CallStarted(call)

    def end(self, item: Item) -> Iterator[Piece]:
        """The pieces of an item that is whole."""
        kind, call_id = item.get("type"), str(item.get("id"))
        if call_id in self.ended:
            return
        if kind == "code_interpreter_call":
            self.ended.add(call_id)
            yield CodeFinished(_code_run(item))
        elif (call := _ended_call(item)) is not None:
            self.ended.add(call_id)
            if call_id not in self.started:
                yield CallStarted(_running(call))
            yield CallFinished(call)

    def abandon(self) -> Iterator[CallFinished]:
        """The ends of the calls that will have none, since the round begins anew."""
        for call_id, call in self.started.items():
            if call_id not in self.ended:
                self.ended.add(call_id)
                yield CallFinished(replace(call, status="failed", error="The provider gave the call up."))


def failed_server(label: str, error: str) -> tuple[CallStarted, CallFinished]:
    """What is told of an MCP server that the provider could not use."""
    call = ToolCall(f"{LISTING}:{label}", LISTING, label, "{}", status="failed", error=error)
    return CallStarted(_running(call)), CallFinished(call)


def bounded(text: object) -> str:
    """A text as it may be kept: no control characters, at most so many characters."""
    return CONTROL_CHARACTERS.sub("", text[:MAX_RESULT_CHARACTERS]) if isinstance(text, str) else ""


def _running(call: ToolCall) -> ToolCall:
    return ToolCall(call.id, call.tool, call.server_label, call.arguments)


def _call(item: Item) -> ToolCall:
    if item["type"] == "web_search_call":
        return ToolCall(str(item.get("id")), "web_search", "", _searched(item))
    label, arguments = bounded(item.get("server_label")), bounded(item.get("arguments"))
    return ToolCall(str(item.get("id")), bounded(item.get("name")) or LISTING, label, arguments or "{}")


def _ended_call(item: Item) -> ToolCall | None:
    match item.get("type"):
        case "web_search_call":
            return _closed(item, result=_sources(item), error=_failure(item, "The web search failed."))
        case "mcp_call":
            return _closed(item, result=bounded(item.get("output")), error=_failure(item, "The MCP server failed."))
        case "mcp_approval_request":
            call = _call(item)
            return ToolCall(call.id, call.tool, call.server_label, call.arguments, status="approval_required")
        case "mcp_list_tools" if item.get("error"):
            return _closed(item, result="", error=_failure(item, "The MCP server did not list its tools."))
    return None


def _closed(item: Item, *, result: str, error: str) -> ToolCall:
    call = _call(item)
    if error:
        return ToolCall(call.id, call.tool, call.server_label, call.arguments, status="failed", error=error)
    return ToolCall(call.id, call.tool, call.server_label, call.arguments, status="succeeded", result=result)


def _failure(item: Item, otherwise: str) -> str:
    """Why the call failed; empty where it did not."""
    error = item.get("error")
    if isinstance(error, Mapping):
        content = error.get("content")
        told = error.get("message") or (orjson.dumps(content).decode() if content else "")
        return bounded(told) or otherwise
    if error:
        return bounded(error) or otherwise
    return otherwise if item.get("status") in ("failed", "incomplete") else ""


def _searched(item: Item) -> str:
    action = item.get("action")
    told = {key: value for key, value in action.items() if key != "sources"} if isinstance(action, Mapping) else {}
    return bounded(orjson.dumps(told).decode())


def _sources(item: Item) -> str:
    action = item.get("action")
    sources = action.get("sources") if isinstance(action, Mapping) else None
    urls = [source.get("url") for source in sources or () if isinstance(source, Mapping)]
    return bounded("\n".join(url for url in urls if isinstance(url, str)))


def _code_run(item: Item) -> CodeRun:
    outputs = [output for output in item.get("outputs") or () if isinstance(output, Mapping)]
    logs = "".join(logs for output in outputs if isinstance(logs := output.get("logs"), str))
    status = "failed" if item.get("status") in ("failed", "incomplete") else "succeeded"
    return CodeRun(str(item.get("id")), bounded(item.get("code")), bounded(logs), status)
