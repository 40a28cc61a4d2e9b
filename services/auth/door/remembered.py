"""Credentials that were right a moment ago, by a keyed hash, with the token that they were traded for.

The hash is over the account, its credential version, where the credentials came from and the credentials, under a key that
this process made for itself: nothing that could be tried offline is kept, another password or a deactivation is another
hash, what comes from elsewhere is not compared with it, and a restart forgets all.
"""

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from services.auth.records import Account
from services.runtime.identity import EndedSessions

MOST_REMEMBERED: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Entry:
    token: str = field(repr=False)
    session_id: str
    forget_time: float


class Remembered:
    """Remembers each for `seconds`, 10,000 at most; what was used longest ago goes first."""

    def __init__(self, ended: EndedSessions, *, seconds: float) -> None:
        self._key = secrets.token_bytes(32)
        self._ended = ended
        self._seconds = seconds
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    def find(self, account: Account, secret: str, *, place: str) -> str | None:
        """The token that these credentials of this account were traded for there; none once its session has ended."""
        digest = self._digest(account, secret, place)
        entry = self._entries.get(digest)
        if entry is None:
            return None
        if entry.forget_time <= time.monotonic() or self._ended.is_ended(entry.session_id):
            del self._entries[digest]
            return None
        return entry.token

    def keep(  # noqa: PLR0913 - what is remembered, and of what
        self, account: Account, secret: str, *, place: str, token: str, session_id: str, most_seconds: float
    ) -> None:
        """Remembers the credentials, for `most_seconds` at most."""
        digest = self._digest(account, secret, place)
        self._entries[digest] = _Entry(token, session_id, time.monotonic() + min(self._seconds, most_seconds))
        self._entries.move_to_end(digest)
        if len(self._entries) > MOST_REMEMBERED:
            self._entries.popitem(last=False)

    def _digest(self, account: Account, secret: str, place: str) -> bytes:
        whose = f"{account.id}:{account.credential_version}:{account.is_active}:{account.is_admin}"
        # No place holds a space: where it ends and the secret begins is beyond doubt.
        return hmac.digest(self._key, f"{whose} {place} {secret}".encode(), hashlib.sha256)
