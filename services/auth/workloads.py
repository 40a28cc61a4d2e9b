"""The services of the suite as callers: the credentials that they are known by, and what each may ask for.

The lists say the same as the arrows of the architecture, and nothing more: a stolen credential opens what its service
needs. Auth holds digests of the credentials, never the credentials.
"""

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import PermissionDenied, Unauthenticated

AUDIENCES: Mapping[str, frozenset[str]] = {
    "chat": frozenset({"auth", "memory", "sms"}),
    "memory": frozenset({"auth"}),
    "sms": frozenset({"auth", "chat"}),
}
"""Which services each workload may call as itself."""

ON_BEHALF_AUDIENCES: Mapping[str, frozenset[str]] = {
    "chat": frozenset({"auth", "memory", "sms"}),
    "sms": frozenset({"auth", "chat"}),
}
"""Which services each workload may call on behalf of a user who is not there. At auth that opens only what asks for no
session: reading the preferences."""

_DIGESTS = TypeAdapter(dict[str, str])
_NO_DIGEST = "0" * 64
_HEX = frozenset("0123456789abcdef")


class BadDigestsError(Exception):
    """The file of credential digests cannot be used; the message says why."""


class Workloads:
    """The known workloads and their credentials' digests (SHA-256, hex)."""

    def __init__(self, digests: Mapping[str, str]) -> None:
        self._digests = dict(digests)

    def identify(self, workload: str, credential: str) -> None:
        """Raises Unauthenticated (WORKLOAD_CREDENTIAL_WRONG) unless the credential is the workload's. Constant in time."""
        presented = hashlib.sha256(credential.encode()).hexdigest()
        is_right = hmac.compare_digest(presented, self._digests.get(workload, _NO_DIGEST))
        if not is_right:
            raise Unauthenticated(
                f"This is not the credential of the service {workload}.",
                reasons.ERROR_REASON_WORKLOAD_CREDENTIAL_WRONG,
                metadata={"workload": workload},
            )


def require_audience(workload: str, audience: str, allowed: Mapping[str, frozenset[str]]) -> None:
    """Raises PermissionDenied (AUDIENCE_NOT_ALLOWED) unless the workload may have a token for the audience."""
    if audience not in allowed.get(workload, frozenset()):
        raise PermissionDenied(
            f"The service {workload} may not have this token for the service {audience}.",
            reasons.ERROR_REASON_AUDIENCE_NOT_ALLOWED,
            metadata={"workload": workload, "audience": audience},
        )


def read_digests(path: Path) -> Mapping[str, str]:
    """The digests in a JSON file {"chat": "<sha256 hex>"}. Raises BadDigestsError."""
    try:
        digests = _DIGESTS.validate_json(path.read_bytes())
    except OSError as error:
        raise BadDigestsError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError:
        raise BadDigestsError(f"{path} must hold a JSON object of service names and SHA-256 digests") from None
    for workload, digest in digests.items():
        if len(digest) != len(_NO_DIGEST) or not _HEX.issuperset(digest):
            raise BadDigestsError(f"{path}: the digest of {workload} must be 64 lower-case hexadecimal digits")
        if workload not in AUDIENCES:
            raise BadDigestsError(f"{path}: no service of the suite is called {workload}")
    return digests
