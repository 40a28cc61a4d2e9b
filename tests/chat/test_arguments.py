"""The arguments of a call, held against the schema of its tool, which may be a stranger's."""

import tracemalloc
from typing import Any

import orjson
import pytest

from services.chat.mcp.parameters import harmless_parameters
from services.chat.tools.arguments import read_arguments
from services.chat.tools.tool import ToolError
from tests.work import function_calls

NULLS = {"allOf": [{"type": "null"}] * 900}
PEOPLE = {
    "type": "object",
    "properties": {
        "people": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
                "required": ["name"],
                "additionalProperties": False,
            },
        },
        "how": {"anyOf": [{"enum": ["fast", "slow"]}, {"type": "object", "properties": {"steps": {"type": "integer"}}}]},
    },
    "required": ["people"],
}


def read(schema: dict[str, Any], arguments: dict[str, Any]) -> Any:
    return read_arguments(orjson.dumps(arguments).decode(), harmless_parameters(schema))


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"items": NULLS}, [0] * 2_000),
        ({"items": NULLS}, [None] * 2_000),
        ({"contains": NULLS}, [0] * 2_000),
        ({"items": {"anyOf": NULLS["allOf"]}}, [0] * 500),
        ({"anyOf": NULLS["allOf"]}, list(range(18_000))),
        ({"uniqueItems": True}, [{"a": number} for number in range(2_000)]),
        ({"uniqueItems": True}, [[number, "x"] if number else ["x", 0] for number in range(3_000)]),
        ({"items": {"enum": [[[0] * 199 + [last]] for last in range(1, 36)]}}, [[[0] * 200]] * 240),
        ({"items": {"required": [str(number) for number in range(2_000)]}}, [{}] * 10_000),
    ],
    ids=["wrong", "right", "contained", "any", "quoted", "objects", "lists", "compared", "required"],
)
def test_a_strangers_schema_costs_bounded_time_and_memory(schema: dict[str, Any], value: Any) -> None:
    written, text = harmless_parameters({"properties": {"a": schema}}), orjson.dumps({"a": value}).decode()

    def read_or_refused() -> None:
        try:
            assert read_arguments(text, written) == {"a": value}
        except ToolError as error:
            assert "Wrong arguments" in str(error)  # noqa: PT017 - either will do, soon

    assert function_calls(read_or_refused) < 500_000


def test_errors_that_quote_a_large_instance_are_few() -> None:
    written = harmless_parameters({"properties": {"a": {"anyOf": NULLS["allOf"]}}})
    text = orjson.dumps({"a": list(range(18_000))}).decode()
    tracemalloc.start()
    try:
        assert read_arguments(text, written)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "'people' is a required property"),
        ({"people": [{"name": "Ana"}, {"name": 7}]}, "people[1].name: 7 is not of type 'string'"),
        ({"people": [{"name": "Ana", "age": -1}]}, "people[0].age: -1 is less than the minimum of 0"),
        ({"people": [{"name": "Ana", "x": 1}]}, "people[0]: Additional properties are not allowed ('x' was unexpected)"),
        ({"people": [], "how": {"steps": "many"}}, "how.steps: 'many' is not of type 'integer'"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ToolError) as caught:
        read(PEOPLE, arguments)
    assert str(caught.value) == f"Wrong arguments: {told}"


def test_many_arguments_that_fit_a_plain_schema_are_held_against_it() -> None:
    people = [{"name": f"Person {number}", "age": number} for number in range(500)]
    assert read(PEOPLE, {"people": people, "how": "fast"}) == {"people": people, "how": "fast"}
    people[-1]["age"] = "old"
    with pytest.raises(ToolError, match=r"people\[499\].age"):
        read(PEOPLE, {"people": people})
