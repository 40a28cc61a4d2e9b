"""Accounts, as administrators and their owners change them.

Owns the verbs; who may set which field is the contract's, and read at the door. What ends by a change is told at once.
"""

from collections.abc import Mapping
from typing import Any

import structlog

from services.auth.password_store import PasswordStore
from services.auth.records import Account, Origin, PasswordToken, UserFilter
from services.auth.refusals import user_not_found
from services.auth.sessions import Sessions
from services.auth.tokens import new_refresh_token, refresh_digest
from services.auth.user_store import UserStore
from services.runtime.ids import is_id
from services.runtime.paging import bad_page_token

log = structlog.get_logger(__name__)


class Users:
    """Everybody's account, for those who may change it. `token_seconds` is how long a one-time token can be used."""

    def __init__(self, store: UserStore, passwords: PasswordStore, sessions: Sessions, *, token_seconds: float) -> None:
        self._store = store
        self._passwords = passwords
        self._sessions = sessions
        self._token_seconds = token_seconds

    async def create(self, *, username: str, email: str, is_admin: bool, origin: Origin) -> tuple[Account, PasswordToken]:
        """An account without a password, and the token for its owner. Raises AlreadyExists (USERNAME_TAKEN, EMAIL_TAKEN)."""
        token = new_refresh_token()
        account, expire_time = await self._store.create_user(
            username=username,
            email=email,
            is_admin=is_admin,
            token_digest=refresh_digest(token),
            token_seconds=self._token_seconds,
            origin=origin,
        )
        log.info("auth.user_created", user_id=account.id, actor_id=origin.actor_id)
        return account, PasswordToken(token, expire_time)

    async def create_password_token(self, user_id: str, origin: Origin) -> PasswordToken:
        """A new one-time token for a user. Raises NotFound (USER_NOT_FOUND)."""
        token = new_refresh_token()
        expire_time = await self._passwords.create_token(
            user_id, refresh_digest(token), lifetime_seconds=self._token_seconds, origin=origin
        )
        if expire_time is None:
            raise user_not_found(user_id)
        log.info("auth.password_token_created", user_id=user_id, actor_id=origin.actor_id)
        return PasswordToken(token, expire_time)

    async def list_users(self, wanted: UserFilter, *, before_id: str | None, limit: int) -> list[Account]:
        """Accounts, the newest first, from the one before `before_id`. Raises InvalidArgument (INVALID_PAGE_TOKEN)."""
        if before_id is not None and not is_id(before_id):
            raise bad_page_token()
        return await self._store.list_users(wanted, before_id=before_id, limit=limit)

    async def read(self, user_id: str) -> Account:
        """One account. Raises NotFound (USER_NOT_FOUND)."""
        return await self._store.read_user(user_id)

    async def find_by_phone(self, phone_number: str) -> str:
        """The active user who has verified this number. Raises NotFound (USER_NOT_FOUND), which does not repeat it."""
        return await self._store.find_by_phone(phone_number)

    async def update(self, user_id: str, values: Mapping[str, Any], origin: Origin) -> Account:
        """Changes what `values` name; see UserStore.update_user for what it ends and raises."""
        account, ended = await self._store.update_user(user_id, values, origin)
        self._sessions.note_ended("auth.user_updated", user_id, ended)
        return account
