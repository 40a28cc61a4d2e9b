"""Every SQL statement about accounts. One public method is one transaction.

Races are settled by unique constraints and row locks, never by looking first. Locks are taken in one order: the user's
row, then session rows; what ends several sessions at once holds the user's row.
"""

from collections.abc import Sequence

from sqlalchemy import and_, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from services.auth.records import Account, Credentials, NewSession, Origin, StartedSession
from services.auth.refusals import email_taken, taken, username_taken
from services.auth.schema import password_tokens, sessions, users
from services.auth.statements import (
    ACCOUNT,
    OPEN,
    beyond,
    bound_ending,
    end_sessions,
    lock_unchanged,
    note_event,
    start_session,
    to_account,
)
from services.runtime.database import Database


class AccountStore:
    """Accounts, and the sessions that begin with a sign-in."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(
        self, *, username: str, email: str, password_hash: str, session: NewSession, origin: Origin
    ) -> StartedSession:
        """Creates an account with its first session.

        Raises AlreadyExists (USERNAME_TAKEN, EMAIL_TAKEN) where another account has the name in any case.
        """
        values = {"username": username, "email": email, "password_hash": password_hash}
        async with self._database.service_transaction() as connection:
            try:
                row = (await connection.execute(insert(users).values(values).returning(*ACCOUNT))).one()
            except IntegrityError as error:
                raise taken(error, username=username, email=email) from None
            account = to_account(row)
            await note_event(connection, "registered", user_id=account.id, origin=origin)
            return await start_session(connection, account, session)

    async def require_free(self, *, username: str, email: str) -> None:
        """Raises like `register` while another account has one of the names. `register` may still raise."""
        query = select(
            select(users.c.id).where(users.c.username_key == func.lower(username)).exists().label("username"),
            select(users.c.id).where(users.c.email_key == func.lower(email)).exists().label("email"),
        )
        async with self._database.service_transaction() as connection:
            row = (await connection.execute(query)).one()
        if row.username:
            raise username_taken(username)
        if row.email:
            raise email_taken(email)

    async def find_credentials(self, name: str) -> Credentials | None:
        """The account of a username or email address in any case, with its password hash."""
        # No username holds an @, every email address does.
        key = users.c.email_key if "@" in name else users.c.username_key
        query = select(*ACCOUNT, users.c.password_hash).where(key == func.lower(name))
        async with self._database.service_transaction() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else Credentials(to_account(row), row.password_hash)

    async def sign_in(
        self, account: Account, *, session: NewSession, better_hash: str | None, most_sessions: int, origin: Origin
    ) -> StartedSession | None:
        """Starts a session, stores `better_hash` of the same password, and ends the least used beyond `most_sessions`.

        None when the account was deactivated or got another password since its credentials were read.
        """
        async with self._database.service_transaction() as connection:
            current = await lock_unchanged(connection, account)
            if current is None:
                return None
            if better_hash is not None:
                await connection.execute(update(users).where(users.c.id == account.id).values(password_hash=better_hash))
            await bound_ending(connection)
            ended = await end_sessions(connection, "too_many", sessions.c.id.in_(beyond(account.id, most_sessions - 1)))
            await note_event(connection, "signed_in", user_id=account.id, origin=origin)
            return await start_session(connection, current, session, ended_ids=tuple(ended))

    async def account_of_session(self, user_id: str, session_id: str) -> Credentials | None:
        """The account with its password hash, provided that the session is one of its open ones. One query."""
        query = (
            select(*ACCOUNT, users.c.password_hash)
            .join(sessions, sessions.c.user_id == users.c.id)
            .where(users.c.id == user_id, sessions.c.id == session_id, OPEN)
        )
        async with self._database.transaction(user_id=user_id) as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else Credentials(to_account(row), row.password_hash)

    async def find_account(self, user_id: str) -> Account | None:
        """The account with this id, whoever asks: for services."""
        async with self._database.service_transaction() as connection:
            row = (await connection.execute(select(*ACCOUNT).where(users.c.id == user_id))).one_or_none()
        return None if row is None else to_account(row)

    async def change_password(
        self, account: Account, *, password_hash: str, session_id: str, origin: Origin
    ) -> Sequence[str] | None:
        """Sets a new password, and ends every other session and an unused one-time token; returns the ids of the sessions.

        None when the password was changed, or the account deactivated, since `account` was read.
        """
        values = {
            "password_hash": password_hash,
            "credential_version": users.c.credential_version + 1,
            "update_time": func.now(),
        }
        async with self._database.service_transaction() as connection:
            await bound_ending(connection)
            if await lock_unchanged(connection, account) is None:
                return None
            await note_event(connection, "password_changed", user_id=account.id, origin=origin)
            await connection.execute(update(users).where(users.c.id == account.id).values(values))
            await connection.execute(delete(password_tokens).where(password_tokens.c.user_id == account.id))
            others = and_(sessions.c.user_id == account.id, sessions.c.id != session_id)
            return await end_sessions(connection, "password_changed", others)
