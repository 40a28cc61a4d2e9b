"""How one request will be answered: script, header, model name and server default, put together.

Owns the precedence between them (script, then the `x-simulator` header, then the model name, then the server's default)
and the turning of a status fault into a refusal.
"""

from dataclasses import dataclass

from simulator.answers import Answer
from simulator.errors import ApiError
from simulator.frames import Gate, Hold
from simulator.plan import Fault, Pace, Plan, parse_plan
from simulator.responses import Stop
from simulator.rules import numbered
from simulator.script import ScriptedAnswer

PLAN_HEADER = "x-simulator"

_STATUS_5XX = 500
_UNLISTED_5XX = ("server_error", None, "The server had an error while processing your request. Sorry about that!")
_UNLISTED_4XX = ("invalid_request_error", None, "The request was refused.")
_STATUS_ERRORS: dict[int, tuple[str, str | None, str]] = {
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests. Please try again later."),
    503: ("server_error", None, "The engine is currently overloaded, please try again later."),
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """A dictated answer (None: the rules'), its pace, and where it goes wrong."""

    answer: Answer | None
    pace: Pace
    hold: Hold | None
    stop: Stop | None
    transport: Fault | None
    marks_citations: bool


def plan_delivery(
    scripted: ScriptedAnswer | None, *, model: str, header: str | None, default_pace: Pace, gate: Gate
) -> Delivery:
    """The delivery of one reply. Raises ApiError: a status fault, or a plan that does not follow the grammar."""
    plans = [plan for plan in (parse_plan(header or ""), parse_plan(model)) if plan]
    if scripted:
        plans.insert(0, Plan(pace=scripted.pace, fault=scripted.fault))
    fault = next((plan.fault for plan in plans if plan.fault), None)
    if fault and fault.kind == "status":
        raise _refusal(fault)
    count = next((plan.numbered_tokens for plan in plans if plan.numbered_tokens is not None), None)
    dictated = scripted.answer() if scripted else None
    held = scripted.hold_after_tokens if scripted else None
    return Delivery(
        answer=dictated if dictated is not None or count is None else numbered(count),
        pace=next((plan.pace for plan in plans if plan.pace), default_pace),
        hold=None if held is None else Hold(gate, held),
        stop=_stop(fault),
        transport=fault if fault and fault.breaks_the_transport else None,
        marks_citations=scripted is not None and scripted.citation_markers,
    )


def _stop(fault: Fault | None) -> Stop | None:
    if fault is None or fault.kind not in ("incomplete", "failed", "error"):
        return None
    given = {"message": fault.message, "code": fault.code}
    return Stop(fault.after_tokens, fault.kind, **{key: value for key, value in given.items() if value is not None})


def _refusal(fault: Fault) -> ApiError:
    unlisted = _UNLISTED_5XX if fault.status >= _STATUS_5XX else _UNLISTED_4XX
    kind, code, message = _STATUS_ERRORS.get(fault.status, unlisted)
    refusal = ApiError(fault.status, fault.message or message, kind=kind, code=fault.code or code)
    refusal.headers.update(fault.headers)
    if fault.retry_after_seconds is not None:
        refusal.headers["retry-after"] = str(fault.retry_after_seconds)
    return refusal
