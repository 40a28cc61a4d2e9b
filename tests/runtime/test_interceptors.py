"""The wrap around every call: request ids, requests that do not parse, leaving callers, deadlines, log and metrics."""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.runtime.calls import current_call, current_metadata, current_request_id, detached, seconds_left
from tests.runtime import probe
from tests.runtime.conftest import Serve
from tests.runtime.status import refused

USER = str(uuid.uuid4())


def _open_calls(method: str) -> float:
    return REGISTRY.get_sample_value("parley_rpc_open_calls", {"method": f"/probe.v1.ProbeService/{method}"}) or 0


def _counted(method: str, code: str) -> float:
    labels = {"method": f"/probe.v1.ProbeService/{method}", "code": code}
    return REGISTRY.get_sample_value("parley_rpc_calls_total", labels) or 0


async def _until(condition: Any, seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - metrics and logs have no event
            await asyncio.sleep(0.01)


async def _raw_call(channel: grpc.aio.Channel, path: str) -> Any:
    stub: Any = channel.unary_unary(path)
    return await stub(b"", timeout=5)


async def _request_id(_request: Any, _context: Any) -> Any:
    return probe.reply(text=current_request_id())


@pytest.mark.parametrize("asked", ["a", "req-1:2/3.4_5+6=", "x" * 128, "0199bbbb-0000-7000-8000-000000000003"])
async def test_a_request_id_is_kept(serve: Serve, asked: str) -> None:
    client = await serve(probe.Probe(_request_id))
    call = client.call("ForAnybody", probe.request(), (("x-request-id", asked),))
    assert (await call).text == asked
    assert dict(await call.trailing_metadata())["x-request-id"] == asked


@pytest.mark.parametrize("asked", [None, "", "x" * 129, "two words", "a;b", "<script>", "a,b", '"'])
async def test_a_missing_or_bad_request_id_is_replaced(serve: Serve, asked: str | None) -> None:
    client = await serve(probe.Probe(_request_id))
    metadata = () if asked is None else (("x-request-id", asked),)
    call = client.call("ForAnybody", probe.request(), metadata)
    made = str(uuid.UUID((await call).text))
    assert dict(await call.trailing_metadata())["x-request-id"] == made


async def test_a_refused_and_a_streamed_call_carry_the_request_id_too(serve: Serve) -> None:
    client = await serve()
    error = await refused(client.call("ForUsers", probe.request(), (("x-request-id", "mine"),)))
    assert error.trailers["x-request-id"] == "mine"
    call = client.follow(probe.request(), (*client.issuer.as_user(USER), ("x-request-id", "mine")))
    assert len([one async for one in call]) == 3
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine"


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7f", b"\x08"])
async def test_bytes_that_do_not_parse_are_the_callers_error(serve: Serve, raw: bytes) -> None:
    client = await serve()
    for call in (client.call("ForAnybody", raw), client.follow(raw, client.issuer.as_user(USER))):
        error = await refused(call)
        assert (error.code, error.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_identity_is_asked_before_the_request_is_looked_at(serve: Serve) -> None:
    client = await serve()
    assert (await refused(client.call("ForUsers", b"\xff\xff\xff"))).info.reason == "IDENTITY_MISSING"
    assert (await refused(client.call("ForUsers", probe.request(name="x")))).info.reason == "IDENTITY_MISSING"


@pytest.mark.parametrize(
    "path", ["/probe.v1.ProbeService/Nothing", "/nothing.v1.Nothing/Nothing", "/", "/probe.v1.ProbeService"]
)
async def test_an_unknown_method_is_unimplemented(serve: Serve, path: str) -> None:
    client = await serve()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _raw_call(client.channel, path)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_metadata_reaches_the_handler_and_the_token_is_not_shown(serve: Serve) -> None:
    async def answer(_request: Any, _context: Any) -> Any:
        assert "Bearer" not in repr(current_call().caller)
        return probe.reply(text=current_metadata()["idempotency-key"])

    client = await serve(probe.Probe(answer))
    metadata: Any = (*client.issuer.as_user(USER), ("idempotency-key", "once"), ("bytes-bin", b"\x00"))
    assert (await client.call("ForUsers", probe.request(), metadata)).text == "once"


class _Endless:
    """A stream that says how it ended."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.deadline: float | None = None

    async def follow(self, _request: Any, _context: Any) -> AsyncGenerator[Any, None]:
        self.deadline = seconds_left()
        try:
            for number in range(1_000_000):
                yield probe.reply(number=number)
                await asyncio.sleep(0.005)
        finally:
            self.ended.set()

    async def answer(self, _request: Any, _context: Any) -> Any:
        self.deadline = seconds_left()
        try:
            await asyncio.sleep(60)
        finally:
            self.ended.set()


@pytest.mark.parametrize("method", ["Follow", "ForUsers"])
async def test_a_caller_that_leaves_ends_the_handler(serve: Serve, method: str) -> None:
    endless = _Endless()
    client = await serve(probe.Probe(endless.answer, endless.follow))
    metadata = (*client.issuer.as_user(USER), ("x-request-id", "leaving"))
    before = _counted(method, "CANCELLED")
    with capture_logs() as logs:
        if method == "Follow":
            call = client.follow(probe.request(), metadata, timeout=None)
            assert [(await call.read()).number for _ in range(3)] == [0, 1, 2]
        else:
            call = client.call(method, probe.request(), metadata, timeout=None)
            await asyncio.sleep(0.05)
        assert _open_calls(method) == 1
        call.cancel()
        await asyncio.wait_for(endless.ended.wait(), 5)
        await _until(lambda: any(one["event"] == "rpc.answered" for one in logs))
    assert _open_calls(method) == 0
    assert _counted(method, "CANCELLED") == before + 1
    [line] = [one for one in logs if one["event"] == "rpc.answered"]
    assert (line["code"], line["request_id"], line["user_id"]) == ("CANCELLED", "leaving", USER)
    assert endless.deadline is None


async def test_a_caller_that_does_not_read_and_leaves_ends_the_handler(serve: Serve) -> None:
    """The handler hangs in its write, not in an await of its own."""
    ended = asyncio.Event()

    async def follow(_request: Any, _context: Any) -> AsyncGenerator[Any, None]:
        try:
            while True:
                yield probe.reply(text="x" * 100_000)
        finally:
            await asyncio.sleep(0.1)
            ended.set()

    client = await serve(probe.Probe(follow=follow))
    with capture_logs() as logs:
        call = client.follow(probe.request(), client.issuer.as_user(USER), timeout=None)
        await call.read()
        await asyncio.sleep(0.2)
        call.cancel()
        await _until(lambda: any(one["event"] == "rpc.answered" for one in logs))
    assert ended.is_set()  # the call ends after its handler has cleaned up, not before
    assert _open_calls("Follow") == 0
    assert [one["code"] for one in logs if one["event"] == "rpc.answered"] == ["CANCELLED"]


@pytest.mark.parametrize("method", ["Follow", "ForUsers"])
async def test_a_deadline_ends_the_handler_and_is_known_to_it(serve: Serve, method: str) -> None:
    endless = _Endless()
    client = await serve(probe.Probe(endless.answer, endless.follow))
    metadata = client.issuer.as_user(USER)
    with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012 - two kinds of calls
        if method == "Follow":
            async for _ in client.follow(probe.request(), metadata, timeout=0.3):
                pass
        else:
            await client.call(method, probe.request(), metadata, timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with capture_logs() as late:
        await asyncio.wait_for(endless.ended.wait(), 5)
        await _until(lambda: any(one["event"] == "rpc.answered" for one in [*logs, *late]))
    assert [one["code"] for one in [*logs, *late] if one["event"] == "rpc.answered"] == ["DEADLINE_EXCEEDED"]
    assert endless.deadline is not None
    assert 0 < endless.deadline <= 0.3
    assert _open_calls(method) == 0


async def test_a_broken_off_stream_leaves_no_open_call(serve: Serve) -> None:
    async def follow(_request: Any, _context: Any) -> AsyncGenerator[Any, None]:
        yield probe.reply()
        raise RuntimeError

    client = await serve(probe.Probe(follow=follow))
    await refused(client.follow(probe.request(), client.issuer.as_user(USER)))
    assert _open_calls("Follow") == 0


async def test_a_task_that_outlives_its_call_keeps_caller_and_id_and_loses_the_deadline(serve: Serve) -> None:
    tasks: list[asyncio.Task[tuple[str | None, str, float | None]]] = []

    async def later() -> tuple[str | None, str, float | None]:
        await asyncio.sleep(0.05)
        return current_call().caller.user_id, current_request_id(), seconds_left()

    async def answer(_request: Any, _context: Any) -> Any:
        tasks.append(asyncio.create_task(later(), context=detached()))
        return probe.reply()

    client = await serve(probe.Probe(answer))
    await client.call("ForUsers", probe.request(), (*client.issuer.as_user(USER), ("x-request-id", "first")))
    await client.call("ForAnybody", probe.request(), (("x-request-id", "second"),))
    assert [await task for task in tasks] == [(USER, "first", None), (None, "second", None)]


async def test_calls_at_once_do_not_see_each_others_identity(serve: Serve) -> None:
    async def answer(_request: Any, _context: Any) -> Any:
        before = current_call().caller.user_id
        await asyncio.sleep(0.01)
        assert current_call().caller.user_id == before
        return probe.reply(text=before)

    client = await serve(probe.Probe(answer))
    users = [str(uuid.uuid4()) for _ in range(50)]
    calls = [client.call("ForUsers", probe.request(), client.issuer.as_user(user)) for user in users]
    assert [one.text for one in await asyncio.gather(*calls)] == users


async def test_one_line_a_call_and_nothing_of_its_content(serve: Serve) -> None:
    client = await serve(probe.Probe(probe.caller_as_reply))
    metadata = (*client.issuer.as_service("chat", audience="probe", user_id=USER), ("x-request-id", "r-1"))
    with capture_logs() as logs:
        await client.call("ForServices", probe.request(text="the content"), metadata)
    [line] = logs
    assert line.pop("duration_ms") > 0
    assert line == {
        "event": "rpc.answered",
        "log_level": "info",
        "method": "/probe.v1.ProbeService/ForServices",
        "code": "OK",
        "request_id": "r-1",
        "user_id": USER,
        "peer_service": "chat",
    }


async def test_a_slow_call_is_named_and_a_slow_stream_is_not(serve: Serve) -> None:
    async def slow(_request: Any, _context: Any) -> Any:
        await asyncio.sleep(0.05)
        return probe.reply()

    async def slow_stream(_request: Any, _context: Any) -> AsyncGenerator[Any, None]:
        await asyncio.sleep(0.05)
        yield probe.reply()

    client = await serve(probe.Probe(slow, slow_stream), slow_call_seconds=0.02)
    with capture_logs() as logs:
        await client.call("ForAnybody", probe.request())
        _ = [one async for one in client.follow(probe.request(), client.issuer.as_user(USER))]
    assert [one["event"] for one in logs] == ["rpc.answered", "rpc.slow", "rpc.answered"]


async def test_calls_are_counted_by_method_and_code(serve: Serve) -> None:
    client = await serve()
    before = _counted("ForAnybody", "OK"), _counted("ForUsers", "UNAUTHENTICATED")
    await client.call("ForAnybody", probe.request())
    await refused(client.call("ForUsers", probe.request()))
    assert (_counted("ForAnybody", "OK"), _counted("ForUsers", "UNAUTHENTICATED")) == (before[0] + 1, before[1] + 1)


async def test_a_message_above_the_limit_is_refused_and_the_server_lives(serve: Serve) -> None:
    client = await serve()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.call("ForAnybody", probe.request(text="x" * 9 * 1024 * 1024))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await client.call("ForAnybody", probe.request(text="x" * 2_000_000))).text
