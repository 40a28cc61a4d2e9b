"""What goes along with the calls of a service to others, over real servers."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

from services.runtime.calls import Call, acting_for, current_call, current_metadata, current_request_id, enter, seconds_left
from services.runtime.channels import open_channel
from services.runtime.errors import DeadlineExceeded, Unavailable
from tests.issuer import Issuer
from tests.runtime import probe
from tests.runtime.auth_twin import Auth
from tests.runtime.conftest import Serve, until
from tests.runtime.status import refused
from tests.work import PATIENCE_SECONDS

USER = str(uuid.uuid4())


async def _what_came(_request: Any, _context: Any) -> Any:
    call = current_call()
    left = seconds_left()
    parts = (call.caller.user_id, call.caller.service, call.request_id, None if left is None else round(left, 1))
    return probe.reply(text="|".join(map(str, parts)))


@dataclass
class Outgoing:
    """A channel of ours to the probe."""

    channel: grpc.aio.Channel
    issuer: Issuer

    async def ask(self, seconds: float | None = None) -> list[str]:
        answer = await probe.Client(self.channel, self.issuer, 0).call("ForServices", probe.request(), timeout=seconds)
        return str(answer.text).split("|")


@pytest.fixture
async def outgoing(auth: Auth, serve: Serve, trusted: Issuer) -> AsyncIterator[Outgoing]:
    inner = await serve(probe.Probe(_what_came, _stream_until_cancelled))
    async with open_channel(
        f"ipv4:127.0.0.1:{inner.port}", audience="probe", tokens=auth.tokens(), timeout_seconds=5
    ) as channel:
        yield Outgoing(channel, trusted)


async def _stream_until_cancelled(_request: Any, _context: Any) -> AsyncGenerator[Any, None]:
    yield probe.reply(text=f"{current_request_id()}|{seconds_left()}")
    await asyncio.sleep(60)


async def _within(serve: Serve, answer: Any, seconds: float | None = 10, request_id: str = "r-1") -> str:
    """Runs `answer` as the handler of a call of the user."""
    outer = await serve(probe.Probe(answer))
    metadata = (*outer.issuer.as_user(USER), ("x-request-id", request_id))
    return str((await outer.call("ForUsers", probe.request(), metadata, timeout=seconds)).text)


async def test_a_call_forwards_user_service_request_id_and_the_time_left(serve: Serve, outgoing: Outgoing) -> None:
    async def answer(_request: Any, _context: Any) -> Any:
        return probe.reply(text="|".join(await outgoing.ask()))

    user_id, service, request_id, left = (await _within(serve, answer, 2)).split("|")
    assert (user_id, service, request_id) == (USER, "chat", "r-1")
    assert 1 < float(left) <= 2
    _, _, _, left = (await _within(serve, answer, None)).split("|")
    assert 4 < float(left) <= 5


async def test_a_calls_own_timeout_goes_first_but_not_beyond_the_callers(serve: Serve, outgoing: Outgoing) -> None:
    async def answer(_request: Any, _context: Any) -> Any:
        longer, shorter = await outgoing.ask(60), await outgoing.ask(1)
        return probe.reply(text=f"{longer[3]}|{shorter[3]}")

    longer, shorter = map(float, (await _within(serve, answer, 3)).split("|"))
    assert 2 < longer <= 3
    assert 0 < shorter <= 1
    longer, _ = map(float, (await _within(serve, answer, None)).split("|"))
    assert longer > 50


async def test_no_call_is_begun_when_no_time_is_left(outgoing: Outgoing) -> None:
    async def late() -> None:
        enter(Call("r-1", deadline=asyncio.get_running_loop().time() - 1))
        await outgoing.ask()

    with pytest.raises(DeadlineExceeded):
        await asyncio.create_task(late())


async def test_a_job_acts_for_its_user_by_an_exchanged_token(auth: Auth, outgoing: Outgoing) -> None:
    with acting_for(USER, request_id="job-7"):
        user_id, service, request_id, _ = await outgoing.ask()
    assert (user_id, service, request_id) == (USER, "chat", "job-7")
    assert auth.twin.calls["exchange probe"] == 1
    user_id, service, *_ = await outgoing.ask()
    assert (user_id, service) == ("None", "chat")


async def test_a_token_that_cannot_be_had_is_the_calls_error(auth: Auth, serve: Serve) -> None:
    inner = await serve()
    await auth.go()
    async with open_channel(
        f"ipv4:127.0.0.1:{inner.port}", audience="probe", tokens=auth.tokens(), timeout_seconds=5
    ) as channel:
        client = probe.Client(channel, inner.issuer, 0)
        with pytest.raises(Unavailable):
            await client.call("ForServices", probe.request())
        with pytest.raises(Unavailable):
            await anext(aiter(client.follow(probe.request())))

        async def answer(_request: Any, _context: Any) -> Any:
            return await client.call("ForServices", probe.request())

        outer = await serve(probe.Probe(answer))
        assert (await refused(outer.call("ForAnybody", probe.request()))).info.reason == "DEPENDENCY_UNAVAILABLE"


async def test_a_stream_forwards_too_has_no_bound_of_its_own_and_can_be_left(outgoing: Outgoing) -> None:
    def open_calls() -> float:
        return REGISTRY.get_sample_value("parley_rpc_open_calls", {"method": "/probe.v1.ProbeService/Follow"}) or 0

    with acting_for(USER, request_id="job-8"):
        call = probe.Client(outgoing.channel, outgoing.issuer, 0).follow(probe.request(), timeout=None)
        first = await anext(aiter(call))
    assert first.text == "job-8|None"
    assert open_calls() == 1
    call.cancel()
    await until(lambda: open_calls() == 0)


async def test_a_service_that_is_away_fails_at_once(auth: Auth) -> None:
    async with open_channel("ipv4:127.0.0.1:1", audience="probe", tokens=auth.tokens(), timeout_seconds=300) as channel:
        begin = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await probe.Client(channel, auth.twin.issuer, 0).call("ForServices", probe.request(), timeout=None)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - begin < PATIENCE_SECONDS


async def test_calls_go_round_the_replicas_and_past_a_dead_one(auth: Auth, serve: Serve) -> None:
    seen: list[int] = []

    def noting(number: int) -> probe.Probe:
        async def answer(_request: Any, _context: Any) -> Any:
            seen.append(number)
            assert current_metadata()["x-parley-service-authorization"]
            return probe.reply()

        return probe.Probe(answer)

    ports = [(await serve(noting(number))).port for number in range(2)]
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in [*ports, 1])
    async with open_channel(target, audience="probe", tokens=auth.tokens(), timeout_seconds=5) as channel:
        client = probe.Client(channel, auth.twin.issuer, 0)
        await client.call("ForServices", probe.request())
        await asyncio.sleep(0.3)
        for _ in range(20):
            await client.call("ForServices", probe.request())
    assert min(seen.count(0), seen.count(1)) >= 8
