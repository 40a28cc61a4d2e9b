"""Channels to other services: each call forwards the request id, the time that is left, and who it is for.

The user's own token goes along while a call of the user is served; in a job (`acting_for`) an exchanged one. This service's
own token always does.
"""

from collections.abc import Callable
from typing import Any

import grpc
from grpc.aio import ClientCallDetails, Metadata

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.calls import current_call, seconds_left
from services.runtime.errors import DeadlineExceeded
from services.runtime.identity import AUTHORIZATION
from services.runtime.peers import ServiceTokens
from services.runtime.tls import Tls, connect

REQUEST_ID = "x-request-id"

_OPTIONS = (
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.max_receive_message_length", 8 * 1024 * 1024),
    # A peer that vanished without a word (a dead node) is noticed within half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def open_channel(
    target: str, *, audience: str, tokens: ServiceTokens | None, timeout_seconds: float, tls: Tls | None = None
) -> grpc.aio.Channel:
    """A channel to the service `audience` at `target`.

    A call takes `timeout_seconds` at most, or what its caller has left, whichever is less; a call's own timeout goes first.
    Without `tokens` the calls carry no identity and know no caller's deadline: for what auth answers to services, which
    several callers may wait for. With `tls` the other side must prove to be `audience`.
    """
    if tokens is None:
        named = _ForwardUnary(_Named(timeout_seconds))
        return connect(target, audience, tls, options=_OPTIONS, interceptors=[named])
    forward = _Forward(audience, tokens, timeout_seconds)
    return connect(target, audience, tls, options=_OPTIONS, interceptors=[_ForwardUnary(forward), _ForwardStream(forward)])


class _Forward:
    def __init__(self, audience: str, tokens: ServiceTokens, timeout_seconds: float) -> None:
        self._audience = audience
        self._tokens = tokens
        self._timeout_seconds = timeout_seconds

    async def details(self, details: ClientCallDetails, *, bounded: bool) -> ClientCallDetails:
        """The details with everything that goes along."""
        call = current_call()
        metadata = Metadata(*(details.metadata or ()))
        if call.request_id:
            metadata.add(REQUEST_ID, call.request_id)
        for key, value in await self._tokens.as_metadata(self._audience):
            metadata.add(key, value)
        if call.acting_for is not None:
            metadata.add(AUTHORIZATION, f"Bearer {await self._tokens.for_user(call.acting_for, self._audience)}")
        elif call.caller.token is not None:
            metadata.add(AUTHORIZATION, f"Bearer {call.caller.token}")
        timeout = _timeout(details.timeout, self._timeout_seconds if bounded else None)
        return ClientCallDetails(details.method, timeout, metadata, details.credentials, details.wait_for_ready)


class _Named:
    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds

    async def details(self, details: ClientCallDetails, *, bounded: bool) -> ClientCallDetails:
        """The details with the request id."""
        metadata = Metadata(*(details.metadata or ()))
        if request_id := current_call().request_id:
            metadata.add(REQUEST_ID, request_id)
        timeout = self._timeout_seconds if bounded and details.timeout is None else details.timeout
        return ClientCallDetails(details.method, timeout, metadata, details.credentials, details.wait_for_ready)


def _timeout(asked: float | None, default: float | None) -> float | None:
    bounds = [seconds for seconds in (asked if asked is not None else default, seconds_left()) if seconds is not None]
    if not bounds:
        return None
    if min(bounds) <= 0:
        raise DeadlineExceeded("The call took too long. Try again.", reasons.ERROR_REASON_DEADLINE_PASSED)
    return min(bounds)


class _ForwardUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, forward: _Forward | _Named) -> None:
        self._forward = forward

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(await self._forward.details(client_call_details, bounded=True), request)


class _ForwardStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, forward: _Forward) -> None:
        self._forward = forward

    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(await self._forward.details(client_call_details, bounded=False), request)
