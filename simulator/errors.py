"""The refusals of the simulated provider, in the shape that OpenAI gives them.

Owns the one error body ({"error": {message, type, param, code}}) and how a failed request validation is told in it. It
refuses to carry anything but what a client may read.
"""

from typing import Any

from pydantic import ValidationError

_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
_SENTENCES = {
    "missing": "Missing required parameter: '{param}'.",
    "extra_forbidden": "Unknown parameter: '{param}'.",
}


class ApiError(Exception):
    """A refused request: HTTP status, OpenAI's error body, and headers to add to."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers: dict[str, str] = {}
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": kind, "param": param, "code": code},
        }


def invalid(message: str, *, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """The 400 of one bad parameter."""
    return ApiError(400, message, param=param, code=code)


def from_validation(error: ValidationError, *, prefix: str = "") -> ApiError:
    """The 400 that names the first broken parameter of a request body."""
    first = error.errors(include_url=False, include_context=False)[0]
    param = _parameter(first["loc"], prefix)
    template = _SENTENCES.get(first["type"], "Invalid value for '{param}': " + first["msg"].replace("{", "(") + ".")
    return invalid(template.format(param=param), param=param, code=_CODES.get(first["type"], "invalid_value"))


def _parameter(location: tuple[int | str, ...], prefix: str) -> str:
    """OpenAI's spelling of a location; the class and type names that pydantic adds for a union are left out."""
    path = prefix
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part.islower() and part not in ("str", "int", "list", "dict", "float"):
            path += f".{part}" if path else part
    return path
