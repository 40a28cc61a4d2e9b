"""The TCP ports the suite is about to use, checked before anything starts.

All busy ones are named at once, each with its variable and, where the system tells, with the process that has it.
"""

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from suite.errors import SuiteError


@dataclass(frozen=True, slots=True)
class PortClaim:
    """A port that will be listened on, and the variable that sets it."""

    host: str
    port: int
    variable: str


def check_free(claims: Sequence[PortClaim]) -> None:
    """SuiteError that names every claim which cannot be listened on."""
    problems = [problem for claim in claims if (problem := _problem(claim)) is not None]
    if problems:
        raise SuiteError("; ".join(problems))


def _problem(claim: PortClaim) -> str | None:
    try:
        _listen_once(claim)
    except OSError as error:
        return _describe(claim, error)
    return None


def _listen_once(claim: PortClaim) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(
        claim.host, claim.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        # As servers do: connections of a server that just ended are no obstacle, a listening one is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen(1)


def _describe(claim: PortClaim, error: OSError) -> str:
    port, variable = claim.port, claim.variable
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use{_by_whom(port)}: stop that, or set {variable} to another port"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"port {port} needs more rights than this user has: set {variable} to one above 1023"
    return f"cannot listen on {claim.host}:{port} ({error.strerror}): set PARLEY_HOST to an address of this machine"


def _by_whom(port: int) -> str:
    """Nothing where the system does not tell, as it does not about other users' processes."""
    try:
        listening = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return ""
    for connection in listening:
        if connection.status != psutil.CONN_LISTEN or not connection.laddr or connection.pid is None:
            continue
        if connection.laddr.port == port:
            return f" by process {connection.pid}{_name(connection.pid)}"
    return ""


def _name(pid: int) -> str:
    try:
        return f" ({psutil.Process(pid).name()})"
    except psutil.Error:
        return ""
