"""The JSON schema of a stranger's tool, made harmless.

What a server sends as a schema is shown to the model and checked against on our event loop. Invariant: what comes out is a
valid schema of an object, bounded in size and depth, without references (they are written out, so that neither a circle nor
a doubling can keep a validator busy), without patterns and without addresses to fetch. Making it takes work in proportion
to those bounds and to what was sent once, however often that refers to itself.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

MOST_BYTES: Final = 16_000
_MOST_NODES: Final = 1_000
_DEEPEST: Final = 20
_MOST_EXPANSIONS: Final = 4
_TYPES: Final = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})


def _is_anything(_value: object) -> bool:
    return True


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_step(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value)) and len(set(value)) == len(value)


def _are_names_by_name(value: object) -> bool:
    return isinstance(value, dict) and all(map(_are_names, value.values()))


def _is_type(value: object) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and _are_names(names) and _TYPES.issuperset(names)


# Kept as they are, where they are what JSON schema (2020-12) has them be. Not its own schema, which takes a quarter of a
# millisecond for each part of one that is held against it.
_VALUES: Final[Mapping[str, Callable[[Any], bool]]] = {
    "type": _is_type,
    **dict.fromkeys(("title", "description", "format"), _is_text),
    **dict.fromkeys(("default", "const"), _is_anything),
    **dict.fromkeys(("examples", "enum"), _is_list),
    **dict.fromkeys(("deprecated", "readOnly", "writeOnly", "uniqueItems"), _is_flag),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _is_number),
    "multipleOf": _is_step,
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _is_count),
    **dict.fromkeys(("minContains", "maxContains"), _is_count),
    "required": _are_names,
    "dependentRequired": _are_names_by_name,
}
_SCHEMA: Final = ("items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else")
_SCHEMAS: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED_SCHEMAS: Final = ("properties", "dependentSchemas")


class ParametersError(Exception):
    """The schema cannot be made harmless; the text says why."""


def harmless_parameters(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object that the tool takes. Raises ParametersError."""
    written = _Writing(schema).write()
    written["type"] = "object"
    written.setdefault("properties", {})
    if _size(written) > MOST_BYTES:
        raise _too_large()
    return written


class _Writing:
    """One schema being written out. Nodes and bytes are counted: a small schema may refer itself into a huge one."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root = schema
        self._nodes = 0
        self._bytes = 0
        self._targets: dict[str, object] = {}

    def write(self) -> dict[str, Any]:
        # Whatever type it says that it has, it is an object's.
        root = {key: value for key, value in self._root.items() if key != "type"}
        written = self._written(root, 0, ())
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
        # By our lists and not by its keys, which may be many and are looked through again at each reference.
        kept = {key: self._value(key, schema[key]) for key in _VALUES if key in schema}
        for key in _SCHEMA:
            if key in schema:
                kept[key] = self._written(schema[key], depth + 1, followed)
        for key in _SCHEMAS:
            kept.update(self._list(key, schema.get(key), depth, followed))
        for key in _NAMED_SCHEMAS:
            kept.update(self._map(key, schema.get(key), depth, followed))
        return self._with_referred(kept, schema.get("$ref"), depth, followed)

    def _value(self, key: str, value: object) -> object:
        self._count(value)
        if not _VALUES[key](value):
            raise ParametersError("is no valid JSON schema")
        return value

    def _count(self, value: object) -> None:
        """Counts what is taken over as it is, before anything is done with it."""
        self._bytes += _size(value)
        if self._bytes > MOST_BYTES:
            raise _too_large()

    def _list(self, key: str, value: object, depth: int, followed: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, list) or not value:
            return {}
        return {key: [self._written(one, depth + 1, followed) for one in value]}

    def _map(self, key: str, value: object, depth: int, followed: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {}
        written: dict[str, Any] = {}
        for name, one in value.items():
            self._count(name)
            written[name] = self._written(one, depth + 1, followed)
        return {key: written}

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
        if reference not in self._targets:
            self._targets[reference] = self._found(reference)
        return self._targets[reference]

    def _found(self, reference: str) -> object:
        if not reference.startswith("#"):
            return {}
        found: object = self._root
        for part in reference.removeprefix("#").split("/")[1:]:
            found = found.get(part.replace("~1", "/").replace("~0", "~"), {}) if isinstance(found, dict) else {}
        return found


def _size(value: object) -> int:
    try:
        return len(orjson.dumps(value))
    except orjson.JSONEncodeError as error:
        raise ParametersError("is no valid JSON schema") from error


def _too_large() -> ParametersError:
    return ParametersError(f"is larger than {MOST_BYTES} bytes")
