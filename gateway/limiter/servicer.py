"""Envoy's RateLimitService: which class, whose call; the verdict as Envoy passes it on to the client."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from prometheus_client import Counter

from gateway.limiter.own_count import OwnCount
from gateway.limiter.shared_count import SharedCount
from gateway.limiter.verdict import Verdict
from gateway.limiter.windows import Window, policy
from parley.edge import rate_limit_pb2, rate_limit_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import ResourceExhausted
from services.runtime.http_errors import http_refusal

VERDICTS = Counter("parley_limit_verdicts", "Calls that were counted or refused", ["limit", "verdict"])
CLASS_KEY, USER_KEY, CONTENT_KEY = "limit", "user", "content"
_GRPC_CONTENT = "application/grpc"
# Counted once more behind it, by user: that count tells what is left, and headers of both would be one line each.
_UNTOLD = frozenset({"exchange"})
Context = grpc.aio.ServicerContext[Any, Any]
_ALLOWED = rate_limit_pb2.RateLimitResponse(overall_code=rate_limit_pb2.RateLimitResponse.OK)


class LimitServicer(rate_limit_pb2_grpc.RateLimitServiceServicer):
    """envoy.service.ratelimit.v3.RateLimitService."""

    def __init__(self, windows: Mapping[str, Sequence[Window]], shared: SharedCount, own: OwnCount) -> None:
        self._windows = windows
        self._shared = shared
        self._own = own

    async def ShouldRateLimit(
        self, request: rate_limit_pb2.RateLimitRequest, context: Context
    ) -> rate_limit_pb2.RateLimitResponse:
        for descriptor in request.descriptors:
            entries = {entry.key: entry.value for entry in descriptor.entries}
            is_grpc = entries.pop(CONTENT_KEY, "").startswith(_GRPC_CONTENT)
            limit = entries.get(CLASS_KEY, "")
            windows = self._windows.get(limit, ())
            if windows:
                verdict = await self._verdict(limit, windows, entries)
                if verdict is not None:
                    return _answer(limit, windows, verdict, is_grpc=is_grpc)
        return _ALLOWED

    async def _verdict(self, limit: str, windows: Sequence[Window], entries: Mapping[str, str]) -> Verdict | None:
        name = ":".join(entries.values())
        verdict = await self._shared.count(name, windows)
        # Redis is away. A user is known and has a token that costs something; an address that tries passwords has none.
        if verdict is None and USER_KEY not in entries:
            verdict = self._own.count(name, windows)
        word = "uncounted" if verdict is None else "counted" if verdict.is_allowed else "refused"
        VERDICTS.labels(limit, word).inc()
        return verdict


def _answer(limit: str, windows: Sequence[Window], verdict: Verdict, *, is_grpc: bool) -> rate_limit_pb2.RateLimitResponse:
    if not verdict.is_allowed:
        return _refused(limit, windows, verdict, is_grpc=is_grpc)
    return _ALLOWED if limit in _UNTOLD else _allowed(windows, verdict)


def _allowed(windows: Sequence[Window], verdict: Verdict) -> rate_limit_pb2.RateLimitResponse:
    answer = rate_limit_pb2.RateLimitResponse(overall_code=rate_limit_pb2.RateLimitResponse.OK)
    _add_headers(answer, _headers(windows, verdict))
    return answer


def _refused(limit: str, windows: Sequence[Window], verdict: Verdict, *, is_grpc: bool) -> rate_limit_pb2.RateLimitResponse:
    full = verdict.tightest
    wait = max(1, math.ceil(full.reset_seconds))
    metadata = {
        "limit_class": limit,
        "limit": str(full.window.calls),
        "window_seconds": str(full.window.seconds),
    }
    refusal = http_refusal(
        ResourceExhausted(
            f"This is more than {full.window.calls} calls in {full.window.seconds} seconds: wait {wait} seconds.",
            reasons.ERROR_REASON_RATE_LIMITED,
            metadata=metadata,
            retry_delay_seconds=wait,
        )
    )
    body = refusal.message if is_grpc else refusal.body
    answer = rate_limit_pb2.RateLimitResponse(
        overall_code=rate_limit_pb2.RateLimitResponse.OVER_LIMIT, raw_body=body.encode()
    )
    _add_headers(answer, {**_headers(windows, verdict), **dict(refusal.headers)})
    return answer


def _headers(windows: Sequence[Window], verdict: Verdict) -> dict[str, str]:
    tightest = verdict.tightest
    return {
        "ratelimit-limit": str(tightest.window.calls),
        "ratelimit-remaining": str(tightest.left),
        "ratelimit-reset": str(math.ceil(tightest.reset_seconds)),
        "ratelimit-policy": policy(windows),
    }


def _add_headers(answer: rate_limit_pb2.RateLimitResponse, headers: Mapping[str, str]) -> None:
    for key, value in headers.items():
        answer.response_headers_to_add.add(key=key, value=value)
