"""The arguments of a call, as the model wrote them: read, and held against the tool's schema.

Invariant: what passes is an object that fits, and nothing is fetched on the way: a schema may come from a stranger's server.
For the same reason patterns are left to the tool, since a hostile one would take for ever.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import orjson
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import best_match
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from services.chat.tools.tool import ToolError

MAX_ARGUMENTS_CHARACTERS: Final = 100_000
_LONGEST_EXPLANATION: Final = 300


def read_arguments(text: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments. Raises ToolError, for the model to mend, when they are no JSON object or do not fit."""
    if len(text) > MAX_ARGUMENTS_CHARACTERS:
        raise ToolError(f"The arguments are longer than {MAX_ARGUMENTS_CHARACTERS} characters.")
    try:
        arguments = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        raise ToolError("The arguments are not JSON.") from None
    if not isinstance(arguments, dict):
        raise ToolError("The arguments must be a JSON object.")
    try:
        error = best_match(_Validator(parameters, registry=_NOTHING_REMOTE).iter_errors(arguments))
    except Unresolvable:
        # The schema refers to another one, which only the tool has.
        return arguments
    if error is not None:
        where = error.json_path.removeprefix("$").removeprefix(".")
        raise ToolError(f"Wrong arguments: {where + ': ' if where else ''}{error.message[:_LONGEST_EXPLANATION]}")
    return arguments


def _unchecked(_validator: Any, _value: Any, _instance: Any, _schema: Any) -> Iterator[ValidationError]:
    return iter(())


def _additional(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if "patternProperties" in schema:
        return
    yield from Draft202012Validator.VALIDATORS["additionalProperties"](validator, value, instance, schema) or ()


_NOTHING_REMOTE: Final[Registry[Any]] = Registry()
# Without a type in the library's stubs.
_extended: Final[Callable[..., type[Draft202012Validator]]] = extend
_Validator: Final = _extended(
    Draft202012Validator,
    {"pattern": _unchecked, "patternProperties": _unchecked, "additionalProperties": _additional},
)
