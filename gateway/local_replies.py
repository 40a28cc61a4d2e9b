"""Envoy's local reply mappers, made of the refusals.

REST clients get JSON; those that speak gRPC get `grpc-status`, `grpc-message` and `grpc-status-details-bin`. Invariant: no
answer that Envoy makes by itself leaves in another shape.
"""

import base64
from typing import Any

from google.rpc import code_pb2

from gateway.refusals import REFUSALS, Refusal, json_status, wire_status

Config = dict[str, Any]
_GRPC_CONTENT = "application/grpc"


def local_replies(version: str) -> Config:
    """The whole `local_reply_config`: health first, then every refusal for gRPC clients, then for REST clients."""
    return {
        "mappers": [
            *_passed_on(),
            *(_health_mapper(status, word, version) for status, word in ((200, "serving"), (503, "not_serving"))),
            *(_grpc_mapper(refusal) for refusal in REFUSALS),
            *(_rest_mapper(refusal) for refusal in REFUSALS),
        ]
    }


def _passed_on() -> list[Config]:
    """Refusals that auth and the limiter made whole, each as the caller reads it: a body for REST, a sentence for gRPC."""
    makers = "response.code_details in ['ext_authz_denied', 'request_rate_limited']"
    # The only 503 of a script is health_parts.lua's.
    whole = _holds(f"{makers} || (response.code_details.contains('lua') && response.code == 503)")
    body = {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}}
    return [
        {"filter": _all(*_speaks_grpc(), whole), "body_format_override": body},
        {"filter": whole, "body_format_override": {**body, "content_type": "application/json"}},
    ]


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
        "body_format_override": {
            "json_format": json_status(refusal),
            "content_type": "application/json",
            # A request that could not be read has no id: then the key is left out.
            "omit_empty_values": refusal.code == code_pb2.INTERNAL,
        },
    }


def _grpc_mapper(refusal: Refusal) -> Config:
    details = base64.b64encode(wire_status(refusal).SerializeToString()).decode()
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
