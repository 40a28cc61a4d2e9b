"""A plain HTTP listener beside the gRPC one, for what is not gRPC: /mcp.

Owns the socket, who may pass, and the end. Invariants: nobody passes without an identity that the service's own verifier
accepts; each request is bounded in size and time; each has one access line and the suite's error shape. It knows neither
sessions nor tools.
"""

import asyncio
import contextlib
import contextvars
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson
import structlog
import uvicorn

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.calls import NOBODY, Call, current_call, enter
from services.runtime.errors import (
    InvalidArgument,
    NotFound,
    ServiceError,
    Unauthenticated,
    Unavailable,
    reason_name,
    to_service_error,
)
from services.runtime.http_errors import HTTP_STATUS
from services.runtime.identity import AUTHORIZATION, TokenVerifier
from services.runtime.ids import new_id
from services.runtime.tls import TlsSettings

log = structlog.get_logger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

PATH: Final = "/mcp"
HEALTH_PATH: Final = "/health"
# Above the edge's limit, so that it is the edge that says 413.
MOST_BODY_BYTES: Final = 8 * 1024 * 1024
_METHODS: Final = ("POST",)
_DEADLINE_SECONDS: Final = 60.0
_MOST_REQUESTS: Final = 1_000
_MOST_CONNECTIONS: Final = 5_000
_BACKLOG: Final = 2048
_TICK_SECONDS: Final = 1.0
# Above what the edge keeps idle connections for, so that it is the edge that closes them.
_KEEP_ALIVE_SECONDS: Final = 620
_LEAST_DRAIN_SECONDS: Final = 0.1
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HTTP: Final[Mapping[str, int]] = {code.name: status for code, status in HTTP_STATUS.items()}


class _Server(uvicorn.Server):
    """uvicorn, ended by `stop()` and not by signals."""

    def __init__(self, app: App, tls: TlsSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                interface="asgi3",
                proxy_headers=False,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                ssl_ca_certs=_text(tls.service_tls_ca_file),
                ssl_certfile=tls.service_tls_certificate_file,
                ssl_keyfile=tls.service_tls_key_file,
                ssl_cert_reqs=ssl.CERT_REQUIRED,
            )
        )
        self._stopping = asyncio.Event()

    def stop(self, *, drain_seconds: float) -> None:
        self.config.timeout_graceful_shutdown = drain_seconds  # type: ignore[assignment]  # waits for any number
        self.should_exit = True
        self._stopping.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals alone: the gRPC server's drain ends this one too."""
        yield

    async def main_loop(self) -> None:
        """Refreshes the Date header every second until `stop()`."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _TICK_SECONDS)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


class McpListener:
    """Serves an ASGI app at /mcp for verified callers, at an address (port 0: any free one); with `tls` for the edge."""

    def __init__(self, app: App, verifier: TokenVerifier, tls: TlsSettings, *, address: str) -> None:
        self._app = app
        self._verifier = verifier
        self._address = address
        self._server = _Server(self._answer, tls)
        self._open = 0
        self.port = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Binds and serves until the block ends. Raises OSError when the address cannot be had."""
        listening = _listen(self._address)
        self.port = listening.getsockname()[1]
        # Without the context of whoever starts it: requests have their own.
        serving = asyncio.create_task(self._server.serve(sockets=[listening]), context=contextvars.Context())
        log.info("mcp.started", port=self.port)
        try:
            yield
        finally:
            self._server.stop(drain_seconds=_LEAST_DRAIN_SECONDS)
            await serving

    def drain(self, *, within_seconds: float) -> None:
        """Takes no more requests and lets open ones end; returns at once, and they are cut when the time is up."""
        self._server.stop(drain_seconds=max(within_seconds, _LEAST_DRAIN_SECONDS))

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == HEALTH_PATH:
            await _send_json(send, 200, {"status": "serving"})
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        begin, request_id = time.perf_counter(), _request_id(headers)
        answer = _Answer(send, request_id)
        self._open += 1
        try:
            await self._enter(headers, request_id)
            await self._pass_on(scope, receive, answer, content_type=headers.get("content-type", ""))
        except Exception as error:  # noqa: BLE001 - the one wrap around a request: whatever it is becomes an answer or a line
            await answer.fail(error)
        finally:
            self._open -= 1
            log.info(
                "mcp.answered",
                request_id=request_id,
                status=answer.status,
                user_id=current_call().caller.user_id,
                duration_ms=round((time.perf_counter() - begin) * 1000, 1),
            )

    async def _enter(self, headers: Mapping[str, str], request_id: str) -> None:
        """Makes this the current call. Raises Unauthenticated, Unavailable."""
        enter(Call(request_id=request_id))
        if self._open > _MOST_REQUESTS:
            raise Unavailable(
                "The service has as many requests as it takes. Try again.",
                reasons.ERROR_REASON_SERVICE_BUSY,
                metadata={"work": "mcp"},
                retry_delay_seconds=1,
            )
        metadata = {AUTHORIZATION: headers[AUTHORIZATION]} if AUTHORIZATION in headers else {}
        caller = await self._verifier.verify(metadata)
        if caller == NOBODY or caller.user_id is None:
            raise Unauthenticated(
                "Sign in and send the access token as `authorization: Bearer <token>`.",
                reasons.ERROR_REASON_IDENTITY_MISSING,
            )
        deadline = asyncio.get_running_loop().time() + _DEADLINE_SECONDS
        enter(Call(request_id=request_id, caller=caller, deadline=deadline))

    async def _pass_on(self, scope: Message, receive: Receive, answer: "_Answer", *, content_type: str) -> None:
        if scope["path"].rstrip("/") != PATH:
            raise NotFound("There is no such path: MCP is spoken at /mcp.", reasons.ERROR_REASON_ROUTE_NOT_FOUND)
        if scope["method"] not in _METHODS:
            # Stateless: there is no session to end and no stream to listen to.
            await answer.refuse_method()
            return
        # The package would answer in plain text.
        if content_type.partition(";")[0].strip().lower() != "application/json":
            raise InvalidArgument(
                "Send JSON-RPC, with the header `content-type: application/json`.", reasons.ERROR_REASON_INVALID_REQUEST
            )
        async with asyncio.timeout(_DEADLINE_SECONDS):
            await self._app(scope, receive, answer.send)


class _Answer:
    """What is sent of one answer: keeps the status, and puts the request id on it."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._request_id.encode())]
        await self._send(message)

    async def fail(self, error: Exception) -> None:
        """Answers with the error, where nothing was sent yet."""
        refusal = to_service_error(error, self._request_id)
        if not isinstance(error, ServiceError | TimeoutError):
            log.error("mcp.faulted", exc_info=error)
        if not self.status:
            await self.refuse(refusal)

    async def refuse(self, error: ServiceError) -> None:
        status = _HTTP.get(error.code.name, 500)
        headers = []
        if isinstance(error, Unauthenticated):
            headers.append((b"www-authenticate", b'Bearer realm="parley"'))
        if error.retry_delay_seconds is not None:
            headers.append((b"retry-after", str(max(1, -int(-error.retry_delay_seconds // 1))).encode()))
        await _send_json(self.send, status, _shape(error), headers)

    async def refuse_method(self) -> None:
        refusal = InvalidArgument(
            "This path takes POST: it keeps no sessions and has no stream to listen to.",
            reasons.ERROR_REASON_METHOD_NOT_ALLOWED,
        )
        body = {**_shape(refusal), "code": 12}
        await _send_json(self.send, 405, body, [(b"allow", ", ".join(_METHODS).encode())])


def _shape(error: ServiceError) -> dict[str, Any]:
    """The suite's error in JSON, as the edge writes it."""
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason_name(error.reason),
        "domain": "parley",
        "metadata": dict(error.metadata),
    }
    details: list[dict[str, Any]] = [info]
    if error.retry_delay_seconds is not None:
        retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retry_delay": f"{error.retry_delay_seconds:g}s"}
        details.append(retry)
    return {"code": error.code.value[0], "message": error.message, "details": details}


async def _send_json(
    send: Send, status: int, body: Mapping[str, Any], headers: "list[tuple[bytes, bytes]] | None" = None
) -> None:
    content = orjson.dumps(body)
    kind = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*kind, *(headers or ())]})
    await send({"type": "http.response.body", "body": content})


def _request_id(headers: Mapping[str, str]) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else new_id()


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    # asyncio turns Nagle's algorithm off only where the protocol is named.
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, int(port)))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise OSError(f"cannot serve MCP on {address}: is the port taken?") from error
    return listening
