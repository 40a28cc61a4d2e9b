"""The HTTP face of a ServiceError, for what answers through the edge without being transcoded: status, headers, JSON body.

Invariant: the same shape that the edge makes of an RPC's refusal (google.rpc.Status in JSON, snake_case), and everything
that a gRPC client needs beside it; the edge takes the `grpc-` headers out of answers to REST clients.
"""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf.json_format import MessageToJson

from services.runtime.errors import STATUS_DETAILS, ServiceError, to_status

HTTP_STATUS: Final[Mapping[grpc.StatusCode, int]] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


@dataclass(frozen=True, slots=True)
class HttpRefusal:
    """A refusal as HTTP; `message` is its sentence alone, which is all that a gRPC client gets for a body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: str
    message: str


def http_refusal(error: ServiceError) -> HttpRefusal:
    """The refusal that this error becomes."""
    status = to_status(error)
    details = base64.b64encode(status.SerializeToString()).decode().rstrip("=")
    headers = [("grpc-status", str(status.code)), (STATUS_DETAILS, details)]
    if error.retry_delay_seconds is not None:
        headers.append(("retry-after", str(max(1, math.ceil(error.retry_delay_seconds)))))
    return HttpRefusal(
        status=HTTP_STATUS.get(error.code, 500),
        headers=tuple(headers),
        body=MessageToJson(status, preserving_proto_field_name=True, indent=None),
        message=status.message,
    )
