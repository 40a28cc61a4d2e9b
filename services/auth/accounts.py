"""Accounts: registration, sign-in, the caller's own account and password.

Whether a name exists is never told to somebody who does not know its password, except by registration, which must.
"""

import structlog

from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.account_store import AccountStore
from services.auth.passwords import Checked, Passwords
from services.auth.records import Account, Credentials, StartedSession
from services.auth.sessions import Sessions, Tokens
from services.runtime.errors import NotFound, PermissionDenied, Unauthenticated

log = structlog.get_logger(__name__)


class Accounts:
    """Everybody's account."""

    def __init__(self, store: AccountStore, passwords: Passwords, sessions: Sessions) -> None:
        self._store = store
        self._passwords = passwords
        self._sessions = sessions

    async def register(self, *, username: str, email: str, password: str, user_agent: str) -> tuple[Account, Tokens]:
        """Creates an account and signs it in. Raises AlreadyExists (USERNAME_TAKEN, EMAIL_TAKEN)."""
        # A name that is taken by the time its turn comes costs no hash. The store has the last word.
        password_hash = await self._passwords.hash(
            password, first=lambda: self._store.require_free(username=username, email=email)
        )
        session, refresh_token = self._sessions.prepare(user_agent)
        started = await self._store.register(username=username, email=email, password_hash=password_hash, session=session)
        log.info("auth.registered", user_id=started.account.id, session_id=started.session_id)
        return started.account, self._sessions.tokens(started, refresh_token)

    async def sign_in(self, *, name: str, password: str, user_agent: str) -> tuple[Account, Tokens]:
        """Starts a session for a username or email address and its password.

        Raises Unauthenticated (CREDENTIALS_WRONG), and PermissionDenied (USER_INACTIVE) once the password was right.
        """
        credentials, checked = await self.check_password(name=name, password=password)
        session, refresh_token = self._sessions.prepare(user_agent)
        started = await self._store.sign_in(
            credentials.account,
            session=session,
            better_hash=checked.better_hash,
            most_sessions=self._sessions.limits.most_open,
        )
        if started is None:
            raise _refused("changed_meanwhile", credentials.account.id)
        return self._signed_in(started, refresh_token)

    async def check_password(self, *, name: str, password: str) -> tuple[Credentials, Checked]:
        """The account of a username or email address whose password this is.

        Raises Unauthenticated (CREDENTIALS_WRONG), and PermissionDenied (USER_INACTIVE) once the password was right.
        """
        credentials = await self._store.find_credentials(name)
        if credentials is None:
            await self._passwords.check_nobody(password)
            raise _refused("unknown_user")
        checked = await self._passwords.check(password, credentials.password_hash)
        if not checked.is_right:
            raise _refused("wrong_password", credentials.account.id)
        require_active(credentials.account)
        return credentials, checked

    def _signed_in(self, started: StartedSession, refresh_token: str) -> tuple[Account, Tokens]:
        log.info("auth.signed_in", user_id=started.account.id, session_id=started.session_id)
        return started.account, self._sessions.tokens(started, refresh_token)

    async def own_account(self, user_id: str, session_id: str) -> Account:
        """The account of an open session, by the database and not by what is remembered.

        Raises Unauthenticated (SESSION_ENDED) and PermissionDenied (USER_INACTIVE).
        """
        return (await self._own_credentials(user_id, session_id)).account

    async def change_password(self, user_id: str, session_id: str, *, current_password: str, new_password: str) -> int:
        """Sets a new password and ends every session but this; returns how many ended.

        Raises Unauthenticated (SESSION_ENDED, or CREDENTIALS_WRONG where the current password is not right, or not any
        more: of two changes at once one wins).
        """
        credentials = await self._own_credentials(user_id, session_id)
        checked = await self._passwords.check(current_password, credentials.password_hash)
        if not checked.is_right:
            raise _refused("wrong_password", user_id)
        password_hash = await self._passwords.hash(new_password)
        ended = await self._store.change_password(credentials.account, password_hash=password_hash, session_id=session_id)
        if ended is None:
            raise _refused("changed_meanwhile", user_id)
        return self._sessions.note_ended(user_id, ended)

    async def require_active(self, user_id: str) -> str:
        """The id of an account that may be acted for, as the database spells it.

        Raises NotFound (USER_NOT_FOUND) and PermissionDenied (USER_INACTIVE).
        """
        account = await self._store.find_account(user_id)
        if account is None:
            raise NotFound(
                f"There is no user {user_id}.", reasons.ERROR_REASON_USER_NOT_FOUND, metadata={"user_id": user_id}
            )
        require_active(account)
        return account.id

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


def _refused(cause: str, user_id: str | None = None) -> Unauthenticated:
    log.info("auth.sign_in_refused", cause=cause, user_id=user_id)
    return Unauthenticated("Unknown user or wrong password.", reasons.ERROR_REASON_CREDENTIALS_WRONG)
