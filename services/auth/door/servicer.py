"""Envoy's Authorization service: what the edge marked is traded, or refused as a client would have been refused anywhere."""

import base64
import binascii
import re
from typing import Any

import grpc
from google.rpc import code_pb2

from parley.edge import ext_authz_pb2, ext_authz_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.callers import Origins
from services.auth.door.exchange import Exchange
from services.auth.records import Origin
from services.runtime.errors import ServiceError, Unauthenticated
from services.runtime.http_errors import http_refusal

Context = grpc.aio.ServicerContext[Any, Any]
_GRPC_CONTENT = "application/grpc"
# As the contract bounds them in LoginRequest.
_LONGEST_NAME, _LONGEST_PASSWORD = 254, 200
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_OVERWRITE = ext_authz_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


class DoorServicer(ext_authz_pb2_grpc.AuthorizationServicer):
    """envoy.service.auth.v3.Authorization."""

    def __init__(self, exchange: Exchange, origins: Origins) -> None:
        self._exchange = exchange
        self._origins = origins

    async def Check(self, request: ext_authz_pb2.CheckRequest, context: Context) -> ext_authz_pb2.CheckResponse:
        headers = request.attributes.request.http.headers
        try:
            # Not by the request's `source`: that is the edge's connection, a proxy's where one stands before the edge.
            origin = self._origins.at_the_door(context.peer(), headers)
            token = await self._traded(headers.get("authorization", ""), origin)
        except ServiceError as error:
            return _denied(error, is_grpc=headers.get("content-type", "").startswith(_GRPC_CONTENT))
        answer = ext_authz_pb2.CheckResponse()
        answer.ok_response.headers.add(
            header=ext_authz_pb2.HeaderValue(key="authorization", value=f"Bearer {token}"), append_action=_OVERWRITE
        )
        return answer

    async def _traded(self, authorization: str, origin: Origin) -> str:
        scheme, _, credentials = authorization.partition(" ")
        if scheme == "Basic":
            return await self._exchange.password(*read_basic(credentials), origin)
        if scheme == "Bearer":
            return await self._exchange.external(credentials, origin)
        raise Unauthenticated("Sign in and send the access token.", reasons.ERROR_REASON_IDENTITY_MISSING)


def read_basic(credentials: str) -> tuple[str, str]:
    """Name and password of RFC 7617, in UTF-8. Raises Unauthenticated (CREDENTIALS_WRONG) for what no account can have."""
    try:
        name, colon, password = base64.b64decode(credentials.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        raise _unreadable() from None
    is_fit = colon and 0 < len(name) <= _LONGEST_NAME and 0 < len(password) <= _LONGEST_PASSWORD
    if not is_fit or _CONTROL.search(name + password):
        raise _unreadable()
    return name, password


def _unreadable() -> Unauthenticated:
    return Unauthenticated(
        "These are no Basic credentials of an account: send base64 of `name:password`.",
        reasons.ERROR_REASON_CREDENTIALS_WRONG,
    )


def _denied(error: ServiceError, *, is_grpc: bool) -> ext_authz_pb2.CheckResponse:
    refusal = http_refusal(error)
    answer = ext_authz_pb2.CheckResponse()
    answer.status.code = code_pb2.UNAUTHENTICATED
    answer.denied_response.status.code = refusal.status
    answer.denied_response.body = refusal.message if is_grpc else refusal.body
    for key, value in refusal.headers:
        answer.denied_response.headers.add(header=ext_authz_pb2.HeaderValue(key=key, value=value), append_action=_OVERWRITE)
    return answer
