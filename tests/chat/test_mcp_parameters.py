"""A stranger's JSON schema made harmless: what a tool needs stays, what could hurt goes."""

import time
from typing import Any

import pytest

from services.chat.mcp.parameters import ParametersError, harmless_parameters
from services.chat.tools.arguments import read_arguments


def test_a_plain_schema_stays_as_it_is() -> None:
    schema = {
        "type": "object",
        "properties": {
            "pattern": {"type": "string", "description": "A property may be called anything.", "maxLength": 5},
            "many": {"type": "array", "items": {"enum": [1, "two", None]}, "minItems": 1},
        },
        "required": ["pattern"],
        "additionalProperties": False,
    }
    assert harmless_parameters(schema) == schema


def test_what_could_fetch_or_hang_is_left_out() -> None:
    schema = {
        "$schema": "http://127.0.0.1/schema",
        "$id": "http://127.0.0.1/id",
        "properties": {
            "a": {"$ref": "http://127.0.0.1/other", "type": "string"},
            "b": {"type": "string", "pattern": "(a+)+$"},
            "c": {"patternProperties": {"(a+)+$": {}}},
            "d": {"$dynamicRef": "#x", "unevaluatedProperties": False},
        },
    }
    written = harmless_parameters(schema)
    assert written["properties"]["a"] == {"type": "string", "allOf": [{}]}
    assert (written["properties"]["b"], written["properties"]["c"], written["properties"]["d"]) == (
        {"type": "string"},
        {},
        {},
    )
    assert not {"$schema", "$id"} & set(written)


def test_references_are_written_out() -> None:
    schema = {
        "properties": {"who": {"$ref": "#/$defs/person"}, "also": {"$ref": "#/$defs/a~1b"}},
        "$defs": {"person": {"type": "object", "properties": {"name": {"type": "string"}}}, "a/b": {"type": "integer"}},
    }
    written = harmless_parameters(schema)
    assert written["properties"]["who"]["properties"] == {"name": {"type": "string"}}
    assert written["properties"]["also"] == {"type": "integer"}


def test_a_tree_goes_down_a_few_levels_and_then_takes_anything() -> None:
    tree = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}
    written = harmless_parameters(tree)
    deep: dict[str, Any] = {}
    for _ in range(30):
        deep = {"children": [deep]}
    assert read_arguments(str(deep).replace("'", '"'), written) == deep


@pytest.mark.parametrize(
    "definitions",
    [
        {"a0": {"$ref": "#/$defs/a0"}},
        {"a0": {"allOf": [{"$ref": "#/$defs/a0"}, {"$ref": "#/$defs/a0"}]}},
        {"a0": {"$ref": "#/$defs/a1"}, "a1": {"$ref": "#/$defs/a0"}},
        {f"a{index}": {"allOf": [{"$ref": f"#/$defs/a{index + 1}"}] * 2} for index in range(40)},
    ],
    ids=["itself", "twice-itself", "each-other", "doubling"],
)
def test_circles_and_doublings_end(definitions: dict[str, Any]) -> None:
    begin = time.perf_counter()
    schema = {"type": "object", "properties": {"x": {"$ref": "#/$defs/a0"}}, "$defs": definitions}
    try:
        assert read_arguments('{"x": 1}', harmless_parameters(schema)) == {"x": 1}
    except ParametersError as error:
        assert "parts" in str(error)  # noqa: PT017 - either will do, at once
    assert time.perf_counter() - begin < 1


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"type": "nothing"}}},
        {"properties": {"a": {"required": "a"}}},
        {"properties": {str(index): {} for index in range(2_000)}},
        {"properties": {"a": {"description": "x" * 20_000}}},
        {"properties": {"a": {"default": 2**70}}},
    ],
)
def test_what_cannot_be_used_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ParametersError):
        harmless_parameters(schema)


def test_anything_at_the_root_is_an_object() -> None:
    assert harmless_parameters({}) == {"type": "object", "properties": {}}
    assert harmless_parameters({"type": "string"})["type"] == "object"
