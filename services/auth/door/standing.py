"""Standing sessions: one a user and kind, for credentials that come with every call, and the tokens that are given for them.

No call makes a row: the first one begins the session, later ones get a token of it. It is listed, revoked and ended with the
password like any other; the next call with good credentials begins a new one.
"""

from dataclasses import dataclass, field
from typing import Final

import structlog

from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.door.records import Standing
from services.auth.door.remembered import Remembered
from services.auth.door.standing_store import StandingStore
from services.auth.ended_sessions import EndedSessions
from services.auth.records import Account, Origin
from services.auth.sessions import SessionLimits
from services.auth.tokens import TokenMint
from services.runtime.errors import Unauthenticated

log = structlog.get_logger(__name__)
REMEMBER_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Shown:
    """Credentials that are right: the kind of session that they keep, its name in lists, and how long they are good.

    `place` is where they were shown, if they are to be remembered there only.
    """

    kind: str
    user_agent: str
    secret: str = field(repr=False)
    good_seconds: float
    place: str


class StandingSessions:
    """Tokens for credentials."""

    def __init__(self, store: StandingStore, mint: TokenMint, ended: EndedSessions, limits: SessionLimits) -> None:
        self._store = store
        self._mint = mint
        self._ended = ended
        self._limits = limits
        # A token that is handed out lives on for half of its time at least.
        self._remembered = Remembered(ended, seconds=min(REMEMBER_SECONDS, mint.access_seconds / 2))

    def remembered(self, account: Account, secret: str, *, place: str) -> str | None:
        """The token that was given for these credentials of this account at this place a moment ago."""
        return self._remembered.find(account, secret, place=place)

    async def token(self, account: Account, shown: Shown, origin: Origin) -> str:
        """A token of the user's standing session, remembered for a minute.

        Raises Unauthenticated (CREDENTIALS_WRONG) where the account changed since its credentials were found right.
        """
        standing = Standing(shown.kind, shown.user_agent, self._limits.lifetime_seconds)
        session = await self._store.keep_session(account, standing, most_sessions=self._limits.most_open, origin=origin)
        if session is None:
            raise Unauthenticated("Unknown user or wrong password.", reasons.ERROR_REASON_CREDENTIALS_WRONG)
        self._ended.note(session.ended_ids)
        # Not of the account as it was before the hash: a role that was lost meanwhile would live on in the token.
        current, seconds = session.account, shown.good_seconds
        token = self._mint.access_token(current, session.id, most_seconds=seconds)
        self._remembered.keep(
            current, shown.secret, place=shown.place, token=token, session_id=session.id, most_seconds=seconds / 2
        )
        log.info("auth.credentials_exchanged", kind=shown.kind, user_id=account.id, session_id=session.id)
        return token
