"""Serving the limiter: Envoy's RateLimitService and health, without what a service of the suite has around each call.

No identity, no field rules, no line in the log for a call: it is asked before every call of everybody, by the edges only, in
a network that clients do not reach.
"""

import asyncio
import signal

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import start_http_server

from gateway.limiter.servicer import LimitServicer
from parley.edge import rate_limit_pb2_grpc
from services.runtime.tls import Tls, listen

log = structlog.get_logger(__name__)
_OPTIONS = (("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", 10_000))
_WAIT_SECONDS, _DRAIN_SECONDS = 0.2, 2.0


class LimitServer:
    """A server at an address (port 0: any free one)."""

    def __init__(self, servicer: LimitServicer, *, address: str, tls: Tls | None) -> None:
        self._address = address
        self._tls = tls
        self._server = grpc.aio.server(options=_OPTIONS)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        rate_limit_pb2_grpc.add_RateLimitServiceServicer_to_server(servicer, self._server)

    async def start(self) -> int:
        """Binds and serves; returns the port. Raises OSError when the address cannot be had."""
        port = listen(self._server, self._address, self._tls)
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self) -> None:
        """Tells the edges to ask another one, then ends within seconds."""
        await self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await asyncio.sleep(_WAIT_SECONDS)
        await self._server.stop(_DRAIN_SECONDS)


async def serve(server: LimitServer, *, metrics_address: str) -> None:
    """Serves, with metrics beside it, until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
    host, _, metrics_port = metrics_address.rpartition(":")
    metrics, thread = start_http_server(int(metrics_port), host.strip("[]"))
    port = await server.start()
    log.info("limiter.started", port=port)
    try:
        await stop.wait()
    finally:
        await server.stop()
        metrics.shutdown()
        metrics.server_close()
        thread.join()
        log.info("limiter.stopped")
