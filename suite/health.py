"""When is it ready? Asked of each part in its own way, with a deadline every time; "not yet" is False, never an error."""

import asyncio
import contextlib
import http.client
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

ANSWER_SECONDS = 2.0
CONNECT_SECONDS = 0.5
DRAIN_POLL_SECONDS = 0.1
GREATEST_ANSWER_BYTES = 1_000_000
OK = 200
CHANNEL_OPTIONS = (("grpc.enable_retries", 0), ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.enable_http_proxy", 0))


@dataclass(frozen=True, slots=True)
class Certificates:
    """A folder of `make certs`, with which the suite asks its own parts."""

    folder: Path

    def of(self, name: str) -> dict[str, str]:
        """What a part is told of its certificate."""
        files = {"CA": "ca.pem", "CERTIFICATE": f"{name}.pem", "KEY": f"{name}.key"}
        return {f"SERVICE_TLS_{kind}_FILE": str(self.folder / file) for kind, file in files.items()}

    def channel(self, target: str, service: str) -> grpc.aio.Channel:
        """A channel to a service, as the edge would have it."""
        ca, certificate, key = (Path(path).read_bytes() for path in self.of("edge").values())
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", f"{service}.parley"))
        return grpc.aio.secure_channel(target, credentials, options=options)


def grpc_readiness(host: str, port: int, service: str, certificates: Certificates | None) -> Callable[[], Awaitable[bool]]:
    """Whether the process of a service at this address serves, by grpc.health.v1."""

    async def is_ready() -> bool:
        if not await _listens(host, port):
            return False
        target = f"{host}:{port}"
        if certificates is None:
            return await _serves(grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS))
        return await _serves(certificates.channel(target, service))

    return is_ready


def http_readiness(
    host: str, port: int, path: str, *, is_any_answer_good: bool = False, has_tls: bool = False
) -> Callable[[], Awaitable[bool]]:
    """Whether GET `path` answers 200, or answers at all."""

    async def is_ready() -> bool:
        status, _ = await ask(host, port, path, has_tls=has_tls)
        return status == OK or (is_any_answer_good and status != 0)

    return is_ready


async def _listens(host: str, port: int) -> bool:
    """Much cheaper than a gRPC channel, while a process is still importing."""
    async with _closing(host, port) as is_open:
        return is_open


@contextlib.asynccontextmanager
async def _closing(host: str, port: int) -> AsyncIterator[bool]:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT_SECONDS)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _serves(opened: grpc.aio.Channel) -> bool:
    async with opened as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = await check(health_pb2.HealthCheckRequest(), timeout=ANSWER_SECONDS)
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def ask(host: str, port: int, path: str, *, method: str = "GET", has_tls: bool = False) -> tuple[int, str]:
    """Status and text of an HTTP answer; status 0 when there was none."""
    return await asyncio.to_thread(_ask, _connection(host, port, has_tls=has_tls), path, method)


def _connection(host: str, port: int, *, has_tls: bool) -> http.client.HTTPConnection:
    if not has_tls:
        return http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
    # Only whether our own child answers, on this machine, is asked: by whom its certificate was signed does not matter.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=ANSWER_SECONDS, context=context)


def _ask(connection: http.client.HTTPConnection, path: str, method: str) -> tuple[int, str]:
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read(GREATEST_ANSWER_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def envoy_drain(admin_port: int, *, host: str, seconds: float) -> Callable[[asyncio.Event], Awaitable[None]]:
    """Tells Envoy's clients to go, then waits until no request is open, `seconds` at most, or until hurried."""

    async def drain(hurry: asyncio.Event) -> None:
        await ask(host, admin_port, "/drain_listeners?graceful", method="POST")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await _open_requests(host, admin_port) > 0 and not await _is_set(hurry, DRAIN_POLL_SECONDS):
                    continue

    return drain


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


async def _open_requests(host: str, admin_port: int) -> int:
    """By Envoy's own count of the edge's listener; 0 when Envoy does not answer any more."""
    _, text = await ask(host, admin_port, "/stats?filter=^http%5C.edge%5C.downstream_rq_active$")
    values = [line.rpartition(":")[2].strip() for line in text.splitlines()]
    return sum(int(value) for value in values if value.isdecimal())
