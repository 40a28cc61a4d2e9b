"""The JSON schema of a stranger's tool, made harmless.

What a server sends as a schema is shown to the model and checked against on our event loop. Invariant: what comes out is a
valid schema of an object, bounded in size and depth, without references (they are written out, so that neither a circle nor
a doubling can keep a validator busy), without patterns and without addresses to fetch.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

MOST_BYTES: Final = 16_000
_MOST_NODES: Final = 1_000
_DEEPEST: Final = 20
_MOST_EXPANSIONS: Final = 4

# Kept as they are.
_VALUES: Final = frozenset(
    {
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "format", "type", "const"),
        *("enum", "required", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength"),
        *("maxLength", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "minContains"),
        *("maxContains", "dependentRequired"),
    }
)
_SCHEMA: Final = frozenset({"items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else"})
_SCHEMAS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED_SCHEMAS: Final = frozenset({"properties", "dependentSchemas"})


class ParametersError(Exception):
    """The schema cannot be made harmless; the text says why."""


def harmless_parameters(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object that the tool takes. Raises ParametersError."""
    written = _Writing(schema).write()
    written["type"] = "object"
    written.setdefault("properties", {})
    try:
        size = len(orjson.dumps(written))
        Draft202012Validator.check_schema(written)
    except (orjson.JSONEncodeError, SchemaError) as error:
        raise ParametersError("is no valid JSON schema") from error
    if size > MOST_BYTES:
        raise ParametersError(f"is larger than {MOST_BYTES} bytes")
    return written


class _Writing:
    """One schema being written out. Nodes are counted: a small schema may refer itself into a huge one."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root = schema
        self._nodes = 0

    def write(self) -> dict[str, Any]:
        written = self._written(self._root, 0, ())
        if not isinstance(written, dict):
            raise ParametersError("is no schema of an object")
        return written

    def _written(self, schema: object, depth: int, followed: tuple[str, ...]) -> dict[str, Any] | bool:
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise ParametersError(f"holds more than {_MOST_NODES} parts")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict) or depth > _DEEPEST:
            return {}
        kept = {key: value for key, value in schema.items() if key in _VALUES}
        for key in _SCHEMA & schema.keys():
            kept[key] = self._written(schema[key], depth + 1, followed)
        for key in _SCHEMAS & schema.keys():
            kept.update(self._list(key, schema[key], depth, followed))
        for key in _NAMED_SCHEMAS & schema.keys():
            kept.update(self._map(key, schema[key], depth, followed))
        return self._with_referred(kept, schema.get("$ref"), depth, followed)

    def _list(self, key: str, value: object, depth: int, followed: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, list) or not value:
            return {}
        return {key: [self._written(one, depth + 1, followed) for one in value]}

    def _map(self, key: str, value: object, depth: int, followed: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {}
        return {key: {str(name): self._written(one, depth + 1, followed) for name, one in value.items()}}

    def _with_referred(
        self, kept: dict[str, Any], reference: object, depth: int, followed: tuple[str, ...]
    ) -> dict[str, Any] | bool:
        """The schema with what it refers to; anything is allowed where a circle is cut, or the reference leads outside."""
        if not isinstance(reference, str) or followed.count(reference) >= _MOST_EXPANSIONS:
            return kept
        referred = self._written(self._target(reference), depth + 1, (*followed, reference))
        if not kept:
            return referred
        return {**kept, "allOf": [*kept.get("allOf", []), referred]}

    def _target(self, reference: str) -> object:
        if not reference.startswith("#"):
            return {}
        found: object = self._root
        for part in reference.removeprefix("#").split("/")[1:]:
            found = found.get(part.replace("~1", "/").replace("~0", "~"), {}) if isinstance(found, dict) else {}
        return found
