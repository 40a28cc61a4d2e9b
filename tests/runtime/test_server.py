"""The server: what it refuses to serve, health, the ordered drain, reflection."""

import asyncio
import signal
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from services.runtime.duties import beside
from services.runtime.server import ContractError, GrpcServer, Mount, serve
from services.runtime.settings import ServerSettings
from tests.issuer import Issuer
from tests.runtime import probe
from tests.work import PATIENCE_SECONDS

USER = str(uuid.uuid4())
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def _server(trusted: Issuer, mount: Mount, address: str = "127.0.0.1:0") -> GrpcServer:
    return GrpcServer(address=address, mounts=[mount], verifier=trusted.verifier("probe"))


class _Forgotten:
    async def Forgotten(self, _request: Any, _context: Any) -> Any: ...

    async def Upload(self, _requests: Any, _context: Any) -> Any: ...


@pytest.mark.parametrize(
    ("mount", "said"),
    [
        (Mount(probe.add, _Forgotten(), probe.service("UnruledService")), "Forgotten has no access rule"),
        (Mount(probe.add, _Forgotten(), probe.service("UploadService")), "Upload streams from the client"),
        (Mount(probe.add, object(), probe.service()), "ForAnybody is not implemented"),
        (
            Mount(
                memory_pb2_grpc.add_MemoryServiceServicer_to_server,
                type("Partial", (memory_pb2_grpc.MemoryServiceServicer,), {})(),
                memory_pb2.DESCRIPTOR.services_by_name["MemoryService"],
            ),
            "SearchMemories is not implemented",
        ),
    ],
    ids=["no access rule", "client streaming", "not implemented", "left to the generated base class"],
)
async def test_what_does_not_keep_the_contract_is_not_served(trusted: Issuer, mount: Mount, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        _server(trusted, mount)


async def test_a_taken_port_is_said_clearly(trusted: Issuer) -> None:
    first = _server(trusted, Mount(probe.add, probe.Probe(), probe.service()))
    port = await first.start()
    second = _server(trusted, Mount(probe.add, probe.Probe(), probe.service()), f"127.0.0.1:{port}")
    with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}: is the port taken\?"):
        await second.start()
    await first.stop(wait_seconds=0, drain_seconds=0)


def _health(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)  # ships no types


def _follow_until(event: asyncio.Event) -> Callable[[Any, Any], AsyncGenerator[Any, None]]:
    async def follow(_request: Any, _context: Any) -> AsyncGenerator[Any, None]:
        yield probe.reply(number=1)
        await event.wait()
        yield probe.reply(number=2)

    return follow


async def test_health_leaves_serving_first_and_an_open_stream_finishes(trusted: Issuer) -> None:
    finish = asyncio.Event()
    server = probe.probe_server(probe.Probe(follow=_follow_until(finish)), trusted)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        client, health = probe.Client(channel, trusted, port), _health(channel)
        for name in ("", "probe.v1.ProbeService"):
            assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
        stream = client.follow(probe.request(), trusted.as_user(USER), timeout=None)
        assert (await stream.read()).number == 1
        stopping = asyncio.create_task(server.stop(wait_seconds=0.3, drain_seconds=300))
        await asyncio.sleep(0.1)
        # The wait: nobody is refused yet, but health says what is coming.
        for name in ("", "probe.v1.ProbeService"):
            assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == NOT_SERVING
        assert (await client.call("ForAnybody", probe.request(text="still"))).text == "still"
        await asyncio.sleep(0.4)
        # The drain: new calls are refused, the open one goes on.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.call("ForAnybody", probe.request(), timeout=2)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        finish.set()
        assert (await stream.read()).number == 2
        assert await stream.read() is grpc.aio.EOF
        await asyncio.wait_for(stopping, PATIENCE_SECONDS)


async def test_what_outlasts_the_drain_is_cut(trusted: Issuer) -> None:
    server = probe.probe_server(probe.Probe(follow=_follow_until(asyncio.Event())), trusted)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stream = probe.Client(channel, trusted, port).follow(probe.request(), trusted.as_user(USER), timeout=None)
        await stream.read()
        begin = time.monotonic()
        await server.stop(wait_seconds=0, drain_seconds=0.3)
        assert 0.25 < time.monotonic() - begin < PATIENCE_SECONDS
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()


async def test_the_drain_ends_what_would_not_end_by_itself(trusted: Issuer) -> None:
    away, told = asyncio.Event(), list[float]()

    async def send_away(drain_seconds: float) -> None:
        told.append(drain_seconds)
        away.set()

    server = probe.probe_server(probe.Probe(follow=_follow_until(away)), trusted, on_drain=send_away)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stream = probe.Client(channel, trusted, port).follow(probe.request(), trusted.as_user(USER), timeout=None)
        assert (await stream.read()).number == 1
        begin = time.monotonic()
        await server.stop(wait_seconds=0, drain_seconds=300)
        assert (await stream.read()).number == 2
        assert await stream.read() is grpc.aio.EOF
    assert told == [300]
    assert time.monotonic() - begin < PATIENCE_SECONDS


async def test_a_standing_duty_that_fails_stops_the_server_in_order(trusted: Issuer) -> None:
    server = probe.probe_server(probe.Probe(), trusted)
    settings = ServerSettings.model_validate(
        {
            "listen_address": "127.0.0.1:0",
            "metrics_address": "127.0.0.1:0",
            "database_url": "postgresql://x@/x",
            "drain_wait_seconds": 0,
            "drain_seconds": 1,
        }
    )

    async def fail() -> None:
        await asyncio.sleep(0.3)
        raise LookupError("unforeseen")

    with capture_logs() as logs, pytest.raises(LookupError, match="unforeseen"):
        async with beside(fail()):
            await serve(server, settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)
    assert [one["event"] for one in logs] == ["server.started", "server.stopping", "server.stopped"]


async def test_reflection_lists_what_is_served(trusted: Issuer) -> None:
    server = probe.probe_server(probe.Probe(), trusted)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        stub: Any = reflection_pb2_grpc.ServerReflectionStub  # stubbed for synchronous channels only
        call = stub(channel).ServerReflectionInfo(iter([ask]))
        answer = await call.read()
    await server.stop(wait_seconds=0, drain_seconds=0)
    names = {one.name for one in answer.list_services_response.service}
    assert names == {"probe.v1.ProbeService", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_headers_as_large_as_the_edge_takes_are_taken(trusted: Issuer) -> None:
    """By default gRPC refuses some of these at random: from 8 KiB on, all from 16 KiB."""
    server = probe.probe_server(probe.Probe(), trusted)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = probe.Client(channel, trusted, port)
        large = (("cookie", "x" * 32 * 1024),)
        for _ in range(20):
            assert (await client.call("ForAnybody", probe.request(text="x"), metadata=large)).text == "x"
    await server.stop(wait_seconds=0, drain_seconds=0)


async def test_two_thousand_calls_at_once_are_all_served(trusted: Issuer) -> None:
    server = probe.probe_server(probe.Probe(), trusted)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = probe.Client(channel, trusted, port)
        calls = [client.call("ForAnybody", probe.request(text="x"), timeout=60) for _ in range(2_000)]
        assert {one.text for one in await asyncio.gather(*calls)} == {"x"}
    await server.stop(wait_seconds=0, drain_seconds=0)
