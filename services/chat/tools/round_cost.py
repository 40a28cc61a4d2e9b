"""What a round of the model can cost at most, before it is asked.

A byte-level tokenizer makes at most one token of each byte, so the UTF-8 bytes of what is sent bound the input, together
with what the provider puts around it; `max_output_tokens` bounds the output, reasoning included. What tools at the provider
read is bounded by nobody: for each of them a fixed allowance is reserved, by which a running reply may be wrong.
"""

from typing import Any, Final

import orjson

from services.chat.model.request import ModelRequest

TOOL_ALLOWANCE_TOKENS: Final = 16_384
"""For each tool at the provider that a round may use: web search, code interpreter, an MCP server."""
DEFAULT_OUTPUT_TOKENS: Final = 8_192
"""The bound of a reply where there is a budget and nobody named one: without a bound nothing could be reserved."""

_AROUND_ALL: Final = 256
_AROUND_EACH: Final = 64
# An image costs by its size, up to 1,536 patches times 2.46 where patches are counted (OpenAI, "Images and vision", 2025);
# one family charges up to 2,833 + 8 tiles of 5,667.
_IMAGE: Final = 4_096
_IMAGE_IN_TILES: Final = 48_169
_TILES_FAMILY: Final = "gpt-4o-mini"


def bound_of_round(request: ModelRequest) -> int:
    """Most tokens, input and output, that a round can cost; beyond the allowance for tools at the provider."""
    options = request.options
    texts = [options.instructions, *(message.text for message in request.messages)]
    values: list[Any] = [*request.items, options.response_schema]
    values += [(one.name, one.description, one.parameters) for one in request.functions]
    sent = sum(len(text.encode()) for text in texts) + sum(len(orjson.dumps(value)) for value in values)
    around = _AROUND_ALL + _AROUND_EACH * (len(texts) + len(values))
    image = _IMAGE_IN_TILES if request.model.startswith(_TILES_FAMILY) else _IMAGE
    tools = options.use_web_search + options.use_code_interpreter + len(request.hosted_mcp)
    output = options.max_output_tokens or DEFAULT_OUTPUT_TOKENS
    return sent + around + image * len(request.images) + TOOL_ALLOWANCE_TOKENS * tools + output
