"""The one wrap around every call: request id, identity, access rule, field rules, errors, access log, metrics.

Handlers see only requests that keep the contract, from callers who may. Whatever a handler raises, also in the middle of a
stream, becomes a status with ErrorInfo here and nowhere else.
"""

# grpc's classes are generic in their stubs only: annotations must not be evaluated.
from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from parley.options.v1 import options_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.access import check_access
from services.runtime.calls import Call, Cutter, enter
from services.runtime.channels import REQUEST_ID
from services.runtime.errors import (
    STATUS_DETAILS,
    InvalidArgument,
    ServiceError,
    reason_name,
    to_service_error,
    to_status,
)
from services.runtime.identity import TokenVerifier
from services.runtime.metrics import MethodMetrics
from services.runtime.rules import check_request

log = structlog.get_logger(__name__)

# Health and reflection: no user's data, and tools call them without identity. Off at the edge.
BUILT_IN = frozenset(
    {"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}
)
# What comes along of tokens is not looked at.
_WITHOUT_IDENTITY = frozenset({options_pb2.ACCESS_PUBLIC, options_pb2.ACCESS_PROVIDER})
_LAST_WORD_SECONDS = 30.0
_LEAVE_SECONDS = 1.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps each method's handler once, at its first call.

    `access` holds the access rule of every method that is served, by its full name (`/parley.auth.v1.AuthService/Login`).
    """

    def __init__(
        self,
        verifier: TokenVerifier,
        access: Mapping[str, options_pb2.Access.ValueType],
        *,
        slow_call_seconds: float,
    ) -> None:
        self._verifier = verifier
        self._access = access
        self._slow_call_seconds = slow_call_seconds
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(  # noqa: D102 - the base class says it
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        handler = self._wrapped.get(method)
        if handler is not None:
            return handler
        inner = await continuation(handler_call_details)
        if inner is None or method.split("/")[1] in BUILT_IN:
            return inner
        wrap = _Wrap(method, inner, self._access[method], self._verifier, self._slow_call_seconds)
        handler = self._wrapped[method] = wrap.handler()
        return handler


@dataclass(slots=True)
class _Progress:
    """What the access line will say."""

    call: Call
    begin: float
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str | None = None


class _Wrap:
    """One method's wrap."""

    def __init__(
        self,
        method: str,
        inner: Any,  # the stubs know the handlers of synchronous servers only
        access: options_pb2.Access.ValueType,
        verifier: TokenVerifier,
        slow_call_seconds: float,
    ) -> None:
        self._method = method
        self._inner = inner
        self._access = access
        self._verifier = verifier
        self._slow_call_seconds = slow_call_seconds
        self._metrics = MethodMetrics(method)

    def handler(self) -> Handler:
        # Requests arrive as bytes: what does not parse is the caller's error and gets a status like any other.
        if self._inner.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream, None, _passing(self._inner.response_serializer))
        return grpc.unary_unary_rpc_method_handler(self._unary, None, self._inner.response_serializer)

    async def _unary(self, raw: bytes, context: Context) -> Message:
        progress = self._begin(context)
        try:
            request = await self._admitted(raw, context, progress)
            answer: Message = await self._inner.unary_unary(request, context)
        except BaseException as error:
            await self._fail(error, context, progress)
            raise
        finally:
            self._end(progress)
        return answer

    async def _stream(self, raw: bytes, context: Context) -> None:
        # Written one by one, not handed out by a generator: only so does a cut find this code while it waits for a caller
        # who takes nothing.
        progress = self._begin(context, Cutter())
        try:
            request = await self._admitted(raw, context, progress)
            # Closed here: a generator left to the garbage collector ends whenever, in whatever context.
            async with aclosing(self._inner.unary_stream(request, context)) as messages:
                async for message in messages:
                    self._verifier.check_standing(progress.call.caller)
                    try:
                        await context.write(message)
                    except grpc.aio.InternalError:
                        # The caller has left. The cancellation that says so comes next: it must not meet the clean-up.
                        await asyncio.sleep(_LEAVE_SECONDS)
                        raise
        except BaseException as error:
            await self._fail(error, context, progress)
            raise
        finally:
            self._end(progress)

    def _begin(self, context: Context, cutter: Cutter | None = None) -> _Progress:
        self._metrics.begin()
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        asked = metadata.get(REQUEST_ID, "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else str(uuid.uuid4())
        left = context.time_remaining()
        call = Call(
            request_id=request_id,
            metadata=MappingProxyType(metadata),
            deadline=None if left is None else asyncio.get_running_loop().time() + left,
            cutter=cutter,
        )
        enter(call)
        return _Progress(call, time.perf_counter())

    async def _admitted(self, raw: bytes, context: Context, progress: _Progress) -> Message:
        """The request, when this caller may make it; the call with its caller becomes the current one."""
        call = progress.call
        context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        if self._access not in _WITHOUT_IDENTITY:
            caller = await self._verifier.verify(call.metadata)
            progress.call = replace(call, caller=caller)
            enter(progress.call)
            check_access(self._access, caller, method=self._method)
        request = self._parsed(raw)
        check_request(request, progress.call.caller)
        return request

    def _parsed(self, raw: bytes) -> Message:
        deserialize = self._inner.request_deserializer
        if deserialize is None:
            raise TypeError(f"{self._method} has no deserializer")
        try:
            request: Message = deserialize(raw)
        except (DecodeError, UnicodeDecodeError):
            raise InvalidArgument(
                "The request does not parse as the message of this method.", reasons.ERROR_REASON_INVALID_REQUEST
            ) from None
        return request

    async def _fail(self, error: BaseException, context: Context, progress: _Progress) -> None:
        """Ends the call with the error's status. The caller's own leaving stays what it is: a cancellation."""
        cut = progress.call.cutter.take() if progress.call.cutter is not None else None
        if cut is not None and isinstance(error, asyncio.CancelledError):
            error = cut
        if isinstance(error, GeneratorExit) or (isinstance(error, asyncio.CancelledError) and _is_cancelled()):
            progress.code = _ended_by(progress.call)
            return
        request_id = progress.call.request_id
        service_error = to_service_error(error, request_id)
        progress.code, progress.reason = service_error.code, reason_name(service_error.reason)
        if not isinstance(error, ServiceError):
            self._log_fault(error, service_error)
        status = to_status(service_error)
        trailers = _trailers(status, service_error.retry_delay_seconds, request_id)
        if cut is None:
            await context.abort(service_error.code, status.message, trailers)
        else:
            await self._abort_within(_LAST_WORD_SECONDS, context, service_error, trailers)

    async def _abort_within(
        self, seconds: float, context: Context, error: ServiceError, trailers: tuple[tuple[str, str | bytes], ...]
    ) -> None:
        """Tells a caller who took nothing why it was cut; one who does not even take that is let go without."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await context.abort(error.code, to_status(error).message, trailers)

    def _log_fault(self, error: BaseException, service_error: ServiceError) -> None:
        if service_error.code is grpc.StatusCode.INTERNAL:
            log.error("rpc.faulted", method=self._method, exc_info=error)
        else:
            log.warning("rpc.dependency_failed", method=self._method, error=type(error).__name__)

    def _end(self, progress: _Progress) -> None:
        seconds = time.perf_counter() - progress.begin
        self._metrics.end(progress.code, seconds)
        caller = progress.call.caller
        # The request id by name: a stream may be closed outside of its call's context.
        fields: dict[str, str | float] = {"request_id": progress.call.request_id, "method": self._method}
        fields["code"] = progress.code.name
        fields["duration_ms"] = round(seconds * 1000, 1)
        named = {"reason": progress.reason, "user_id": caller.user_id, "peer_service": caller.service}
        fields.update({name: value for name, value in named.items() if value})
        log.info("rpc.answered", **fields)
        if seconds > self._slow_call_seconds and not self._inner.response_streaming:
            log.warning("rpc.slow", **fields)


def _passing(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes]:
    """A serializer that lets through what is serialized already: a message that many streams get is made once."""

    def passing(message: Any) -> bytes:
        return message if type(message) is bytes or serialize is None else serialize(message)

    return passing


def _is_cancelled() -> bool:
    """Whether the call itself is cancelled. Else the handler awaited something that was: grpc would let the caller hang."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _ended_by(call: Call) -> grpc.StatusCode:
    """What cancelled a call: its own deadline, or its caller."""
    late = call.deadline is not None and asyncio.get_running_loop().time() >= call.deadline
    return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED


def _trailers(
    status: status_pb2.Status, retry_delay_seconds: float | None, request_id: str
) -> tuple[tuple[str, str | bytes], ...]:
    trailers: list[tuple[str, str | bytes]] = [
        (REQUEST_ID, request_id),
        (STATUS_DETAILS, status.SerializeToString()),
    ]
    if retry_delay_seconds is not None:
        # For HTTP clients, which know this header and not RetryInfo; whole seconds, rounded up.
        trailers.append(("retry-after", str(max(1, -int(-retry_delay_seconds // 1)))))
    return tuple(trailers)
