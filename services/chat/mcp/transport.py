"""HTTP to an MCP server that a user named.

Invariant: each connection goes to an address that was checked a moment before, under the name that its certificate must
hold; a server can send only so much in one answer and be asked only so often in one turn, however it behaves. It refuses
proxies of the environment, compressed answers, and the standing stream of notifications, which no turn needs.
"""

import ssl
from collections.abc import AsyncIterator
from typing import Final

import httpx2

from services.chat.mcp.addresses import AddressError, Addresses

MOST_ANSWER_BYTES: Final = 2 * 1024 * 1024
_MOST_REQUESTS: Final = 256
_MOST_ATTEMPTS: Final = 3
_MOST_CONNECTIONS: Final = 8
_WRITE_SECONDS: Final = 10.0
READ_SECONDS: Final = 120.0


class AnswerTooLarge(httpx2.StreamError):
    """The server sends more than one answer may hold."""


class CheckedTransport(httpx2.AsyncBaseTransport):
    """One server's transport for one turn."""

    def __init__(self, addresses: Addresses, certificates: ssl.SSLContext) -> None:
        limits = httpx2.Limits(max_connections=_MOST_CONNECTIONS, max_keepalive_connections=_MOST_CONNECTIONS)
        self._inner = httpx2.AsyncHTTPTransport(verify=certificates, trust_env=False, limits=limits)
        self._addresses = addresses
        self._requests = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends the request to a checked address. Raises httpx2.HTTPError."""
        if request.method == "GET" and "last-event-id" not in request.headers:
            # As a server answers that has no such stream; it would hold a connection for as long as the turn.
            return httpx2.Response(httpx2.codes.METHOD_NOT_ALLOWED, request=request)
        self._requests += 1
        if self._requests > _MOST_REQUESTS:
            raise httpx2.ConnectError("too many requests to one server in one turn", request=request)
        response = await self._send(request)
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity" or int(response.headers.get("content-length") or 0) > MOST_ANSWER_BYTES:
            await response.aclose()
            raise httpx2.DecodingError("compressed, or larger than an answer may be", request=request)
        return httpx2.Response(
            response.status_code,
            headers=response.headers,
            stream=_Counted(response),
            extensions=response.extensions,
        )

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        host, failure = request.url.host, httpx2.ConnectError("the host has no address", request=request)
        try:
            self._addresses.check_form(str(request.url))
            addresses = await self._addresses.resolve(host)
        except (AddressError, OSError) as error:
            raise httpx2.ConnectError(str(error), request=request) from error
        for address in addresses[:_MOST_ATTEMPTS]:
            try:
                return await self._inner.handle_async_request(_at(request, str(address)))
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failure = httpx2.ConnectError("no connection", request=request)
                failure.__cause__ = error
        raise failure

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._inner.aclose()


def _at(request: httpx2.Request, address: str) -> httpx2.Request:
    """The same request, to this address: the Host header and the name in the certificate stay those of the URL."""
    extensions = {**request.extensions, "sni_hostname": request.url.host}
    url = request.url.copy_with(host=address)
    return httpx2.Request(request.method, url, headers=request.headers, stream=request.stream, extensions=extensions)


class _Counted(httpx2.AsyncByteStream):
    """The body of an answer, up to what one may hold."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._response.aiter_raw():
            size += len(chunk)
            if size > MOST_ANSWER_BYTES:
                raise AnswerTooLarge("the server sends more than an answer may hold")
            yield chunk

    async def aclose(self) -> None:
        await self._response.aclose()


def open_http(
    addresses: Addresses, certificates: ssl.SSLContext, *, headers: dict[str, str], connect_seconds: float
) -> httpx2.AsyncClient:
    """A client with the user's headers on every request; to be closed."""
    timeout = httpx2.Timeout(connect=connect_seconds, read=READ_SECONDS, write=_WRITE_SECONDS, pool=connect_seconds)
    return httpx2.AsyncClient(
        transport=CheckedTransport(addresses, certificates),
        headers={**headers, "accept-encoding": "identity"},
        timeout=timeout,
        trust_env=False,
        max_redirects=2,
    )
