"""What an MCP tool answered, as the text that the model is given.

Invariant: at most 100,000 characters that any database and any provider takes. Pictures and sounds are named, not shown.
"""

import json
from collections.abc import Iterator
from typing import Final

import mcp_types as types

MOST_CHARACTERS: Final = 100_000
_CUT: Final = "\n… (cut: the tool answered more than fits)"
_KILOBYTE: Final = 1024


def text_of(result: types.CallToolResult) -> str:
    """The whole result as text."""
    return cut(clean("\n".join(_pieces(result)) or "(the tool answered nothing)"), MOST_CHARACTERS)


def clean(text: str) -> str:
    """The text without what a database or a JSON encoder refuses."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "")


def cut(text: str, most: int) -> str:
    """The text, or its beginning with a note that it was cut."""
    return text if len(text) <= most else text[: most - len(_CUT)] + _CUT


def _pieces(result: types.CallToolResult) -> Iterator[str]:
    has_text = False
    for block in result.content:
        has_text = has_text or isinstance(block, types.TextContent)
        yield _block(block)
    # Servers repeat structured content as text for clients that know only that.
    if result.structured_content is not None and not has_text:
        # Not orjson, which refuses numbers of more than 64 bits and halves of characters.
        yield json.dumps(result.structured_content, ensure_ascii=False)


def _block(block: types.ContentBlock) -> str:
    match block:
        case types.TextContent():
            return block.text
        case types.ImageContent() | types.AudioContent():
            return f"[{block.type}: {block.mime_type}, {_size(block.data)}, not shown]"
        case types.ResourceLink():
            told = f" ({block.description})" if block.description else ""
            return f"[resource: {block.name}, {block.uri}{told}]"
        case types.EmbeddedResource(resource=types.TextResourceContents() as resource):
            return resource.text
        case types.EmbeddedResource(resource=types.BlobResourceContents() as resource):
            return f"[resource: {resource.uri}, {resource.mime_type or 'binary'}, {_size(resource.blob)}, not shown]"
    return f"[{block.type}: not shown]"


def _size(base64: str) -> str:
    return f"{max(1, len(base64) * 3 // 4 // _KILOBYTE)} KiB"
