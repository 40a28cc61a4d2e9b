"""Sessions: begun by a sign-in, kept by refreshing, ended by whoever may.

A session's refresh tokens are a family: each is used once, and one that comes back late ends them all. What this process
ends, its own verifier and every follower of the feed know at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.ended_sessions import EndedSessions
from services.auth.records import NewSession, OpenSession, Origin, ReusedToken, StartedSession
from services.auth.session_store import SessionStore
from services.auth.tokens import TokenMint, new_refresh_token, refresh_digest
from services.runtime.errors import NotFound, Unauthenticated
from services.runtime.ids import is_id
from services.runtime.paging import bad_page_token

log = structlog.get_logger(__name__)
_LONGEST_USER_AGENT = 200


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How long a session lasts unrefreshed, how late a used token may come again, how many a user may have open."""

    lifetime_seconds: float
    grace_seconds: float
    most_open: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """A pair of tokens of one session."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in_seconds: int
    refresh_expire_time: datetime


class Sessions:
    """The sessions of all users."""

    def __init__(self, store: SessionStore, mint: TokenMint, ended: EndedSessions, *, limits: SessionLimits) -> None:
        self._store = store
        self._mint = mint
        self._ended = ended
        self.limits = limits

    def prepare(self, user_agent: str) -> tuple[NewSession, str]:
        """A session for the store to start, and its first refresh token."""
        token = new_refresh_token()
        new = NewSession(user_agent[:_LONGEST_USER_AGENT], refresh_digest(token), self.limits.lifetime_seconds)
        return new, token

    def tokens(self, started: StartedSession, refresh_token: str) -> Tokens:
        """The pair for a session that was started or refreshed."""
        self._ended.note(started.ended_ids)
        return Tokens(
            access_token=self._mint.access_token(started.account, started.session_id),
            refresh_token=refresh_token,
            expires_in_seconds=self._mint.access_seconds,
            refresh_expire_time=started.expire_time,
        )

    async def refresh(self, presented: str, origin: Origin) -> Tokens:
        """Trades a refresh token for a new pair.

        Raises Unauthenticated (REFRESH_TOKEN_INVALID) for one that is worth nothing, or that comes back too late, which
        also ends its session.
        """
        replacement = new_refresh_token()
        outcome = await self._store.refresh(
            presented=refresh_digest(presented),
            replacement=refresh_digest(replacement),
            grace_seconds=self.limits.grace_seconds,
            lifetime_seconds=self.limits.lifetime_seconds,
            origin=origin,
        )
        if isinstance(outcome, StartedSession):
            return self.tokens(outcome, replacement)
        if isinstance(outcome, ReusedToken):
            self._ended.note((outcome.session_id,))
            log.warning("auth.session_family_revoked", session_id=outcome.session_id, user_id=outcome.user_id)
        raise Unauthenticated(
            "The refresh token is unknown, expired or used up: sign in again.",
            reasons.ERROR_REASON_REFRESH_TOKEN_INVALID,
        )

    async def list_open(self, user_id: str, *, before_id: str | None, limit: int) -> list[OpenSession]:
        """Open sessions of the user, the newest first, from the one before `before_id`.

        Raises InvalidArgument (INVALID_PAGE_TOKEN) for a `before_id` that is no session's id.
        """
        if before_id is not None and not is_id(before_id):
            raise bad_page_token()
        return await self._store.list_sessions(user_id, before_id=before_id, limit=limit)

    async def revoke(self, user_id: str, session_id: str) -> None:
        """Ends one session of the user. Raises NotFound (SESSION_NOT_FOUND) unless it is open and the user's."""
        ended = await self._store.end_session(user_id, session_id, cause="revoked")
        if not ended:
            raise NotFound(
                f"You have no open session {session_id}.",
                reasons.ERROR_REASON_SESSION_NOT_FOUND,
                metadata={"session_id": session_id},
            )
        self._noted("auth.session_revoked", user_id, ended)

    async def log_out(self, user_id: str, session_id: str) -> int:
        """Ends this session; returns 1, or 0 when it had ended before."""
        return self._noted("auth.signed_out", user_id, await self._store.end_session(user_id, session_id, cause="logout"))

    async def log_out_everywhere(self, user_id: str) -> int:
        """Ends every session of the user; returns how many were open."""
        return self._noted("auth.signed_out", user_id, await self._store.end_all_sessions(user_id, cause="logout"))

    def note_ended(self, event: str, user_id: str, session_ids: Sequence[str]) -> int:
        """Tells of sessions, and standings, that ended by something else than their user's wish; returns how many."""
        return self._noted(event, user_id, session_ids)

    def _noted(self, event: str, user_id: str, session_ids: Sequence[str]) -> int:
        self._ended.note(session_ids)
        log.info(event, user_id=user_id, ended_sessions=len(session_ids))
        return len(session_ids)
