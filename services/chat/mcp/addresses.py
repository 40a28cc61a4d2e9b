"""Which addresses users may make the suite call.

Owns the reading of a user's URL and the look-up of its host. Invariant: unless the operator allows private addresses,
nothing but https to a public address is called, and a call goes to an address that was checked: the name is not looked up
again between check and use. It refuses credentials in a URL, whoever allows what.
"""

import asyncio
import ipaddress
import re
import socket
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import httpx2

from services.runtime.errors import FieldViolation, invalid_request

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_CACHED_HOSTS: Final = 1_000
_CACHE_SECONDS: Final = 30.0
# Names are looked up in threads of their own: a slow name server must not take those that everything else runs in.
_THREADS: Final = 8
_UNPRINTABLE: Final = re.compile(r"[^\x21-\x7e]|\\")
_AUTHORITY: Final = re.compile(r"[a-z]+://([^/?#]*).*")
_HOST: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*")
_LAST_PORT: Final = 65_535
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\x20-\x7e]*")

# Beyond what `is_global` knows on every supported Python: special blocks of IANA, and metadata servers of clouds that stand
# at public addresses.
_REFUSED: Final = tuple(
    ipaddress.ip_network(block)
    for block in (
        *("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "240.0.0.0/4"),
        *("168.63.129.16/32",),  # Azure's
        *("64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16", "fc00::/7", "fec0::/10"),
    )
)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

# Ours to set, or of one connection only.
_RESERVED_HEADERS: Final = frozenset(
    {
        *("accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect"),
        *("host", "keep-alive", "last-event-id", "mcp-protocol-version", "mcp-session-id", "proxy-authenticate"),
        *("proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("mcp-method", "mcp-name"),
    }
)


class AddressError(Exception):
    """The host has no address that may be called; the text names it and says why."""


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, and so is the one that it may hold within."""
    inner = _inner(address)
    if inner is not None:
        return is_public(inner)
    refused = any(address in block for block in _REFUSED if block.version == address.version)
    return address.is_global and not (refused or address.is_multicast or address.is_reserved or address.is_unspecified)


def _inner(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to: mapped, 6to4, NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour


def wrong_headers(headers: Mapping[str, str], *, field: str = "headers") -> list[FieldViolation]:
    """What is wrong with the headers that a server is to get. Never quotes a value."""
    found = [FieldViolation(field, problem) for name in headers if (problem := _name_problem(name))]
    if len({name.lower() for name in headers}) < len(headers):
        found.append(FieldViolation(field, "a header is named twice, in another case"))
    for name, value in headers.items():
        if not _VALUE.fullmatch(value) or value != value.strip():
            found.append(FieldViolation(field, f"the value of {name[:40]} must be printable ASCII without spaces around it"))
    return found


def _name_problem(name: str) -> str | None:
    if not _TOKEN.fullmatch(name):
        return f"{name[:40]!r} is no header name: use letters, digits and dashes"
    return f"{name} is not yours to set" if name.lower() in _RESERVED_HEADERS else None


class Addresses:
    """Checks URLs and looks hosts up. What was found is remembered for 30 s, 1,000 hosts at most. Close it at the end."""

    def __init__(self, *, allow_private: bool, timeout_seconds: float) -> None:
        self._allow_private = allow_private
        self._timeout_seconds = timeout_seconds
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="addresses")
        self._found: OrderedDict[str, tuple[float, Sequence[Address]]] = OrderedDict()

    def close(self) -> None:
        """Gives the threads up; look-ups that hang are left behind."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def check_url(self, url: str, *, field: str = "url") -> None:
        """Refuses a URL that may not be called: InvalidArgument with a violation for `field`.

        A host that has no address now passes: it may have one later, and every connection is checked again.
        """
        problem = self._problem(url)
        if problem is None:
            try:
                await self.resolve(httpx2.URL(url).host)
            except AddressError as error:
                problem = str(error)
            except OSError:  # a TimeoutError is one
                return
        if problem is not None:
            raise invalid_request([FieldViolation(field, problem)])

    def check_form(self, url: str) -> None:
        """Raises AddressError for a URL that is not to be called wherever its host is."""
        if (problem := self._problem(url)) is not None:
            raise AddressError(problem)

    async def resolve(self, host: str) -> Sequence[Address]:
        """The addresses of a host, all of which may be called.

        Raises AddressError when any may not, OSError when there is none, TimeoutError when it takes too long.
        """
        addresses = await self._addresses(host)
        if not self._allow_private and not all(map(is_public, addresses)):
            raise AddressError("leads to a private or reserved address: use a server on the public internet")
        return addresses

    def _problem(self, url: str) -> str | None:
        if _UNPRINTABLE.search(url):
            return "must be printable ASCII without spaces and backslashes: write other characters in percent-encoding"
        try:
            parsed = httpx2.URL(url)
        except (httpx2.InvalidURL, ValueError):
            return "is not a URL"
        return self._problem_of_parts(parsed, url)

    def _problem_of_parts(self, parsed: httpx2.URL, url: str) -> str | None:
        if parsed.scheme != "https" and not (self._allow_private and parsed.scheme == "http"):
            return "must begin with https://"
        if parsed.userinfo or "@" in _AUTHORITY.sub(r"\1", url):
            return "must not hold credentials: send them as headers"
        if parsed.fragment:
            return "must not hold a fragment (#…)"
        if not _HOST.fullmatch(parsed.host) or (parsed.port is not None and not 0 < parsed.port <= _LAST_PORT):
            return "names no host and port that there can be"
        return None

    async def _addresses(self, host: str) -> Sequence[Address]:
        now = time.monotonic()
        found = self._found.get(host)
        if found is not None and found[0] > now:
            return found[1]
        addresses = await self._look_up(host)
        self._found[host] = (now + _CACHE_SECONDS, addresses)
        self._found.move_to_end(host)
        while len(self._found) > _CACHED_HOSTS:
            self._found.popitem(last=False)
        return addresses

    async def _look_up(self, host: str) -> Sequence[Address]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout_seconds):
            rows = await loop.run_in_executor(self._threads, _get_addresses, host)
        return list(dict.fromkeys(ipaddress.ip_address(row.partition("%")[0]) for row in rows))


def _get_addresses(host: str) -> list[str]:
    try:
        rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host[:80]} is no host name") from error
    return [str(row[4][0]) for row in rows]
