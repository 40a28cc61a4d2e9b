"""Strict validation of what the simulator sends, by the SDK's own types: every field typed, none unknown, none missing."""

from collections.abc import Iterator
from typing import Any

from openai.types import CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
RESPONSE: TypeAdapter[Any] = TypeAdapter(Response)
COMPLETION: TypeAdapter[Any] = TypeAdapter(ChatCompletion)
CHUNK: TypeAdapter[Any] = TypeAdapter(ChatCompletionChunk)
EMBEDDINGS: TypeAdapter[Any] = TypeAdapter(CreateEmbeddingResponse)
MODEL: TypeAdapter[Any] = TypeAdapter(Model)


def check(kind: TypeAdapter[Any], raw: bytes | str) -> Any:
    """The JSON as the SDK's type. Raises ValidationError, or AssertionError naming the unknown fields."""
    parsed = kind.validate_json(raw, strict=True)
    unknown = list(unknown_fields(parsed, ""))
    assert not unknown, f"fields that the SDK does not know: {unknown} in {raw!r}"
    return parsed


def unknown_fields(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from (f"{path}.{name}" for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from unknown_fields(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from unknown_fields(one, f"{path}[{index}]")
