"""Accounts: registration, sign-in, the caller's own account and password.

Whether a name exists is never told to somebody who does not know its password, except by registration, which must.
"""

import structlog

from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.account_store import AccountStore
from services.auth.password_store import PasswordStore
from services.auth.passwords import Checked, Passwords
from services.auth.records import Account, Credentials, Origin
from services.auth.refusals import user_not_found
from services.auth.sessions import Sessions, Tokens
from services.auth.sign_in_delays import Attempt, SignInDelays
from services.auth.tokens import refresh_digest
from services.runtime.errors import PermissionDenied, Unauthenticated

log = structlog.get_logger(__name__)


class Accounts:
    """Everybody's account."""

    def __init__(
        self, store: AccountStore, resets: PasswordStore, passwords: Passwords, sessions: Sessions, delays: SignInDelays
    ) -> None:
        self._store = store
        self._resets = resets
        self._passwords = passwords
        self._sessions = sessions
        self._delays = delays

    async def register(
        self, *, username: str, email: str, password: str, user_agent: str, origin: Origin
    ) -> tuple[Account, Tokens]:
        """Creates an account and signs it in. Raises AlreadyExists (USERNAME_TAKEN, EMAIL_TAKEN)."""
        # A name that is taken by the time its turn comes costs no hash. The store has the last word.
        password_hash = await self._passwords.hash(
            password, first=lambda: self._store.require_free(username=username, email=email)
        )
        session, refresh_token = self._sessions.prepare(user_agent)
        started = await self._store.register(
            username=username, email=email, password_hash=password_hash, session=session, origin=origin
        )
        log.info("auth.registered", user_id=started.account.id, session_id=started.session_id)
        return started.account, self._sessions.tokens(started, refresh_token)

    async def sign_in(self, *, name: str, password: str, user_agent: str, origin: Origin) -> tuple[Account, Tokens]:
        """Starts a session for a username or email address and its password.

        Raises Unauthenticated (CREDENTIALS_WRONG), ResourceExhausted (SIGN_IN_DELAYED) before the password was looked at,
        and PermissionDenied (USER_INACTIVE) once it was right.
        """
        credentials, checked = await self.check_password(name=name, password=password, origin=origin)
        session, refresh_token = self._sessions.prepare(user_agent)
        started = await self._store.sign_in(
            credentials.account,
            session=session,
            better_hash=checked.better_hash,
            most_sessions=self._sessions.limits.most_open,
            origin=origin,
        )
        if started is None:
            raise _refused("changed_meanwhile", credentials.account.id)
        log.info("auth.signed_in", user_id=started.account.id, session_id=started.session_id)
        return started.account, self._sessions.tokens(started, refresh_token)

    async def check_password(self, *, name: str, password: str, origin: Origin) -> tuple[Credentials, Checked]:
        """The account of a username or email address whose password this is. It does the same for every name.

        Raises Unauthenticated (CREDENTIALS_WRONG), ResourceExhausted (SIGN_IN_DELAYED) before the password was looked at,
        and PermissionDenied (USER_INACTIVE) once it was right.
        """
        attempt = self._delays.attempt(name, origin)
        credentials = await self._store.find_credentials(name)
        checked = await self._look(attempt, password, credentials)
        if credentials is None or not checked.is_right:
            raise _refused(*_cause(credentials))
        await self._delays.succeeded(attempt)
        require_active(credentials.account)
        return credentials, checked

    async def own_account(self, user_id: str, session_id: str) -> Account:
        """The account of an open session, by the database and not by what is remembered.

        Raises Unauthenticated (SESSION_ENDED) and PermissionDenied (USER_INACTIVE).
        """
        return (await self._own_credentials(user_id, session_id)).account

    async def change_password(
        self, user_id: str, session_id: str, *, current_password: str, new_password: str, origin: Origin
    ) -> int:
        """Sets a new password and ends every session but this; returns how many ended.

        Raises Unauthenticated (SESSION_ENDED, or CREDENTIALS_WRONG where the current password is not right, or not any
        more: of two changes at once one wins), and ResourceExhausted (SIGN_IN_DELAYED): a session is no oracle.
        """
        credentials = await self._own_credentials(user_id, session_id)
        attempt = self._delays.attempt(user_id, origin)
        if not (await self._look(attempt, current_password, credentials)).is_right:
            raise _refused(*_cause(credentials))
        password_hash = await self._passwords.hash(new_password)
        ended = await self._store.change_password(
            credentials.account, password_hash=password_hash, session_id=session_id, origin=origin
        )
        if ended is None:
            raise _refused("changed_meanwhile", user_id)
        return self._sessions.note_ended("auth.password_changed", user_id, ended)

    async def set_password(self, token: str, *, new_password: str, origin: Origin) -> None:
        """Sets a password by a one-time token, and ends every session.

        Raises Unauthenticated (PASSWORD_TOKEN_INVALID) and PermissionDenied (USER_INACTIVE).
        """
        digest = refresh_digest(token)
        account = await self._resets.find_account(digest)
        if account is None:
            raise _token_invalid()
        require_active(account)
        password_hash = await self._passwords.hash(new_password)
        done = await self._resets.set_password(digest, password_hash=password_hash, origin=origin)
        if done is None:
            raise _token_invalid()
        user_id, ended = done
        self._sessions.note_ended("auth.password_set", user_id, ended)
        await self._delays.forget([account.username, account.email, account.id])

    async def require_active(self, user_id: str) -> Account:
        """The account, which may be acted for.

        Raises NotFound (USER_NOT_FOUND) and PermissionDenied (USER_INACTIVE).
        """
        account = await self._store.find_account(user_id)
        if account is None:
            raise user_not_found(user_id)
        require_active(account)
        return account

    async def _look(self, attempt: Attempt, password: str, credentials: Credentials | None) -> Checked:
        """Whether the password is theirs. One that is not is counted, also where whoever asked has left meanwhile."""

        async def count(checked: Checked) -> None:
            if not checked.is_right:
                await self._delays.failed(attempt, *_cause(credentials))

        stored_hash = None if credentials is None else credentials.password_hash
        return await self._passwords.check(password, stored_hash, first=lambda: self._delays.check(attempt), then=count)

    async def _own_credentials(self, user_id: str, session_id: str) -> Credentials:
        credentials = await self._store.account_of_session(user_id, session_id)
        if credentials is None:
            raise Unauthenticated("The session has ended: sign in again.", reasons.ERROR_REASON_SESSION_ENDED)
        require_active(credentials.account)
        return credentials


def require_active(account: Account) -> None:
    """Raises PermissionDenied (USER_INACTIVE) for a deactivated account."""
    if not account.is_active:
        raise PermissionDenied("The account is deactivated: ask an administrator.", reasons.ERROR_REASON_USER_INACTIVE)


def _cause(credentials: Credentials | None) -> tuple[str, str | None]:
    """Why a password is not right, and whose it is not."""
    return ("unknown_user", None) if credentials is None else ("wrong_password", credentials.account.id)


def _refused(cause: str, user_id: str | None = None) -> Unauthenticated:
    log.info("auth.sign_in_refused", cause=cause, user_id=user_id)
    return Unauthenticated("Unknown user or wrong password.", reasons.ERROR_REASON_CREDENTIALS_WRONG)


def _token_invalid() -> Unauthenticated:
    return Unauthenticated(
        "The one-time token is unknown, used or expired: ask an administrator for another.",
        reasons.ERROR_REASON_PASSWORD_TOKEN_INVALID,
    )
