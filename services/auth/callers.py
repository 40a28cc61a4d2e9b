"""Who may call what of auth, beyond the contract's access rules; and who a caller is, as the audit log and limits see it.

Owns two distinctions: a user who calls in person, by a session, and a service that acts for one, which reads what it needs
and changes nothing; an edge, whose word about a client's address counts, and anybody else, whose does not.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.records import Origin
from services.auth.refusals import user_not_found
from services.runtime.calls import current_caller, current_metadata, current_user_id
from services.runtime.errors import PermissionDenied
from services.runtime.ids import is_id

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_FORWARDED_FOR = "x-forwarded-for"
_ME = "me"


def own_session() -> tuple[str, str]:
    """The caller's user and session. Raises PermissionDenied for a service that acts for a user: it has no session."""
    session_id = current_caller().session_id
    if session_id is None:
        raise PermissionDenied("Only the user's own token may do this.", reasons.ERROR_REASON_ACCESS_DENIED)
    return current_user_id(), session_id


def require_self(user_id: str) -> None:
    """Raises PermissionDenied unless the path names the caller: the access rules let an administrator name anybody."""
    if user_id not in {_ME, current_user_id()}:
        raise PermissionDenied("The path names another user: use your own id or `me`.", reasons.ERROR_REASON_ACCESS_DENIED)


def require_service(name: str) -> None:
    """Raises PermissionDenied unless this service calls, for itself."""
    caller = current_caller()
    if caller.service != name or caller.user_id is not None:
        raise PermissionDenied(f"Only the service {name}, for itself, may do this.", reasons.ERROR_REASON_ACCESS_DENIED)


def named_user(user_id: str) -> str:
    """The user that a path names, whom the access rules let this caller name. Raises NotFound for what is no id."""
    named = current_user_id() if user_id == _ME else user_id.lower()
    if not is_id(named):
        raise user_not_found(user_id)
    return named


class Origins:
    """Where calls come from. `edges` are the networks of our own edges; as many `proxies` stand before those."""

    def __init__(self, edges: Sequence[Network], *, proxies: int) -> None:
        self._edges = edges
        self._proxies = proxies

    def of(self, peer: str) -> Origin:
        """The caller of the current call, and the client's address, by `peer` as gRPC names it."""
        return Origin(current_caller().user_id, self._address(peer, current_metadata().get(_FORWARDED_FOR, "")))

    def at_the_door(self, peer: str, headers: Mapping[str, str]) -> Origin:
        """Whoever sent the request with these headers, which an edge asks about. Anybody else who asks is the client."""
        return Origin(address=self._address(peer, headers.get(_FORWARDED_FOR, "")))

    def _address(self, peer: str, forwarded_for: str) -> str | None:
        """The client's: what an edge says, the peer's own for anybody else; None where neither is an address."""
        own = _peer_address(peer)
        if own is None or not any(own in edge for edge in self._edges):
            return None if own is None else str(own)
        # The edge adds its own peer at the end; what comes before that the client may have made up.
        told = forwarded_for.split(",")
        if len(told) <= self._proxies:
            return str(own)
        return _text(told[-1 - self._proxies]) or str(own)


def _peer_address(peer: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """`ipv4:10.0.0.1:4711` and `ipv6:%5B::1%5D:4711`; a unix socket has none."""
    _, _, rest = unquote(peer).partition(":")
    host, _, _ = rest.rpartition(":")
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _text(address: str) -> str | None:
    try:
        return str(ipaddress.ip_address(address.strip()))
    except ValueError:
        return None
