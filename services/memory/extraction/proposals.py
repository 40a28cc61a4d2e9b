"""What a model proposes to remember: the form that it is asked for, and the reading of what it answered.

Invariant: what is read here has the right form and nothing else; whether it is true, new or allowed is judged elsewhere. It
refuses an answer as a whole that is no JSON or of another form.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.runtime.small_jobs import AnswerSchema

MOST_OPERATIONS: Final = 50
Operation = Literal["ADD", "UPDATE", "INVALIDATE", "NOOP"]

_DATE: Final = "YYYY, YYYY-MM or YYYY-MM-DD"
_FIELDS: Final[dict[str, dict[str, Any]]] = {
    "operation": {"type": "string", "enum": ["ADD", "UPDATE", "INVALIDATE", "NOOP"]},
    "fact": {"type": ["integer", "null"], "description": "Number of the known fact; null for ADD"},
    "sources": {"type": "array", "items": {"type": "integer"}, "description": "Numbers of the user's messages"},
    "text": {"type": "string", "description": "The fact, one sentence; empty for INVALIDATE and NOOP"},
    "subject": {"type": "string", "description": "`user`, or the name of whom it is about"},
    "attribute": {"type": "string", "description": "Which property it tells: `home city`, `likes`"},
    "importance": {"type": "integer", "description": "1 to 10"},
    "valid_from": {"type": ["string", "null"], "description": f"Since when it holds: {_DATE}; null where unknown"},
    "valid_to": {"type": ["string", "null"], "description": f"Until when it held: {_DATE}; null while it holds"},
}
SCHEMA: Final = AnswerSchema(
    "memory_operations",
    {
        "type": "object",
        "properties": {
            "operations": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": _FIELDS,
                    "required": list(_FIELDS),
                    "additionalProperties": False,
                },
            }
        },
        "required": ["operations"],
        "additionalProperties": False,
    },
)


class MalformedAnswer(ValueError):
    """An answer of another form than was asked for. Its text is in nobody's log."""


class Proposal(BaseModel):
    """One proposal, in the numbers that the model was shown."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    operation: Operation
    fact: int | None
    sources: list[int] = Field(max_length=1000)
    text: str = Field(repr=False)
    subject: str = Field(repr=False)
    attribute: str = Field(repr=False)
    importance: int
    valid_from: str | None
    valid_to: str | None


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    operations: list[Proposal] = Field(max_length=MOST_OPERATIONS)


def read_answer(text: str) -> list[Proposal]:
    """The proposals of an answer, in its order. Raises MalformedAnswer."""
    try:
        return _Answer.model_validate_json(text).operations
    except ValidationError:
        raise MalformedAnswer from None


def date_of(told: str | None) -> datetime | None:
    """The beginning of a year, month or day in UTC; None for what is no such date."""
    for form in ("%Y-%m-%d", "%Y-%m", "%Y"):
        try:
            return datetime.strptime((told or "").strip(), form).replace(tzinfo=UTC)
        except ValueError:
            continue
    return None


def is_plausible(time: datetime, *, said: datetime) -> bool:
    """Whether something told at `said` may begin or end at `time`: within a long life before, and ten years ahead."""
    return said - timedelta(days=365 * 120) <= time <= said + timedelta(days=365 * 10)
