"""What the edge itself refuses, in the suite's one error shape.

Envoy answers with a status and a sentence of its own; here stands which google.rpc.Status each becomes. Invariant: none
tells more than the caller may know.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from parley.type.v1 import error_reason_pb2 as reasons

Config = dict[str, Any]
RETRY_AFTER_SECONDS = 1
_JWT = "response.code_details.contains('{name}')"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One kind of refusal: when it applies (`statuses` and, where given, a CEL `condition`) and what it says."""

    statuses: tuple[int, ...]
    code: int
    reason: reasons.ErrorReason.ValueType
    message: str
    condition: str = ""
    http_status: int | None = None
    grpc_code: int | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def reason_name(self) -> str:
        """The reason as errors carry it."""
        return reasons.ErrorReason.Name(self.reason).removeprefix("ERROR_REASON_")

    @property
    def wire_code(self) -> int:
        """The code that gRPC clients get."""
        return self.code if self.grpc_code is None else self.grpc_code


_IDENTITY = (
    Refusal(
        (401,),
        code_pb2.UNAUTHENTICATED,
        reasons.ERROR_REASON_IDENTITY_MISSING,
        "Sign in and send the access token as `authorization: Bearer <token>`.",
        condition=_JWT.format(name="Jwt_is_missing"),
    ),
    Refusal(
        (401,),
        code_pb2.UNAUTHENTICATED,
        reasons.ERROR_REASON_TOKEN_EXPIRED,
        "The access token has expired: refresh it.",
        condition=_JWT.format(name="Jwt_is_expired"),
    ),
    # The keys could not be fetched yet, or not at all: a good token must not look bad. One whose key is not among those
    # fetched is another matter: auth publishes a key well before it signs with it.
    Refusal(
        (401,),
        code_pb2.UNAVAILABLE,
        reasons.ERROR_REASON_IDENTITY_UNAVAILABLE,
        "Identities cannot be verified at the moment: try again.",
        condition=_JWT.format(name="Jwks") + " && !" + _JWT.format(name="Jwks_doesn"),
        http_status=503,
        headers={"retry-after": str(RETRY_AFTER_SECONDS)},
    ),
    # Envoy says 403 for a token of another audience; to the caller it is a token that is not good here.
    Refusal(
        (401, 403),
        code_pb2.UNAUTHENTICATED,
        reasons.ERROR_REASON_TOKEN_INVALID,
        "The access token is not one of ours: sign in again.",
        http_status=401,
    ),
)

# Of calls with a cookie or a password that a page of another origin may have had sent; exchange.lua and session_cookie.lua.
_ORIGIN = Refusal(
    (403,),
    code_pb2.PERMISSION_DENIED,
    reasons.ERROR_REASON_ORIGIN_NOT_ALLOWED,
    "Pages of this origin may not do this with a cookie or a password: send the access token in the Authorization header.",
    condition="response.code_details.contains('lua')",
)
_NOT_GRPC = Refusal(
    (415,),
    code_pb2.INVALID_ARGUMENT,
    reasons.ERROR_REASON_INVALID_REQUEST,
    "This path takes JSON: gRPC is spoken to the paths of its methods.",
)
_REQUEST = (
    Refusal(
        (404,),
        code_pb2.NOT_FOUND,
        reasons.ERROR_REASON_ROUTE_NOT_FOUND,
        "There is no such path: /openapi.json lists them all.",
        grpc_code=code_pb2.UNIMPLEMENTED,
    ),
    Refusal(
        (405,),
        code_pb2.UNIMPLEMENTED,
        reasons.ERROR_REASON_METHOD_NOT_ALLOWED,
        "This path does not take that method: the Allow header says which it takes.",
    ),
    Refusal(
        (421,),
        code_pb2.NOT_FOUND,
        reasons.ERROR_REASON_ROUTE_NOT_FOUND,
        "This Host is not served here.",
        grpc_code=code_pb2.UNIMPLEMENTED,
    ),
    Refusal(
        (413,),
        code_pb2.INVALID_ARGUMENT,
        reasons.ERROR_REASON_REQUEST_TOO_LARGE,
        "The request's body is too large: send less at once.",
    ),
    Refusal(
        (431,),
        code_pb2.INVALID_ARGUMENT,
        reasons.ERROR_REASON_REQUEST_TOO_LARGE,
        "The request's headers are too large: send fewer or shorter ones.",
    ),
    Refusal(
        (400,),
        code_pb2.INVALID_ARGUMENT,
        reasons.ERROR_REASON_INVALID_REQUEST,
        "The request does not fit its contract (/openapi.json): %LOCAL_REPLY_BODY%",
        condition="response.code_details.contains('grpc_json_transcode')",
    ),
    _NOT_GRPC,
    # 426, 501 and 505 are what Envoy says to a version or a transfer coding that it does not know.
    Refusal(
        (400, 411, 422, 426, 501, 505),
        code_pb2.INVALID_ARGUMENT,
        reasons.ERROR_REASON_INVALID_REQUEST,
        "The request is no HTTP that is taken here: look at its path, its headers and their bytes (ASCII only).",
        http_status=400,
    ),
)

_LATE_REQUEST = Refusal(
    (408,),
    code_pb2.DEADLINE_EXCEEDED,
    reasons.ERROR_REASON_DEADLINE_PASSED,
    "The request did not arrive in time: send it again, faster.",
)
_LATE_ANSWER = Refusal(
    (504,),
    code_pb2.DEADLINE_EXCEEDED,
    reasons.ERROR_REASON_DEADLINE_PASSED,
    "The answer did not come in time: try again later.",
)
_AWAY = Refusal(
    (429, 502, 503),
    code_pb2.UNAVAILABLE,
    reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
    "A part of the suite that this call needs does not answer: try again.",
    http_status=503,
    headers={"retry-after": str(RETRY_AFTER_SECONDS)},
)
_FAULT = Refusal(
    (500,),
    code_pb2.INTERNAL,
    reasons.ERROR_REASON_INTERNAL_FAULT,
    "The suite failed: tell us the request id.",
)

REFUSALS = (_ORIGIN, *_IDENTITY, *_REQUEST, _LATE_REQUEST, _LATE_ANSWER, _AWAY, _FAULT)


def errors_in_lua() -> str:
    """A Lua table of whole errors: by the code of one that gRPC made, or `other`; `not_grpc` for REST asked as gRPC."""
    known = {
        # A call that a process cut off as it stopped.
        "1": (503, _AWAY),
        "4": (504, _LATE_ANSWER),
        "14": (503, _AWAY),
        "other": (500, _FAULT),
        "not_grpc": (415, _NOT_GRPC),
    }
    entries = [
        f'  ["{key}"] = {{ status = "{status}", body = [==[{plain_json(**json_status(refusal))}]==] }},'
        for key, (status, refusal) in known.items()
    ]
    return "\n".join(["local ERRORS = {", *entries, "}", "", ""])


def json_status(refusal: Refusal) -> Config:
    """The refusal in JSON; the request id is a variable of Envoy's in it."""
    metadata = {"request_id": "%REQ(X-REQUEST-ID)%"} if refusal.code == code_pb2.INTERNAL else {}
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": refusal.reason_name,
        "domain": "parley",
        "metadata": metadata,
    }
    details: list[Config] = [info]
    if refusal.headers:
        retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retry_delay": f"{RETRY_AFTER_SECONDS}s"}
        details.append(retry)
    return {"code": refusal.code, "message": refusal.message, "details": details}


def wire_status(refusal: Refusal) -> status_pb2.Status:
    """The refusal as gRPC clients get it."""
    info, retry = any_pb2.Any(), any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=refusal.reason_name, domain="parley"))
    status = status_pb2.Status(code=refusal.wire_code, message=refusal.message, details=[info])
    if refusal.headers:
        delay = error_details_pb2.RetryInfo()
        delay.retry_delay.FromSeconds(RETRY_AFTER_SECONDS)
        retry.Pack(delay)
        status.details.append(retry)
    return status


def plain_json(**values: object) -> str:
    """A short JSON body."""
    return json.dumps(values, separators=(",", ":"))
