"""The bodies that the simulated API accepts.

Owns which parameters exist and what each may hold, as strictly as OpenAI: an unknown parameter, a wrong type or a value
out of range is a 400 that names it. Parameters that change nothing here (user, prompt_cache_key …) are accepted and echoed.
"""

from typing import Annotated, Any, Literal, Self, TypeVar

import orjson
from openai.types.responses import ResponseIncludable, Tool
from openai.types.responses.response import ToolChoice
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from simulator.errors import ApiError, from_validation, invalid

JsonObject = dict[str, Any]
Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]
Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Tier = Literal["auto", "default", "flex", "scale", "priority", "fast"]

_TOOL: TypeAdapter[Any] = TypeAdapter(Tool)
_TOOL_CHOICE: TypeAdapter[Any] = TypeAdapter(ToolChoice)


def _check_choice(choice: str | JsonObject) -> str | JsonObject:
    try:
        parsed = _TOOL_CHOICE.validate_python(choice)
    except ValidationError as error:
        raise ValueError("not a tool choice that the API knows") from error
    if isinstance(parsed, BaseModel) and parsed.model_extra:
        raise ValueError(f"a tool choice has no '{min(parsed.model_extra)}'")
    return choice


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(_Body):
    """`stream_options` of both endpoints."""

    include_obfuscation: bool | None = None
    include_usage: bool | None = None


class ReasoningOptions(_Body):
    """`reasoning`; generate_summary is the older name of summary."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None

    @property
    def wants_summary(self) -> bool:
        """True where a summary is to be shown."""
        return (self.summary or self.generate_summary) is not None


class TextFormat(_Body):
    """`text.format`."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] | None = None
    schema_: JsonObject | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_belongs_to_its_type(self) -> Self:
        if self.type != "json_schema" and len(self.model_fields_set) > 1:
            raise ValueError("only the type 'json_schema' has a name, a schema, a description and strict")
        return self


class TextOptions(_Body):
    """`text`."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesRequest(_Body):
    """The body of POST /v1/responses."""

    model: Text
    input: str | list[JsonObject]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    background: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    include: list[ResponseIncludable] | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    tools: list[JsonObject] | None = None
    tool_choice: Annotated[str | JsonObject, AfterValidator(_check_choice)] | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=16)] | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    service_tier: Tier | None = None
    metadata: Metadata | None = None
    safety_identifier: Annotated[str, Field(max_length=128)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    user: str | None = None


class ChatTool(_Body):
    """A tool of a chat completion: functions only."""

    type: Literal["function"]
    function: JsonObject


class JsonSchemaFormat(_Body):
    """`response_format.json_schema`."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: JsonObject = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ChatFormat(_Body):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class ChatRequest(_Body):
    """The body of POST /v1/chat/completions."""

    model: Text
    messages: Annotated[list[JsonObject], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[ChatTool] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    response_format: ChatFormat | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    reasoning_effort: Effort | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    store: bool | None = None
    service_tier: Tier | None = None
    metadata: Metadata | None = None
    safety_identifier: Annotated[str, Field(max_length=128)] | None = None
    prompt_cache_key: str | None = None
    user: str | None = None


class EmbeddingsRequest(_Body):
    """The body of POST /v1/embeddings."""

    model: Text
    input: str | Annotated[list[str] | list[int] | list[list[int]], Field(min_length=1, max_length=2048)]
    dimensions: Annotated[int, Field(ge=1, le=3072)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


Request = TypeVar("Request", ResponsesRequest, ChatRequest, EmbeddingsRequest)


def parse_json(body: bytes) -> JsonObject:
    """The JSON object of a body. Raises ApiError (400)."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid(f"We could not parse the JSON body of your request: {error}.", code=None) from error
    if not isinstance(parsed, dict):
        raise invalid("The body of the request must be a JSON object.", code=None)
    return parsed


def parse_body(model: type[Request], body: JsonObject) -> Request:
    """The body as the endpoint's type. Raises ApiError (400) naming the first parameter that does not fit."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise from_validation(error) from error


def parse_tools(tools: list[JsonObject]) -> list[JsonObject]:
    """The tools as OpenAI echoes them: completed by defaults, secrets redacted. Raises ApiError (400)."""
    return [_parse_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]


def _parse_tool(tool: JsonObject, where: str) -> JsonObject:
    if not isinstance(tool.get("type"), str):
        raise invalid(f"Missing required parameter: '{where}.type'.", param=where, code="missing_required_parameter")
    completed = _with_defaults(tool)
    try:
        parsed = _TOOL.validate_python(completed)
    except ValidationError as error:
        raise invalid(f"Invalid value for '{where}': not a tool that the API knows.", param=where) from error
    unknown = sorted(parsed.model_extra or ())
    if unknown:
        raise _unknown(f"{where}.{unknown[0]}")
    return completed


def _with_defaults(tool: JsonObject) -> JsonObject:
    if tool["type"] == "function":
        return {"description": None, "parameters": None, "strict": True, **tool}
    if tool["type"] != "mcp":
        return dict(tool)
    shown = {key: value for key, value in tool.items() if key != "authorization"}
    if isinstance(shown.get("headers"), dict):
        shown["headers"] = dict.fromkeys(shown["headers"], "<redacted>")
    return shown


def _unknown(param: str) -> ApiError:
    return invalid(f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
