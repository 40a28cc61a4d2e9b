"""Which JSON schemas the provider can enforce.

Owns that one question. A schema that is not strict is still sent: the model then follows it as well as it can.
"""

from collections.abc import Mapping
from typing import Any, Final

_KEYWORDS: Final = frozenset(
    ("type", "properties", "required", "additionalProperties", "description", "title", "enum", "const", "items", "anyOf")
)
_MAX_DEPTH: Final = 5


def is_strict(schema: Mapping[str, Any]) -> bool:
    """Whether it keeps to the subset that providers enforce: closed objects, every property required, known keywords."""
    return schema.get("type") == "object" and _is_enforced(schema, _MAX_DEPTH)


def _is_enforced(schema: object, depth: int) -> bool:
    if not isinstance(schema, Mapping) or depth == 0 or not _KEYWORDS.issuperset(schema):
        return False
    properties = schema.get("properties") or {}
    if "object" in _types(schema) or properties:
        required = schema.get("required") or ()
        if schema.get("additionalProperties") is not False or set(required) != set(properties):
            return False
    inside = [*properties.values(), *(schema.get("anyOf") or ()), *([schema["items"]] if "items" in schema else [])]
    return all(_is_enforced(one, depth - 1) for one in inside)


def _types(schema: Mapping[str, Any]) -> list[object]:
    stated = schema.get("type")
    return stated if isinstance(stated, list) else [stated]
