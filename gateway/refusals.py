"""What the edge itself refuses, in the suite's one error shape.

Envoy answers with a status and a sentence of its own; the local reply mappers made here turn each into google.rpc.Status:
as JSON for REST, as `grpc-status`, `grpc-message` and `grpc-status-details-bin` for clients that speak gRPC. Invariant: no
answer of the edge leaves in another shape, and none tells more than the caller may know.
"""

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from parley.type.v1 import error_reason_pb2 as reasons

Config = dict[str, Any]
RETRY_AFTER_SECONDS = 1
_GRPC_CONTENT = "application/grpc"
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
    Refusal(
        (400, 411, 415, 422),
        code_pb2.INVALID_ARGUMENT,
        reasons.ERROR_REASON_INVALID_REQUEST,
        "The request is no HTTP that is taken here: look at its path, its headers and their names.",
        http_status=400,
    ),
)

_AVAILABILITY = (
    Refusal(
        (408,),
        code_pb2.DEADLINE_EXCEEDED,
        reasons.ERROR_REASON_DEADLINE_PASSED,
        "The request did not arrive in time: send it again, faster.",
    ),
    Refusal(
        (504,),
        code_pb2.DEADLINE_EXCEEDED,
        reasons.ERROR_REASON_DEADLINE_PASSED,
        "The answer did not come in time: try again later.",
    ),
    Refusal(
        (429, 502, 503),
        code_pb2.UNAVAILABLE,
        reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        "A part of the suite that this call needs does not answer: try again.",
        http_status=503,
        headers={"retry-after": str(RETRY_AFTER_SECONDS)},
    ),
    Refusal(
        (500, 501, 505),
        code_pb2.INTERNAL,
        reasons.ERROR_REASON_INTERNAL_FAULT,
        "The edge failed: tell us the request id.",
        http_status=500,
    ),
)

REFUSALS = _IDENTITY + _REQUEST + _AVAILABILITY


def local_replies(version: str) -> Config:
    """The whole `local_reply_config`: health first, then every refusal for gRPC clients, then for REST clients."""
    return {
        "mappers": [
            *(_health_mapper(status, word, version) for status, word in ((200, "serving"), (503, "not_serving"))),
            *(_grpc_mapper(refusal) for refusal in REFUSALS),
            *(_rest_mapper(refusal) for refusal in REFUSALS),
        ]
    }


def _health_mapper(status: int, word: str, version: str) -> Config:
    return {
        "filter": _all(_has_status((status,)), _holds("response.code_details.startsWith('health_check')")),
        "headers_to_add": [_header("cache-control", "max-age=5")],
        "body_format_override": {
            "json_format": {"status": word, "version": version},
            "content_type": "application/json",
        },
    }


def _rest_mapper(refusal: Refusal) -> Config:
    return {
        "filter": _applies(refusal),
        **({} if refusal.http_status is None else {"status_code": refusal.http_status}),
        "headers_to_add": [_header(name, value) for name, value in refusal.headers.items()],
        "body_format_override": {"json_format": _json_status(refusal), "content_type": "application/json"},
    }


def _grpc_mapper(refusal: Refusal) -> Config:
    details = base64.b64encode(_status(refusal).SerializeToString()).decode()
    return {
        "filter": _all(*_speaks_grpc(), _applies(refusal)),
        # Native gRPC gets HTTP 200 whatever stands here; gRPC-Web keeps the status, and its code is made of it.
        **({} if refusal.http_status is None else {"status_code": refusal.http_status}),
        "headers_to_add": [
            _header("grpc-status", str(refusal.wire_code)),
            _header("grpc-status-details-bin", details.rstrip("=")),
        ],
        "body_format_override": {"text_format_source": {"inline_string": refusal.message}},
    }


def _json_status(refusal: Refusal) -> Config:
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


def _status(refusal: Refusal) -> status_pb2.Status:
    info, retry = any_pb2.Any(), any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=refusal.reason_name, domain="parley"))
    status = status_pb2.Status(code=refusal.wire_code, message=refusal.message, details=[info])
    if refusal.headers:
        delay = error_details_pb2.RetryInfo()
        delay.retry_delay.FromSeconds(RETRY_AFTER_SECONDS)
        retry.Pack(delay)
        status.details.append(retry)
    return status


def _applies(refusal: Refusal) -> Config:
    if not refusal.condition:
        return _has_status(refusal.statuses)
    return _all(_has_status(refusal.statuses), _holds(refusal.condition))


def _speaks_grpc() -> tuple[Config, Config]:
    # The transcoder turns a REST request into a gRPC one before the call fails; only it leaves the original path.
    content = {"name": "content-type", "string_match": {"prefix": _GRPC_CONTENT}}
    original = {"name": "x-envoy-original-path", "present_match": True, "invert_match": True}
    return {"header_filter": {"header": content}}, {"header_filter": {"header": original}}


def _has_status(statuses: tuple[int, ...]) -> Config:
    if len(statuses) == 1:
        return _is_status(statuses[0])
    return {"or_filter": {"filters": [_is_status(status) for status in statuses]}}


def _is_status(status: int) -> Config:
    value = {"default_value": status, "runtime_key": f"edge.refusal.{status}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _holds(expression: str) -> Config:
    return {
        "extension_filter": {
            "name": "envoy.access_loggers.extension_filters.cel",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                "expression": expression,
            },
        }
    }


def _all(*filters: Config) -> Config:
    return {"and_filter": {"filters": list(filters)}}


def _header(name: str, value: str) -> Config:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def plain_json(**values: str) -> str:
    """A short JSON body for a direct response."""
    return json.dumps(values, separators=(",", ":"))
