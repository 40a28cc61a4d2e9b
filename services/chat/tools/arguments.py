"""The arguments of a call, as the model wrote them: read, and held against the tool's schema.

Invariants: what passes is an object that fits, as far as a bounded amount of work tells, since this is done on the event
loop; and nothing is fetched on the way: a schema may come from a stranger's server. For the same reason patterns and the
uniqueness of items are left to the tool, and so are arguments whose check would take more than the bound.
"""

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from itertools import islice
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
# Of which the best is told.
_MOST_ERRORS: Final = 16
# In steps of up to five microseconds: a tenth of a second at most.
_MOST_WORK: Final = 20_000
_CHARACTERS_A_STEP: Final = 256


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
        error = _misfit(arguments, parameters)
    except (Unresolvable, _TooMuchWork):
        # The schema refers to another one, which only the tool has; or it would take too long here.
        return arguments
    if error is not None:
        where = error.json_path.removeprefix("$").removeprefix(".")
        raise ToolError(f"Wrong arguments: {where + ': ' if where else ''}{error.message[:_LONGEST_EXPLANATION]}")
    return arguments


def _misfit(arguments: object, parameters: Mapping[str, Any]) -> ValidationError | None:
    """What is wrong with the arguments, most of all."""
    token = _work.set(_Work())
    try:
        errors = _Validator(parameters, registry=_NOTHING_REMOTE).iter_errors(arguments)
        best: ValidationError | None = best_match(islice(errors, _MOST_ERRORS))
        return best
    finally:
        _work.reset(token)


class _TooMuchWork(Exception):
    """Holding these arguments against this schema takes more than may be spent on it."""


class _Work:
    """What may still be done for one call."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = _MOST_WORK

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise _TooMuchWork


# Of the call that is being read: the validator hands nothing of ours on to its keywords.
_work: Final[ContextVar[_Work]] = ContextVar("work")

Check = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


def _counted(check: Check) -> Check:
    """The check of a keyword, paid for: what it goes through of its own value and of the instance, and what it tells."""

    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        work = _work.get()
        work.spend(1 + _length(value) + _length(instance))
        for error in check(validator, value, instance, schema) or ():
            # Errors quote the whole instance.
            work.spend(1 + len(error.message) // _CHARACTERS_A_STEP)
            yield error

    return counted


def _compared(check: Check) -> Check:
    """The check of a keyword whose value is compared as a whole, and may be as deep as it likes."""
    counted = _counted(check)

    def compared(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError] | None:
        if isinstance(value, list | dict):
            _work.get().spend(_values_in(value))
        return counted(validator, value, instance, schema)

    return compared


def _length(value: object) -> int:
    return len(value) if isinstance(value, list | dict) else 0


def _values_in(value: object) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_values_in, inside))


def _unchecked(_validator: Any, _value: Any, _instance: Any, _schema: Any) -> Iterator[ValidationError]:
    return iter(())


def _additional(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if "patternProperties" in schema:
        return
    yield from Draft202012Validator.VALIDATORS["additionalProperties"](validator, value, instance, schema) or ()


_NOTHING_REMOTE: Final[Registry[Any]] = Registry()
# Without a type in the library's stubs.
_extended: Final[Callable[..., type[Draft202012Validator]]] = extend
_CHECKS: Final[Mapping[str, Check]] = {**Draft202012Validator.VALIDATORS, "additionalProperties": _additional}
_Validator: Final = _extended(
    Draft202012Validator,
    {
        **{keyword: _counted(check) for keyword, check in _CHECKS.items()},
        **{keyword: _compared(_CHECKS[keyword]) for keyword in ("enum", "const")},
        **dict.fromkeys(("pattern", "patternProperties", "uniqueItems"), _unchecked),
    },
)
