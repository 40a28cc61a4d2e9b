"""How a reply is delivered: its pace and its misbehaviour, and the model names that ask for them.

Owns the vocabulary of pace and faults and the grammar of model names (see the package's documentation). A plan never
changes what is said, except `sim-<tokens>-…`, which replaces the reply by numbered tokens.
"""

import re
from typing import Literal, Self, get_args

from openai.types.responses import ResponseError
from pydantic import BaseModel, ConfigDict, Field, model_validator

from simulator.errors import invalid

MAX_TOKENS = 100_000
MAX_DELAY_MS = 600_000

FaultKind = Literal["status", "cut", "stall", "malformed", "end", "error", "failed", "incomplete"]
_RESPONSE_ERROR_CODES: tuple[str, ...] = get_args(ResponseError.model_fields["code"].annotation)
TRANSPORT_FAULTS = frozenset({"cut", "stall", "malformed", "end"})

_NAME = re.compile(
    r"sim(?:-(?P<tokens>\d{1,6})-(?P<interval>\d{1,6})-(?P<first>\d{1,6}))?"
    r"(?:-(?:status-(?P<status>[45]\d\d)(?:-(?P<retry>\d{1,5}))?"
    r"|(?P<kind>cut|stall|malformed|end|error|failed|incomplete)(?:-(?P<after>\d{1,6}))?))?"
)


class Pace(BaseModel):
    """When tokens come: the first after `first_token_ms`, then one every `interval_ms`. Zero: as fast as it goes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first_token_ms: float = Field(default=0, ge=0, le=MAX_DELAY_MS)
    interval_ms: float = Field(default=0, ge=0, le=MAX_DELAY_MS)


class Fault(BaseModel):
    """One misbehaviour. `after_tokens` is when; a shorter reply has it right before its terminal event."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: FaultKind
    after_tokens: int = Field(default=0, ge=0, le=MAX_TOKENS)
    status: int = Field(default=500, ge=400, le=599)
    retry_after_seconds: int | None = Field(default=None, ge=0)
    headers: dict[str, str] = Field(default_factory=dict)
    message: str | None = None
    code: str | None = None

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> Self:
        given = self.model_fields_set & {"status", "retry_after_seconds", "headers"}
        if given and self.kind != "status":
            raise ValueError(f"{sorted(given)} only go with kind 'status'")
        if self.kind == "failed" and self.code not in (None, *_RESPONSE_ERROR_CODES):
            raise ValueError(f"a failed response's code is one of {sorted(_RESPONSE_ERROR_CODES)}")
        return self

    @property
    def breaks_the_transport(self) -> bool:
        """True where only this reader's connection misbehaves, False where the run itself ends badly."""
        return self.kind in TRANSPORT_FAULTS


class Plan(BaseModel):
    """Everything about one delivery."""

    model_config = ConfigDict(frozen=True)

    numbered_tokens: int | None = None
    pace: Pace | None = None
    fault: Fault | None = None


def parse_plan(name: str) -> Plan | None:
    """The plan that a model name asks for; None where it is an ordinary name.

    Raises ApiError (400) for a name that starts with `sim-` and does not follow the grammar: a test that misspells
    its fault must not pass for lack of one.
    """
    if name != "sim" and not name.startswith("sim-"):
        return None
    found = _NAME.fullmatch(name)
    if found is None:
        raise invalid(f"The simulator's model name '{name}' is not of its grammar: see `pydoc simulator`.", param="model")
    parts = found.groupdict()
    numbered = None if parts["tokens"] is None else _bounded(parts["tokens"], MAX_TOKENS)
    return Plan(numbered_tokens=numbered, pace=_pace(parts), fault=_fault(parts))


def _pace(parts: dict[str, str | None]) -> Pace | None:
    interval, first = parts["interval"], parts["first"]
    if interval is None or first is None:
        return None
    return Pace(interval_ms=_bounded(interval, MAX_DELAY_MS), first_token_ms=_bounded(first, MAX_DELAY_MS))


def _fault(parts: dict[str, str | None]) -> Fault | None:
    if parts["status"] is not None:
        retry = parts["retry"]
        return Fault(kind="status", status=int(parts["status"]), retry_after_seconds=None if retry is None else int(retry))
    if parts["kind"] is None:
        return None
    return Fault.model_validate({"kind": parts["kind"], "after_tokens": _bounded(parts["after"] or "0", MAX_TOKENS)})


def _bounded(digits: str, highest: int) -> int:
    if int(digits) > highest:
        raise invalid(f"A number of the simulator's model name is above {highest}.", param="model")
    return int(digits)
