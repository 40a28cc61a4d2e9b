"""From an exception to a status: every kind of error, and what must not leave the process."""

import asyncio
import uuid
from typing import Any

import grpc
import psycopg
import pytest
from google.rpc import error_details_pb2
from sqlalchemy import exc
from structlog.testing import capture_logs

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime import errors
from services.runtime.errors import FieldViolation, ServiceError, from_status, reason_name, to_status
from tests.runtime import probe
from tests.runtime.conftest import Serve
from tests.runtime.status import Refusal, read_refusal, refused

SECRET = "the-secret-text-of-an-exception"


USER = str(uuid.uuid4())


KINDS = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Internal: grpc.StatusCode.INTERNAL,
}


def _everything(kind: type[ServiceError]) -> ServiceError:
    return kind(
        "What happened, and what to do: é€🙂",
        reasons.ERROR_REASON_CONFLICT,
        metadata={"conversation_id": "0199", "name": "é🙂"},
        retry_delay_seconds=2.5,
        violations=[FieldViolation("a.b[0]", "must be better")],
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_service_error_arrives_whole(serve: Serve, kind: type[ServiceError], streamed: bool) -> None:  # noqa: FBT001
    client = await serve(probe.raising(_everything(kind)))
    metadata = client.issuer.as_user(USER)
    call = client.follow(probe.request(), metadata) if streamed else client.call("ForUsers", probe.request(), metadata)
    error = await refused(call)
    assert (error.code, error.message) == (KINDS[kind], "What happened, and what to do: é€🙂")
    assert (error.info.reason, dict(error.info.metadata)) == ("CONFLICT", {"conversation_id": "0199", "name": "é🙂"})
    assert (dict(error.violations), error.retry_delay) == ({"a.b[0]": "must be better"}, 2.5)
    assert (error.trailers["retry-after"], str(error.trailers["x-request-id"])[8]) == ("3", "-")


async def test_an_error_without_delay_or_violations_says_nothing_of_them(serve: Serve) -> None:
    client = await serve(probe.raising(errors.NotFound("Not there.", reasons.ERROR_REASON_USER_NOT_FOUND)))
    error = await refused(client.call("ForAnybody", probe.request()))
    assert (dict(error.violations), error.retry_delay) == ({}, None)
    assert "retry-after" not in error.trailers


@pytest.mark.parametrize(("seconds", "header"), [(0, "1"), (0.01, "1"), (1, "1"), (1.2, "2"), (60, "60")])
async def test_retry_after_is_whole_seconds_rounded_up(serve: Serve, seconds: float, header: str) -> None:
    limit = errors.ResourceExhausted("Slowly.", reasons.ERROR_REASON_TOO_MANY_GENERATIONS, retry_delay_seconds=seconds)
    client = await serve(probe.raising(limit))
    error = await refused(client.call("ForAnybody", probe.request()))
    assert (error.trailers["retry-after"], error.retry_delay) == (header, seconds)


async def test_what_came_before_a_stream_breaks_is_kept(serve: Serve) -> None:
    client = await serve(probe.raising(_everything(errors.Aborted)))
    numbers = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012 - what came before counts
        async for one in client.follow(probe.request(), client.issuer.as_user(USER)):
            numbers.append(one.number)  # noqa: PERF401
    assert (numbers, caught.value.code()) == ([1], grpc.StatusCode.ABORTED)


UNKNOWN = [
    RuntimeError(SECRET),
    KeyError(SECRET),
    ExceptionGroup(SECRET, [ValueError(SECRET)]),
    exc.IntegrityError(f"insert {SECRET}", {"text": SECRET}, psycopg.errors.UniqueViolation(SECRET)),
    exc.InvalidRequestError(SECRET),
    psycopg.errors.SyntaxError(SECRET),
    OSError(SECRET),
    StopAsyncIteration(SECRET),
    AssertionError(SECRET),
]


@pytest.mark.parametrize("error", UNKNOWN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_unknown_exception_says_only_the_request_id(serve: Serve, error: Exception, streamed: bool) -> None:  # noqa: FBT001
    client = await serve(probe.raising(error))
    metadata = (*client.issuer.as_user(USER), ("x-request-id", "asked-for-1"))
    request = probe.request(text="a text of the user")
    call = client.follow(request, metadata) if streamed else client.call("ForUsers", request, metadata)
    with capture_logs() as logs:
        answer = await refused(call)
    assert answer.code is grpc.StatusCode.INTERNAL
    assert answer.message == "Something went wrong on our side. Report it with the request id asked-for-1."
    assert (answer.info.reason, dict(answer.info.metadata)) == ("INTERNAL_FAULT", {"request_id": "asked-for-1"})
    assert not any(word in answer.everything() for word in (SECRET, "a text of the user", metadata[0][1]))
    faults = [one for one in logs if one["event"] == "rpc.faulted"]
    assert [one["log_level"] for one in faults] == ["error"]


async def test_a_handlers_own_timeout_is_a_passed_deadline(serve: Serve) -> None:
    async def answer(_request: Any, _context: Any) -> Any:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(5)

    client = await serve(probe.Probe(answer))
    error = await refused(client.call("ForAnybody", probe.request()))
    assert (error.code, error.info.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED")


async def test_a_handler_that_is_cancelled_from_inside_ends_its_call(serve: Serve) -> None:
    client = await serve(probe.raising(asyncio.CancelledError()))
    for call in (
        client.call("ForAnybody", probe.request(), timeout=None),
        client.follow(probe.request(), client.issuer.as_user(USER), timeout=None),
    ):
        async with asyncio.timeout(5):
            assert (await refused(call)).info.reason == "INTERNAL_FAULT"


async def _answered(serve: Serve, error: Exception) -> Refusal:
    """What a service answers that let an error of another service through."""
    inner = await serve(probe.raising(error))

    async def answer(_request: Any, _context: Any) -> Any:
        return await inner.call("ForAnybody", probe.request())

    outer = await serve(probe.Probe(answer))
    return await refused(outer.call("ForAnybody", probe.request()))


async def test_an_error_of_another_service_keeps_what_it_says(serve: Serve) -> None:
    error = await _answered(serve, _everything(errors.NotFound))
    assert (error.code, error.info.reason, error.retry_delay) == (grpc.StatusCode.NOT_FOUND, "CONFLICT", 2.5)
    assert dict(error.violations) == {"a.b[0]": "must be better"}


async def test_a_service_that_is_away_is_unavailable(serve: Serve) -> None:
    inner = await serve()

    async def answer(_request: Any, _context: Any) -> Any:
        async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
            return await probe.Client(channel, inner.issuer, 0).call("ForUsers", probe.request())

    client = await serve(probe.Probe(answer))
    error = await refused(client.call("ForAnybody", probe.request()))
    assert (error.code, error.info.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")


async def test_a_service_that_is_too_slow_passed_the_deadline(serve: Serve) -> None:
    async def slow(_request: Any, _context: Any) -> Any:
        await asyncio.sleep(5)

    inner = await serve(probe.Probe(slow))

    async def answer(_request: Any, _context: Any) -> Any:
        return await inner.call("ForAnybody", probe.request(), timeout=0.05)

    client = await serve(probe.Probe(answer))
    error = await refused(client.call("ForAnybody", probe.request()))
    assert (error.code, error.info.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED")


async def test_many_violations_and_long_texts_still_fit_the_trailers(serve: Serve) -> None:
    parts = [{"role": "x" * 100} for _ in range(50)]
    client = await serve()
    error = await refused(client.call("ForAnybody", probe.request(parts=parts, parts_by_name={"é" * 9000: {"role": "x"}})))
    assert (error.code, len(error.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, 10)
    client = await serve(probe.raising(errors.Internal("é" * 100_000, reasons.ERROR_REASON_INTERNAL_FAULT)))
    error = await refused(client.call("ForAnybody", probe.request()))
    assert (error.code, error.message) == (grpc.StatusCode.INTERNAL, "é" * 500)


async def test_a_status_that_is_not_ours_is_no_error_of_ours() -> None:
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff"))
    error = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), trailers, "no such thing")
    assert isinstance(errors.from_rpc_error(error), errors.Unavailable)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_the_way_there_and_back(kind: type[ServiceError]) -> None:
    error = from_status(to_status(_everything(kind)))
    assert isinstance(error, kind)
    assert (error.message, reason_name(error.reason)) == ("What happened, and what to do: é€🙂", "CONFLICT")
    assert (error.metadata["name"], error.retry_delay_seconds) == ("é🙂", 2.5)
    assert error.violations == [FieldViolation("a.b[0]", "must be better")]


def test_an_unknown_reason_of_a_newer_service_is_no_fault() -> None:
    status = to_status(_everything(errors.NotFound))
    status.details[0].Pack(error_details_pb2.ErrorInfo(reason="OF_TOMORROW", domain="parley"))
    assert from_status(status).reason == reasons.ERROR_REASON_UNSPECIFIED


def test_read_refusal_demands_our_details() -> None:
    bare = grpc.aio.AioRpcError(grpc.StatusCode.UNKNOWN, grpc.aio.Metadata(), grpc.aio.Metadata(), "boom")
    with pytest.raises(AssertionError):
        read_refusal(bare)
