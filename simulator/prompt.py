"""What the simulated model sees of a request: one view for Responses input and for chat messages.

Owns the reading of input items, as strict as OpenAI's: a function call without its output, an output without its call, a
message without a role are refused. It refuses to look anywhere but into the request: nothing is remembered between two.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import orjson

from simulator.errors import ApiError, invalid
from simulator.images import describe
from simulator.requests import ChatRequest, JsonObject, ResponsesRequest
from simulator.tokens import cached_tokens, count_tokens

_PASSED_OVER = frozenset(
    {"reasoning", "web_search_call", "code_interpreter_call", "mcp_call", "mcp_list_tools", "mcp_approval_request"}
    | {"item_reference", "compaction", "file_search_call", "image_generation_call"}
)
_MEMORIES = "Memories (data, not instructions"
_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})
_OTHER_PARTS = frozenset({"input_file", "input_audio", "file", "refusal"})


@dataclass(frozen=True, slots=True)
class Message:
    """A message of any role; `images` describes its pictures."""

    role: str
    text: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """An earlier function call of the assistant."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Output:
    """What the caller's function answered."""

    call_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Approval:
    """The person's answer to an MCP approval request."""

    request_id: str
    approved: bool


@dataclass(frozen=True, slots=True)
class Other:
    """An item that the rules only recognise by its type."""

    item: JsonObject = field(hash=False)


Item: TypeAlias = Message | Call | Output | Approval | Other


@dataclass(frozen=True)
class Prompt:
    """The input of one reply, in order; `tools` in the shape of the Responses API, `schema` of the wanted JSON."""

    items: tuple[Item, ...]
    tools: tuple[JsonObject, ...] = ()
    instructions: str = ""
    schema: JsonObject | None = None
    wants_json: bool = False
    tool_choice: str | JsonObject = "auto"

    @cached_property
    def messages(self) -> tuple[Message, ...]:
        """The user's and the assistant's messages."""
        return tuple(item for item in self.items if isinstance(item, Message) and item.role in ("user", "assistant"))

    @cached_property
    def _last_user_index(self) -> int:
        for index in range(len(self.items) - 1, -1, -1):
            item = self.items[index]
            if isinstance(item, Message) and item.role == "user":
                return index
        return -1

    @cached_property
    def last_user(self) -> Message:
        """The user's last message; an empty one where there is none."""
        item = self.items[self._last_user_index] if self._last_user_index >= 0 else None
        return item if isinstance(item, Message) else Message("user", "")

    @cached_property
    def earlier_user_texts(self) -> tuple[str, ...]:
        """What the user said before the last message, oldest first."""
        earlier = self.items[: max(self._last_user_index, 0)]
        return tuple(item.text for item in earlier if isinstance(item, Message) and item.role == "user")

    @cached_property
    def earlier_messages(self) -> int:
        """How many messages of user and assistant stand before the user's last one."""
        earlier = self.items[: max(self._last_user_index, 0)]
        return sum(1 for item in earlier if isinstance(item, Message) and item.role in ("user", "assistant"))

    @cached_property
    def background(self) -> str:
        """Instructions and every system or developer message, as one text."""
        parts = [item.text for item in self.items if isinstance(item, Message) and item.role in ("system", "developer")]
        return "\n".join(part for part in (self.instructions, *parts) if part)

    @cached_property
    def orders(self) -> str:
        """The instructions alone: without them, the system message that the conversation begins with; no memories."""
        first = self.items[0] if self.items else None
        if self.instructions or not isinstance(first, Message) or first.role not in ("system", "developer"):
            return self.instructions
        return "" if first.text.startswith(_MEMORIES) else first.text

    @cached_property
    def since_last_user(self) -> tuple[Item, ...]:
        """What has happened since the user's last message: calls and their outputs."""
        return self.items[self._last_user_index + 1 :]

    def input_tokens(self) -> tuple[int, int]:
        """(all tokens, those of them that a prompt cache would serve: the part before the user's last message)."""
        before = count_tokens([self.instructions, *map(_text_of, self.items[: max(self._last_user_index, 0)])])
        tools = count_tokens(orjson.dumps(tool).decode() for tool in self.tools)
        after = count_tokens(map(_text_of, self.items[max(self._last_user_index, 0) :]))
        return tools + before + after, cached_tokens(tools + before)


def read_responses(request: ResponsesRequest, tools: Sequence[JsonObject], *, before: Sequence[JsonObject]) -> Prompt:
    """The prompt of a Responses request; `before` are the items of the previous response it continues."""
    own = [{"role": "user", "content": request.input}] if isinstance(request.input, str) else request.input
    items = tuple(_item(raw, f"input[{index}]") for index, raw in enumerate([*before, *own], -len(before)))
    _check_pairs(items)
    chosen = request.text.format if request.text else None
    if chosen is not None and chosen.type == "json_schema" and (chosen.schema_ is None or chosen.name is None):
        missing = "text.format.schema" if chosen.schema_ is None else "text.format.name"
        raise invalid(f"Missing required parameter: '{missing}'.", param=missing, code="missing_required_parameter")
    return Prompt(
        items=items,
        tools=tuple(tools),
        instructions=request.instructions or "",
        schema=chosen.schema_ if chosen else None,
        wants_json=chosen is not None and chosen.type == "json_object",
        tool_choice=request.tool_choice or "auto",
    )


def read_chat(request: ChatRequest) -> Prompt:
    """The prompt of a chat completion."""
    items = tuple(item for index, raw in enumerate(request.messages) for item in _chat_items(raw, f"messages[{index}]"))
    _check_pairs(items)
    chosen = request.response_format
    return Prompt(
        items=items,
        tools=tuple({"type": "function", **tool.function} for tool in request.tools or ()),
        schema=chosen.json_schema.schema_ if chosen and chosen.json_schema else None,
        wants_json=chosen is not None and chosen.type == "json_object",
        tool_choice=request.tool_choice or "auto",
    )


def _item(raw: JsonObject, where: str) -> Item:
    kind = raw.get("type", "message")
    if kind == "message":
        return _message(raw, where, roles=("user", "assistant", "system", "developer"))
    if kind == "function_call":
        return Call(_text(raw, "call_id", where), _text(raw, "name", where), _text(raw, "arguments", where))
    if kind == "function_call_output":
        return Output(_text(raw, "call_id", where), _content(raw.get("output"), f"{where}.output")[0])
    if kind == "mcp_approval_response":
        return Approval(_text(raw, "approval_request_id", where), raw.get("approve") is True)
    if kind in _PASSED_OVER:
        return Other(raw)
    raise invalid(f"Invalid value: '{kind}' is not an input item that the simulator knows.", param=f"{where}.type")


def _chat_items(raw: JsonObject, where: str) -> list[Item]:
    if raw.get("role") == "tool":
        return [Output(_text(raw, "tool_call_id", where), _content(raw.get("content"), f"{where}.content")[0])]
    calls = raw.get("tool_calls") or []
    if not calls:
        return _told_apart(_message(raw, where, roles=("user", "assistant", "system", "developer")))
    said = raw.get("content")
    spoken: list[Item] = [_message(raw, where, roles=("assistant",))] if said else []
    return spoken + [_chat_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)]


def _told_apart(message: Message) -> list[Item]:
    """A message of the user that begins with memories, as the two that it would be in the Responses API."""
    told, _, said = message.text.partition("\n\n")
    if message.role != "user" or not told.startswith(_MEMORIES):
        return [message]
    return [Message("developer", told), Message("user", said, message.images)]


def _chat_call(raw: Any, where: str) -> Call:
    if not isinstance(raw, dict) or not isinstance(raw.get("function"), dict):
        raise invalid(f"Missing required parameter: '{where}.function'.", param=where, code="missing_required_parameter")
    function = raw["function"]
    return Call(_text(raw, "id", where), _text(function, "name", where), _text(function, "arguments", where))


def _message(raw: JsonObject, where: str, *, roles: tuple[str, ...]) -> Message:
    role = raw.get("role")
    if role not in roles:
        raise invalid(f"Invalid value: '{role}'. Supported values are: {', '.join(roles)}.", param=f"{where}.role")
    text, images = _content(raw.get("content"), f"{where}.content")
    return Message(str(role), text, images)


def _content(raw: Any, where: str) -> tuple[str, tuple[str, ...]]:
    if isinstance(raw, str):
        return raw, ()
    if not isinstance(raw, list):
        raise invalid(f"Invalid type for '{where}': expected a string or an array.", param=where, code="invalid_type")
    parts = [_part(part, f"{where}[{index}]") for index, part in enumerate(raw)]
    return "".join(text for text, _ in parts), tuple(image for _, image in parts if image)


def _part(raw: Any, where: str) -> tuple[str, str]:
    """A part's text, and what its picture is."""
    kind = raw.get("type") if isinstance(raw, dict) else None
    if kind in _TEXT_PARTS:
        return _text(raw, "text", where), ""
    if kind in ("input_image", "image_url"):
        return "", describe(raw, where)
    if kind in _OTHER_PARTS:
        return "", ""
    raise invalid(f"Invalid value: '{kind}' is not a content part.", param=f"{where}.type")


def _text(raw: JsonObject, key: str, where: str) -> str:
    value = raw.get(key)
    if isinstance(value, str):
        return value
    param = f"{where}.{key}"
    raise invalid(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def _check_pairs(items: tuple[Item, ...]) -> None:
    """Every output follows its call, every call has an output, and reasoning leads to something, as OpenAI insists."""
    open_calls: set[str] = set()
    for item, following in zip(items, (*items[1:], None), strict=True):
        _check_thought(item, following)
        if isinstance(item, Call):
            open_calls.add(item.call_id)
        elif isinstance(item, Output):
            if item.call_id not in open_calls:
                raise _unpaired(f"No tool call found for function call output with call_id {item.call_id}.")
            open_calls.discard(item.call_id)
    if open_calls:
        raise _unpaired(f"No tool output found for function call {min(open_calls)}.")


def _check_thought(item: Item, following: Item | None) -> None:
    if not isinstance(item, Other) or item.item.get("type") != "reasoning":
        return
    is_led_from = isinstance(following, Call | Other) or (isinstance(following, Message) and following.role == "assistant")
    if not is_led_from:
        raise _unpaired(
            f"Item '{item.item.get('id')}' of type 'reasoning' was provided without its required following item."
        )


def _unpaired(message: str) -> ApiError:
    return invalid(message, param="input", code=None)


def _text_of(item: Item) -> str:
    match item:
        case Message(text=text) | Output(text=text):
            return text
        case Call(name=name, arguments=arguments):
            return f"{name} {arguments}"
        case _:
            return ""
