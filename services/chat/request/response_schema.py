"""The JSON schema that a reply must satisfy, as a request brings it.

Owns the bounds of a schema. Invariant: a schema has one form: keys sorted, whole numbers as integers, whatever way it came.
It refuses what is no schema of an object, and demands nothing that only one provider's strict mode would; what else is wrong
with a schema the provider says, who is asked to enforce it.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import orjson
from google.protobuf.struct_pb2 import Struct, Value

from services.runtime.rules import CONTROL_CHARACTERS

MOST_BYTES: Final = 64 * 1024
MOST_LEVELS: Final = 20
# Beyond, the whole numbers of JSON are not those of whoever reads it.
_GREATEST_NUMBER: Final = 2.0**63

_MAPS: Final = ("properties", "$defs", "definitions")
_LISTS: Final = ("anyOf", "allOf", "oneOf")
_KINDS: Final = {**dict.fromkeys(_MAPS, dict), **dict.fromkeys((*_LISTS, "required", "enum"), list)}
_CALLED: Final = {dict: "an object", list: "a list"}


class SchemaError(Exception):
    """The schema cannot be used; the text says why."""


def read_schema(struct: Struct) -> dict[str, Any]:
    """The schema in a request. Raises SchemaError."""
    # No value takes less than an eighth of its room in JSON: what is far too large is not even read.
    if struct.ByteSize() > 8 * MOST_BYTES:
        raise SchemaError(f"has more than {MOST_BYTES} bytes as JSON, which is all that is allowed")
    schema = _object(struct, levels=MOST_LEVELS)
    if schema.get("type") != "object":
        raise SchemaError('must be the JSON schema of an object: its root needs "type": "object"')
    _check_parts(schema, "")
    size = len(orjson.dumps(schema))
    if size > MOST_BYTES:
        raise SchemaError(f"has {size} bytes as JSON, at most {MOST_BYTES} are allowed")
    return schema


def _object(struct: Struct, *, levels: int) -> dict[str, Any]:
    if levels == 0:
        raise SchemaError(f"is more than {MOST_LEVELS} levels deep")
    return {_text(key): _value(struct.fields[key], levels=levels - 1) for key in sorted(struct.fields)}


def _value(value: Value, *, levels: int) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return _object(value.struct_value, levels=levels)
        case "list_value":
            if levels == 0:
                raise SchemaError(f"is more than {MOST_LEVELS} levels deep")
            return [_value(one, levels=levels - 1) for one in value.list_value.values]
        case "number_value":
            return _number(value.number_value)
        case "string_value":
            return _text(value.string_value)
        case "bool_value":
            return value.bool_value
    return None


def _text(text: str) -> str:
    if CONTROL_CHARACTERS.search(text):
        raise SchemaError("holds a control character (NUL, say): remove it")
    return text


def _number(number: float) -> int | float:
    if not math.isfinite(number):
        raise SchemaError("holds a number that is none")
    if abs(number) >= _GREATEST_NUMBER:
        raise SchemaError("holds a number of more than 63 bits: leave it out")
    return int(number) if number.is_integer() else number


def _check_parts(schema: Mapping[str, Any], path: str) -> None:
    """Refuses what would surprise whoever reads the schema: keywords that hold something else than they must."""
    for keyword, kind in _KINDS.items():
        if keyword in schema and not isinstance(schema[keyword], kind):
            raise SchemaError(f"`{path}{keyword}` must be {_CALLED[kind]}")
    if not all(isinstance(name, str) for name in schema.get("required", ())):
        raise SchemaError(f"`{path}required` must hold names of properties")
    for keyword in _MAPS:
        for name, part in schema.get(keyword, {}).items():
            _check_part(part, f"{path}{keyword}.{name}")
    for keyword in _LISTS:
        for index, part in enumerate(schema.get(keyword, ())):
            _check_part(part, f"{path}{keyword}[{index}]")
    if "items" in schema:
        _check_part(schema["items"], f"{path}items")


def _check_part(part: Any, path: str) -> None:
    # true and false are schemas too.
    if isinstance(part, dict):
        _check_parts(part, f"{path}.")
    elif not isinstance(part, bool):
        raise SchemaError(f"`{path}` must be a schema")
