"""A request of the Responses API as the provider gets it.

Owns the translation of a round into a body. Invariant: what is the same in every turn of a conversation comes first and is
byte for byte the same, so that the provider's cache of prompts holds; what we add by ourselves can be left out.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from services.chat.model.request import ModelRequest
from services.chat.model.schemas import is_strict
from services.chat.records import Image

# What we add to a request by ourselves, by the parameter that a refusal of it names.
BACKGROUND: Final = "background"
ENCRYPTED_REASONING: Final = "include"
REASONING_SUMMARY: Final = "reasoning.summary"
Body = dict[str, Any]


def response_body(request: ModelRequest, *, is_background: bool, without: frozenset[str]) -> bytes:
    """The body as JSON. `without` are the parameters of our own that this provider or model refuses."""
    options = request.options
    body: Body = {
        "model": request.model,
        "instructions": options.instructions,
        "tools": list(_tools(request)) or None,
        "text": _text_format(options.response_schema),
        "reasoning": _reasoning(request, without),
        "include": list(_included(request, without)) or None,
        "max_output_tokens": options.max_output_tokens,
        "temperature": options.temperature,
        "prompt_cache_key": request.conversation_id,
        "safety_identifier": options.user_digest,
        # The provider takes a background run only where it may keep it.
        "background": True if is_background else None,
        "store": is_background,
        "stream": True,
        "stream_options": {"include_obfuscation": False},
    }
    told = {name: value for name, value in body.items() if value is not None}
    return orjson.dumps({**told, "input": [*_messages(request), *replayable(request.items, is_kept=is_background)]})


def image_url(image: Image) -> str:
    """Where the provider finds an image: its address, or its data as one."""
    if image.url is not None:
        return image.url
    return f"data:{image.media_type};base64,{base64.b64encode(image.data or b'').decode()}"


def replayable(items: Sequence[Mapping[str, Any]], *, is_kept: bool) -> list[Mapping[str, Any]]:
    """The items of earlier rounds as they can be sent back.

    Where the provider keeps nothing, it knows a reasoning item by its encrypted content alone; one without cannot be sent.
    """
    if not is_kept and any(item.get("type") == "reasoning" and not item.get("encrypted_content") for item in items):
        return unpaired(items)
    return [_sent(item) for item in items]


def unpaired(items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What was said, called and answered, and nothing that refers to what the provider has (reasoning, containers).

    Without ids: by an id the provider would look for the reasoning that belongs to it.
    """
    said = [item for item in items if item.get("type") in ("message", "function_call", "function_call_output")]
    return [{name: value for name, value in item.items() if name != "id"} for item in said]


def _sent(item: Mapping[str, Any]) -> Mapping[str, Any]:
    # Outputs have empty fields that inputs may not have.
    return {name: value for name, value in item.items() if value is not None} if item.get("type") == "reasoning" else item


def _messages(request: ModelRequest) -> Iterator[Body]:
    last = len(request.messages) - 1
    for index, message in enumerate(request.messages):
        if index < last or not request.images:
            yield {"role": message.role, "content": message.text}
            continue
        images = [{"type": "input_image", "detail": "auto", "image_url": image_url(one)} for one in request.images]
        yield {"role": message.role, "content": [{"type": "input_text", "text": message.text}, *images]}


def _tools(request: ModelRequest) -> Iterator[Body]:
    for function in request.functions:
        yield {
            "type": "function",
            "name": function.name,
            "description": function.description,
            "parameters": function.parameters,
            "strict": is_strict(function.parameters),
        }
    if request.options.use_web_search:
        yield {"type": "web_search"}
    if request.options.use_code_interpreter:
        yield {"type": "code_interpreter", "container": {"type": "auto"}}
    for server in request.hosted_mcp:
        yield {
            "type": "mcp",
            "server_label": server.label,
            "server_url": server.url,
            "require_approval": server.approval,
            **({"headers": dict(server.headers)} if server.headers else {}),
            **({"allowed_tools": list(server.allowed_tools)} if server.allowed_tools else {}),
        }


def _text_format(schema: Mapping[str, Any] | None) -> Body | None:
    if schema is None:
        return None
    return {"format": {"type": "json_schema", "name": "reply", "schema": schema, "strict": is_strict(schema)}}


def _reasoning(request: ModelRequest, without: frozenset[str]) -> Body | None:
    effort = request.options.reasoning_effort
    if effort is None:
        return None
    return {"effort": effort} if REASONING_SUMMARY in without else {"effort": effort, "summary": "auto"}


def _included(request: ModelRequest, without: frozenset[str]) -> Iterator[str]:
    # A model that does not reason refuses it, so only where there may be another round, or reasoning is asked for.
    reasons = request.functions or request.items or request.options.reasoning_effort
    if reasons and ENCRYPTED_REASONING not in without:
        yield "reasoning.encrypted_content"
    if request.options.use_code_interpreter:
        yield "code_interpreter_call.outputs"
    if request.options.use_web_search:
        yield "web_search_call.action.sources"
