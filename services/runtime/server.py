"""Serving gRPC: every service the same way, with health, reflection, the call interceptor and an ordered drain.

A server refuses to be built when an RPC has no access rule or no implementation. At a stop, health leaves SERVING first;
then load balancers get time to notice; then new calls are refused while open ones go on, for as long as the drain allows.
"""

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from parley.options.v1 import options_pb2
from services.runtime.identity import TokenVerifier
from services.runtime.interceptors import CallInterceptor
from services.runtime.settings import ServerSettings
from services.runtime.tls import Tls, listen

log = structlog.get_logger(__name__)

# A look at all objects costs more than a tenth of a second from the start (235,000 in chat): all streams wait for it.
_GC_THRESHOLDS = (20_000, 20, 50)
_OPTIONS = (
    # Two servers on one port would share it silently, and one of them starve.
    ("grpc.so_reuseport", 0),
    # Above the edge's limit, so that the edge says 413 and not this server 429.
    ("grpc.max_receive_message_length", 8 * 1024 * 1024),
    # Above the edge's limit of headers too: by default grpc refuses from 8 KiB on, at random, with their sizes.
    ("grpc.max_metadata_size", 64 * 1024),
    ("grpc.absolute_max_metadata_size", 128 * 1024),
    # By default part of 2,000 streams opened at once is cancelled (bench baseline: 72-89 of 2,000).
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 30_000),
    # Nor is a call refused that waits to be taken: those of a burst are taken one by one, by default for 30 s.
    ("grpc.server_max_unrequested_time_in_server", 600),
    ("grpc.max_concurrent_streams", 10_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


class ContractError(Exception):
    """What is served does not keep the contract."""


@dataclass(frozen=True)
class Mount:
    """One gRPC service to serve: the generated `add_…_to_server`, its servicer, its descriptor."""

    add: Callable[[Any, grpc.aio.Server], None]
    servicer: object
    service: ServiceDescriptor


def access_rule(method: MethodDescriptor) -> options_pb2.Access.ValueType:
    """Who may call a method, as its proto says."""
    return method.GetOptions().Extensions[options_pb2.access]


def _rules(mounts: Sequence[Mount]) -> Iterator[tuple[str, options_pb2.Access.ValueType]]:
    for mount in mounts:
        for method in mount.service.methods:
            name = f"/{mount.service.full_name}/{method.name}"
            rule = access_rule(method)
            if rule == options_pb2.ACCESS_UNSPECIFIED:
                raise ContractError(f"{name} has no access rule: say in its proto who may call it.")
            if method.client_streaming:
                raise ContractError(f"{name} streams from the client, which the call interceptor does not wrap.")
            if not _is_implemented(mount.servicer, method.name):
                raise ContractError(f"{name} is not implemented.")
            yield name, rule


def _is_implemented(servicer: object, name: str) -> bool:
    """Whether the servicer has a method of its own: the generated base class has one for every RPC, which only refuses."""
    method = getattr(servicer, name, None)
    return callable(method) and not str(getattr(method, "__module__", "")).endswith("_pb2_grpc")


class GrpcServer:
    """A gRPC server for these mounts at an address (port 0: any free one).

    `on_drain` runs beside the drain and is given its seconds: it ends what would not end by itself, such as a feed.
    """

    def __init__(
        self,
        *,
        address: str,
        mounts: Sequence[Mount],
        verifier: TokenVerifier,
        slow_call_seconds: float = 2.0,
        on_drain: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        interceptor = CallInterceptor(verifier, dict(_rules(mounts)), slow_call_seconds=slow_call_seconds)
        self._address = address
        self._on_drain = on_drain
        self._server = grpc.aio.server(interceptors=[interceptor], options=_OPTIONS)
        self._health = health.aio.HealthServicer()
        self._names = [mount.service.full_name for mount in mounts]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection([*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        for mount in mounts:
            mount.add(mount.servicer, self._server)

    async def start(self, *, tls: Tls | None = None) -> int:
        """Binds and serves, with `tls` for parts of the suite only; returns the port.

        Raises OSError when the address cannot be had.
        """
        port = listen(self._server, self._address, tls)
        await self._server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self, *, wait_seconds: float, drain_seconds: float) -> None:
        """Stops in order; open calls that outlast the drain are cut."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await asyncio.sleep(wait_seconds)
        async with asyncio.TaskGroup() as drain:
            drain.create_task(self._server.stop(drain_seconds))
            if self._on_drain is not None:
                await self._on_drain(drain_seconds)

    async def _set_health(self, status: int) -> None:
        for name in ("", *self._names):
            await self._health.set(name, status)


async def serve(server: GrpcServer, settings: ServerSettings) -> None:
    """Serves, with metrics beside it, until SIGTERM or SIGINT; returns when the drain is over."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    metrics, metrics_thread = _serve_metrics(settings.metrics_address)
    _spare_collections()
    port = await server.start(tls=Tls.from_settings(settings))
    log.info("server.started", address=settings.listen_address, port=port)
    try:
        await stop.wait()
    finally:
        # In order too when a standing duty failed, which cancels this.
        log.info("server.stopping")
        await server.stop(wait_seconds=settings.drain_wait_seconds, drain_seconds=settings.drain_seconds)
        metrics.shutdown()
        metrics.server_close()
        metrics_thread.join()
        log.info("server.stopped")


def _spare_collections() -> None:
    """What is there at the start stays: the garbage collector need not look at it ever again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def _serve_metrics(address: str) -> tuple[Any, Any]:
    host, _, port = address.rpartition(":")
    try:
        return start_http_server(int(port), host.strip("[]"))
    except OSError as error:
        raise OSError(f"cannot serve metrics on {address}: is the port taken?") from error
