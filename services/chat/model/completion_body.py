"""A request of Chat Completions, for servers that have no Responses API.

Owns the translation of a round, earlier rounds' items included. It refuses what only the Responses API can do, by the name
of the field that asked for it. Parameters that such servers are known to refuse (cache key, safety identifier) are not sent;
nor is a system message after the first, which the templates of many open models refuse (Qwen, Gemma): what is told before
the user's message is told in it, ahead of what the user says. That is the end of the prompt, too: caches of it hold.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.model.request import ModelRequest
from services.chat.model.response_body import image_url
from services.chat.model.schemas import is_strict
from services.runtime.errors import InvalidArgument

Body = dict[str, Any]


def completion_body(request: ModelRequest) -> bytes:
    """The body as JSON. Raises InvalidArgument for what this API cannot do."""
    _check(request)
    options = request.options
    body: Body = {
        "model": request.model,
        "tools": [_function(one.name, one.description, one.parameters) for one in request.functions] or None,
        "response_format": _format(options.response_schema),
        "reasoning_effort": options.reasoning_effort,
        "max_tokens": options.max_output_tokens,
        "temperature": options.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    told = {name: value for name, value in body.items() if value is not None}
    return orjson.dumps({**told, "messages": [*_messages(request), *_earlier_rounds(request.items)]})


def _check(request: ModelRequest) -> None:
    options = request.options
    asked = {
        "use_web_search": options.use_web_search,
        "use_code_interpreter": options.use_code_interpreter,
        "mcp_servers": bool(request.hosted_mcp),
    }
    for field, is_asked in asked.items():
        if is_asked:
            raise InvalidArgument(
                f"`{field}` needs a provider with the Responses API, which that of {request.model} has not. Leave it out.",
                reasons.ERROR_REASON_MODEL_REFUSED_REQUEST,
                metadata={"parameter": field, "model": request.model},
            )


def _messages(request: ModelRequest) -> Iterator[Body]:
    if request.options.instructions:
        yield {"role": "system", "content": request.options.instructions}
    last, told_before = len(request.messages) - 1, ""
    for index, message in enumerate(request.messages):
        if message.role == "developer":
            told_before += f"{message.text}\n\n"
            continue
        text, told_before = told_before + message.text, ""
        if index < last or not request.images:
            yield {"role": message.role, "content": text}
            continue
        images = [{"type": "image_url", "image_url": {"url": image_url(one)}} for one in request.images]
        yield {"role": message.role, "content": [{"type": "text", "text": text}, *images]}


def _earlier_rounds(items: Any) -> Iterator[Body]:
    """Messages and calls that follow one another are one message of the assistant here; each result is one of its own."""
    said: Body | None = None
    for item in items:
        kind = item.get("type")
        if kind == "function_call_output":
            if said is not None:
                yield said
                said = None
            yield {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}
        elif kind in ("message", "function_call"):
            said = said or {"role": "assistant", "content": None}
            _add(said, item)
    if said is not None:
        yield said


def _add(said: Body, item: Mapping[str, Any]) -> None:
    if item["type"] == "message":
        text = "".join(part.get("text") or part.get("refusal") or "" for part in item["content"])
        said["content"] = f"{said['content'] or ''}{text}"
        return
    function = {"name": item["name"], "arguments": item["arguments"]}
    said.setdefault("tool_calls", []).append({"id": item["call_id"], "type": "function", "function": function})


def _function(name: str, description: str, parameters: Mapping[str, Any]) -> Body:
    told: Body = {"name": name, "description": description, "parameters": parameters}
    # Servers that know nothing of strict schemas refuse the word.
    return {"type": "function", "function": {**told, "strict": True} if is_strict(parameters) else told}


def _format(schema: Mapping[str, Any] | None) -> Body | None:
    if schema is None:
        return None
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, "strict": is_strict(schema)}}
