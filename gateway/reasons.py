"""What may go wrong with an RPC, read from its comment (`Reasons: …`) and from the comments of the ErrorReason enum.

Invariant: a reason that an RPC names and the enum does not know, or documents without a payload, is refused.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.rpc import code_pb2

from gateway.contract import ContractError
from services.runtime import http_errors

_PREFIX = "parley.type.v1.ErrorReason.ERROR_REASON_"
_PAYLOAD = re.compile(r"^\s*([A-Z_]+) (\{.*\})\s*$", re.MULTILINE)
_REASONS = re.compile(r"Reasons:\s*([A-Za-z_,\s]+)\.")
_AS_ANOTHER = re.compile(r"as (\w+)")
_NAME = re.compile(r"\b[A-Z][A-Z_]+\b")
# What Envoy's transcoder makes of a gRPC code, and what answers beside it.
HTTP_STATUS: dict[int, int] = {code.value[0]: status for code, status in http_errors.HTTP_STATUS.items()}
# Refused by the edge itself with statuses of their own.
_OWN_STATUS = {"METHOD_NOT_ALLOWED": 405, "REQUEST_TOO_LARGE": 413}


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason, as the enum documents it."""

    name: str
    status: int
    meaning: str
    example: dict[str, Any]


def read_reasons(comments: Mapping[str, str]) -> dict[str, Reason]:
    """Every documented reason by its name without prefix."""
    texts = {name.removeprefix(_PREFIX): text for name, text in comments.items() if name.startswith(_PREFIX)}
    return {name: _reason(name, text) for name, text in texts.items() if name != "UNSPECIFIED"}


def named_in(comment: str, others: Mapping[str, str]) -> list[str]:
    """The reasons that an RPC may be refused with; those that come as events of a stream are not among them.

    `as StreamCompletion` stands for all of that RPC's; `others` holds the comments of its service by RPC.
    """
    found = _REASONS.search(comment)
    if found is None:
        return []
    same = _AS_ANOTHER.search(found.group(1))
    if same is None:
        return _NAME.findall(found.group(1))
    if same.group(1) not in others:
        raise ContractError(f"a comment names the reasons of {same.group(1)}, which is no RPC of its service")
    return [*named_in(others[same.group(1)], others), *_NAME.findall(found.group(1))]


def responses(names: Iterable[str], known: Mapping[str, Reason]) -> dict[str, Any]:
    """OpenAPI responses for these reasons, one for each HTTP status."""
    by_status: dict[int, list[Reason]] = {}
    for name in dict.fromkeys(names):
        if name not in known:
            raise ContractError(f"an RPC names the reason {name}, which ErrorReason does not have")
        by_status.setdefault(known[name].status, []).append(known[name])
    return {str(status): _response(status, by_status[status]) for status in sorted(by_status)}


def _reason(name: str, text: str) -> Reason:
    payload = _PAYLOAD.search(text)
    if payload is None:
        raise ContractError(f"ERROR_REASON_{name} has no example payload in its comment")
    code = code_pb2.Code.Value(payload.group(1))
    meaning = " ".join(text[: payload.start()].split())
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": name,
        "domain": "parley",
        "metadata": json.loads(payload.group(2))["metadata"],
    }
    return Reason(
        name=name,
        status=_OWN_STATUS.get(name, HTTP_STATUS.get(code, 500)),
        meaning=meaning,
        example={"code": int(code), "message": meaning, "details": [info]},
    )


def _response(status: int, reasons: list[Reason]) -> dict[str, Any]:
    lines = [f"- `{reason.name}`: {reason.meaning}" for reason in reasons]
    content = {
        "schema": {"$ref": "#/components/schemas/Error"},
        "examples": {reason.name: {"value": reason.example} for reason in reasons},
    }
    response: dict[str, Any] = {"description": "\n".join(lines), "content": {"application/json": content}}
    if status in {429, 503}:
        response["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
    return response
