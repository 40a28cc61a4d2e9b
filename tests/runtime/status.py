"""What an error answer says, taken apart for tests."""

from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2


@dataclass(frozen=True)
class Refusal:
    """A status with its details and trailers."""

    code: grpc.StatusCode
    message: str
    info: error_details_pb2.ErrorInfo
    violations: Mapping[str, str]
    retry_delay: float | None
    trailers: Mapping[str, str | bytes]

    def everything(self) -> str:
        """All that leaves the process, to look for what must not."""
        return repr(self)


def read_refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """Takes an error apart; fails when it does not carry our details."""
    trailers = dict(error.trailing_metadata() or ())
    raw = trailers.get("grpc-status-details-bin")
    assert isinstance(raw, bytes), f"{error.code()} without details: {error.details()}"
    status = status_pb2.Status.FromString(raw)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    found = [next(one for one in (info, bad, retry) if detail.Unpack(one)) for detail in status.details]
    assert found[0] is info
    assert info.domain == "parley"
    delay = retry.retry_delay.ToTimedelta().total_seconds() if any(one is retry for one in found) else None
    violations = {one.field: one.description for one in bad.field_violations}
    return Refusal(error.code(), error.details() or "", info, violations, delay, trailers)


async def refused(call: Awaitable[Any] | AsyncIterator[Any]) -> Refusal:
    """The error that the call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012 - two kinds of calls
        if isinstance(call, grpc.aio.UnaryStreamCall):
            async for _ in call:
                pass
        else:
            await call  # type: ignore[misc]
    return read_refusal(caught.value)
