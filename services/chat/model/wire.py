"""Calls to the provider over HTTP: a pool of connections, streamed and plain answers, silence noticed.

Owns the pool, TLS, proxies (from the environment, as the SDK has them) and the translation of every failure of the transport
into ServiceErrors. Invariant: whatever happens, an answer that is left gives its connection back or closes it. It refuses to
try again by itself, and knows nothing of what the bytes mean.
"""

import asyncio
import contextlib
import io
import ssl
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import Any, Final

import aiohttp
import httpx2
import orjson
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from services.runtime.errors import ServiceError
from services.runtime.openai import (
    POOL_TIMEOUT_SECONDS,
    OpenAISettings,
    Refusal,
    from_refusal,
    timed_out,
    unavailable,
)

MAX_ERROR_BYTES: Final = 64 * 1024
MAX_PLAIN_BYTES: Final = 16 * 1024 * 1024
# Larger bodies (images) are handed over in pieces, so that writing one does not hold the loop.
MAX_BODY_AT_ONCE_BYTES: Final = 512 * 1024
DRAIN_SECONDS: Final = 0.25
KEEP_ALIVE_SECONDS: Final = 30
BROKEN: Final = (aiohttp.ClientError, HttpProcessingError, OSError)
"""What a broken connection, or one that speaks no HTTP, is raised as."""


class Wire:
    """The way to one provider. Made on a running loop; `close` ends it."""

    def __init__(self, settings: OpenAISettings, tls: ssl.SSLContext) -> None:
        self._base_url = settings.openai_base_url.rstrip("/")
        self._silence_seconds = settings.openai_timeout_seconds
        url = URL(self._base_url)
        proxy, self._proxy_headers = _proxy_of(url)
        # Not the session's defaults: those go to a proxy, too.
        self._headers = {
            "Authorization": f"Bearer {settings.openai_api_key.get_secret_value()}",
            # Compressing an event stream would cost both sides more than it saves.
            "Accept-Encoding": "identity",
            "User-Agent": "parley-chat",
            "Content-Type": "application/json",
        }
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=settings.openai_max_connections,
                keepalive_timeout=KEEP_ALIVE_SECONDS,
                ssl=tls,
            ),
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=settings.openai_connect_timeout_seconds + POOL_TIMEOUT_SECONDS,
                sock_connect=settings.openai_connect_timeout_seconds,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=proxy,
        )
        if url.scheme == "http" and self._proxy_headers:
            # Without TLS there is no CONNECT: the proxy reads the request's own headers.
            self._headers |= self._proxy_headers

    async def close(self) -> None:
        """Closes every connection. Idempotent."""
        await self._session.close()

    @contextlib.asynccontextmanager
    async def stream(
        self, method: str, path: str, *, model: str, body: bytes | None = None
    ) -> AsyncGenerator["Incoming", None]:
        """The answer as it comes. Raises ServiceError; from the Refusal where the provider gave one."""
        response = await self._request(method, path, body, model, accept="text/event-stream")
        try:
            if response.status != httpx2.codes.OK:
                raise await self._refused(response, model)
            incoming = Incoming(response, model, silence_seconds=self._silence_seconds)
            try:
                yield incoming
            finally:
                incoming.stop()
        finally:
            # Gives the connection back where the whole answer was read, closes it otherwise.
            response.release()

    async def fetch(self, method: str, path: str, *, model: str, timeout_seconds: float) -> dict[str, Any]:
        """A whole JSON object. Raises ServiceError, as `stream`."""
        with _translated(model):
            async with asyncio.timeout(timeout_seconds):
                response = await self._request(method, path, None, model, accept="application/json")
                async with response:
                    if response.status != httpx2.codes.OK:
                        raise await self._refused(response, model)
                    body = await _bounded(response, MAX_PLAIN_BYTES)
        return _object(body, model)

    async def _request(
        self, method: str, path: str, body: bytes | None, model: str, *, accept: str
    ) -> aiohttp.ClientResponse:
        headers = {**self._headers, "Accept": accept}
        data = io.BytesIO(body) if body is not None and len(body) > MAX_BODY_AT_ONCE_BYTES else body
        with _translated(model):
            async with asyncio.timeout(self._silence_seconds):
                return await self._session.request(
                    method, f"{self._base_url}{path}", data=data, headers=headers, proxy_headers=self._proxy_headers
                )

    async def _refused(self, response: aiohttp.ClientResponse, model: str) -> ServiceError:
        with _translated(model):
            async with asyncio.timeout(self._silence_seconds):
                body = await _bounded(response, MAX_ERROR_BYTES)
        told: object = None
        with contextlib.suppress(orjson.JSONDecodeError):
            told = orjson.loads(body)
        refusal = Refusal(response.status, told, _lowered(response.headers))
        error = from_refusal(refusal, model)
        error.__cause__ = refusal
        return error


class Incoming:
    """The bytes of an answer. A silence of the provider ends it with DeadlineExceeded.

    One timer for as long as something is heard, instead of one for every read; it fails the read, not the task, so that
    whoever reads may do other things in between.
    """

    def __init__(self, response: aiohttp.ClientResponse, model: str, *, silence_seconds: float) -> None:
        self._response = response
        self._content = response.content
        self._model = model
        self._silence_seconds = silence_seconds
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._read_bytes = 0
        self._timer = self._loop.call_later(silence_seconds, self._listen)

    async def read(self) -> bytes:
        """What has come since the last read; nothing at the end. Raises ServiceError."""
        try:
            data = await self._content.readany()
        except TimeoutError as error:
            raise timed_out(self._model) from error
        except BROKEN as error:
            raise unavailable(self._model) from error
        self._heard = self._loop.time()
        self._read_bytes += len(data)
        return data

    async def drain(self) -> None:
        """Reads what follows the end, so that the connection can carry the next reply. Bounded in time; never fails."""
        if self._content.at_eof():
            return
        with contextlib.suppress(ServiceError, TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while await self.read():
                    pass

    def stop(self) -> None:
        """No more reads."""
        self._timer.cancel()

    def _listen(self) -> None:
        if self._content.total_bytes > self._read_bytes:
            # What came waits for its reader: that is not the provider's silence.
            self._heard = self._loop.time()
        due = self._heard + self._silence_seconds
        if due > self._loop.time():
            self._timer = self._loop.call_at(due, self._listen)
            return
        self._content.set_exception(TimeoutError())
        self._response.close()


@contextlib.contextmanager
def _translated(model: str) -> Iterator[None]:
    """Turns what the HTTP client raises inside into ServiceErrors about `model`."""
    try:
        yield
    except TimeoutError as error:  # aiohttp's own among them
        raise timed_out(model) from error
    except BROKEN as error:
        raise unavailable(model) from error


async def _bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, at most so much of it."""
    parts, size = [], 0
    async for part in _parts(response):
        parts.append(part)
        size += len(part)
        if size >= limit:
            break
    return b"".join(parts)[:limit]


async def _parts(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    while part := await response.content.readany():
        yield part


def _object(body: bytes, model: str) -> dict[str, Any]:
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise unavailable(model) from error
    if not isinstance(told, dict):
        raise unavailable(model)
    return told


def _lowered(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _proxy_of(url: URL) -> tuple[URL | None, dict[str, str] | None]:
    """The proxy that the environment names for this address, once for all calls."""
    proxies = urllib.request.getproxies()
    stated = proxies.get(url.scheme) or proxies.get("all")
    if not stated or urllib.request.proxy_bypass(f"{url.host}:{url.port}"):
        return None, None
    proxy = URL(stated if "://" in stated else f"http://{stated}")
    if proxy.scheme not in ("http", "https"):
        raise ValueError(f"a proxy for the provider must be http:// or https://, not {proxy.scheme}://")
    if not proxy.user:
        return proxy, None
    authorization = aiohttp.encode_basic_auth(proxy.user, proxy.password or "")
    return proxy.with_user(None), {"Proxy-Authorization": authorization}
