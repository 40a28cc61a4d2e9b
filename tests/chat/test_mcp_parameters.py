"""A stranger's JSON schema made harmless: what a tool needs stays, what could hurt goes."""

import tracemalloc
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from services.chat.mcp.parameters import ParametersError, harmless_parameters
from services.chat.tools.arguments import read_arguments
from tests.work import function_calls


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
    schema = {"type": "object", "properties": {"x": {"$ref": "#/$defs/a0"}}, "$defs": definitions}

    def read_or_refused() -> None:
        try:
            assert read_arguments('{"x": 1}', harmless_parameters(schema)) == {"x": 1}
        except ParametersError as error:
            assert "parts" in str(error)  # noqa: PT017 - either will do, at once

    assert function_calls(read_or_refused) < 100_000


LARGE = {
    "a value": {"enum": ["x" * 1_900_000]},
    "many values": {"enum": [f"{index:05}" for index in range(200_000)]},
    "many names": {"required": [f"{index:05}" for index in range(100_000)]},
    "a name": {"properties": {"x" * 1_900_000: {}}},
    "many unknown words": {f"word {index}": 0 for index in range(150_000)},
    "a long reference": {"$ref": "#" + "/x" * 200_000},
}


@pytest.mark.parametrize("large", LARGE.values(), ids=LARGE.keys())
def test_what_is_referred_to_often_costs_what_it_costs_once(large: dict[str, Any]) -> None:
    """What a server may send is 2 MiB; a reference to a part of it is some bytes."""
    schema = {"properties": {f"p{index}": {"$ref": "#/$defs/a"} for index in range(480)}, "$defs": {"a": large}}
    assert function_calls(lambda: _written_or_refused(schema)) < 2_000_000
    tracemalloc.start()
    try:
        _written_or_refused(schema)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


def _written_or_refused(schema: dict[str, Any]) -> None:
    try:
        assert len(str(harmless_parameters(schema))) < 30_000
    except ParametersError as error:
        assert str(error)[:12] in {"is larger th", "holds more t"}  # noqa: PT017 - either will do, at little cost


WORDS = (
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "format", "type", "const"),
    *("enum", "required", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength"),
    *("maxLength", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "minContains"),
    *("maxContains", "dependentRequired"),
)
SAMPLES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 1.0, 1.5, -0.5, 2**63, 1e300, "", "x", "string", "nothing"),
    *([], ["a"], ["a", "b"], ["a", "a"], ["string", "null"], ["string", "string"], ["string", "nothing"], [1], [None]),
    *({}, {"a": []}, {"a": ["b"]}, {"a": ["b", "b"]}, {"a": "b"}, {"a": [1]}),
)


@pytest.mark.parametrize("word", WORDS)
def test_what_is_kept_is_what_json_schema_takes(word: str) -> None:
    for sample in SAMPLES:
        schema = {"properties": {"a": {word: sample}}}
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError:
            with pytest.raises(ParametersError):
                harmless_parameters(schema)
        else:
            assert harmless_parameters(schema)["properties"] == schema["properties"], sample


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"type": "nothing"}}},
        {"properties": {"a": {"required": "a"}}},
        {"properties": {str(index): {} for index in range(2_000)}},
        {"properties": {"a": {"description": "x" * 20_000}}},
        {"properties": {"a": {"default": 2**70}}},
        {"properties": {"a": {"maximum": float("nan")}}},
    ],
)
def test_what_cannot_be_used_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ParametersError):
        harmless_parameters(schema)


def test_anything_at_the_root_is_an_object() -> None:
    assert harmless_parameters({}) == {"type": "object", "properties": {}}
    assert harmless_parameters({"type": "string"})["type"] == "object"
