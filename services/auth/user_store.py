"""Every SQL statement about the administration of accounts. One public method is one transaction.

Races about names are settled by unique constraints. What may take an administrator away follows each other under a lock that
comes before any row's, so that there is always one left.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.password_store import put_password_token
from services.auth.records import Account, Origin, UserFilter
from services.auth.refusals import taken, user_not_found
from services.auth.schema import sessions, users
from services.auth.statements import (
    ACCOUNT,
    bound_ending,
    end_identities,
    end_sessions,
    note_event,
    to_account,
)
from services.runtime.database import Database
from services.runtime.errors import FailedPrecondition, NotFound

_NO_PASSWORD = ""
_ADMINISTRATORS = text("select pg_advisory_xact_lock(hashtextextended('auth administrators', 0))")
_LAST_CHARACTER = "\U0010ffff"


class UserStore:
    """Accounts, as administrators and their owners change them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_user(  # noqa: PLR0913 - the columns of a row, and its token
        self, *, username: str, email: str, is_admin: bool, token_digest: bytes, token_seconds: float, origin: Origin
    ) -> tuple[Account, Any]:
        """Creates an account without a password; returns it, and when its one-time token expires.

        Raises AlreadyExists (USERNAME_TAKEN, EMAIL_TAKEN).
        """
        values = {"username": username, "email": email, "is_admin": is_admin, "password_hash": _NO_PASSWORD}
        async with self._database.service_transaction() as connection:
            try:
                row = (await connection.execute(insert(users).values(values).returning(*ACCOUNT))).one()
            except IntegrityError as error:
                raise taken(error, username=username, email=email) from None
            account = to_account(row)
            expire_time = await put_password_token(connection, account.id, token_digest, lifetime_seconds=token_seconds)
            details = ["is_admin"] if is_admin else []
            await note_event(connection, "user_created", user_id=account.id, origin=origin, details=details)
        return account, expire_time

    async def create_first_administrator(self, *, username: str, email: str, password_hash: str) -> Account:
        """Creates an administrator where there is none who may sign in.

        Raises AlreadyExists (USERNAME_TAKEN, EMAIL_TAKEN) and FailedPrecondition (ADMINISTRATOR_EXISTS): of two at once one
        is made.
        """
        values = {"username": username, "email": email, "password_hash": password_hash, "is_admin": True}
        there_is_one = select(select(users.c.id).where(users.c.is_admin, users.c.is_active).exists())
        async with self._database.service_transaction() as connection:
            await connection.execute(_ADMINISTRATORS)
            if (await connection.execute(there_is_one)).scalar_one():
                raise FailedPrecondition(
                    "There is an administrator already, who can make others.",
                    reasons.ERROR_REASON_ADMINISTRATOR_EXISTS,
                )
            try:
                row = (await connection.execute(insert(users).values(values).returning(*ACCOUNT))).one()
            except IntegrityError as error:
                raise taken(error, username=username, email=email) from None
            account = to_account(row)
            await note_event(connection, "user_created", user_id=account.id, origin=Origin(), details=["first_admin"])
        return account

    async def list_users(self, wanted: UserFilter, *, before_id: str | None, limit: int) -> list[Account]:
        """Accounts, the newest first, from the one before `before_id`. One query."""
        query = select(*ACCOUNT).where(*_conditions(wanted)).order_by(users.c.id.desc()).limit(limit)
        if before_id is not None:
            query = query.where(users.c.id < before_id)
        async with self._database.service_transaction() as connection:
            return [to_account(row) for row in await connection.execute(query)]

    async def read_user(self, user_id: str) -> Account:
        """One account. Raises NotFound (USER_NOT_FOUND)."""
        async with self._database.service_transaction() as connection:
            row = (await connection.execute(select(*ACCOUNT).where(users.c.id == user_id))).one_or_none()
        if row is None:
            raise user_not_found(user_id)
        return to_account(row)

    async def find_by_phone(self, phone_number: str) -> str:
        """The id of the active user with this verified number. Raises NotFound (USER_NOT_FOUND)."""
        query = select(users.c.id).where(users.c.phone_number == phone_number, users.c.is_active)
        async with self._database.service_transaction() as connection:
            user_id: str | None = (await connection.execute(query)).scalar_one_or_none()
        if user_id is None:
            raise NotFound("Nobody has verified this phone number.", reasons.ERROR_REASON_USER_NOT_FOUND)
        return user_id

    async def update_user(self, user_id: str, values: Mapping[str, Any], origin: Origin) -> tuple[Account, Sequence[str]]:
        """Changes what `values` name; returns the account, and the sessions and standing that ended by it.

        All of a user's sessions end with the right to sign in, and with the role. Raises NotFound (USER_NOT_FOUND),
        AlreadyExists (USERNAME_TAKEN, EMAIL_TAKEN) and FailedPrecondition (LAST_ADMINISTRATOR).
        """
        async with self._database.service_transaction() as connection:
            await bound_ending(connection)
            if values.get("is_admin") is False or values.get("is_active") is False:
                await connection.execute(_ADMINISTRATORS)
            before = await lock_user(connection, user_id)
            if loses_rights(before, values):
                await require_another_administrator(connection, user_id)
            changed = {key: value for key, value in values.items() if getattr(before, key) != value}
            if not changed:
                return before, ()
            account = await _changed(connection, user_id, changed)
            ended = await _end_what_was(connection, before, account)
            await note_event(connection, "user_updated", user_id=user_id, origin=origin, details=sorted(changed))
        return account, ended


async def lock_user(connection: AsyncConnection, user_id: str) -> Account:
    """The account, whose row nobody else changes until the transaction ends. Raises NotFound (USER_NOT_FOUND)."""
    row = (await connection.execute(select(*ACCOUNT).where(users.c.id == user_id).with_for_update())).one_or_none()
    if row is None:
        raise user_not_found(user_id)
    return to_account(row)


async def exclude_administrators(connection: AsyncConnection) -> None:
    """Makes what may take an administrator away follow each other. Comes before any row is locked."""
    await connection.execute(_ADMINISTRATORS)


def loses_rights(before: Account, values: Mapping[str, Any]) -> bool:
    """Whether an administrator who may sign in is none after the change."""
    is_one = before.is_admin and before.is_active
    return is_one and not (values.get("is_admin", True) and values.get("is_active", True))


async def require_another_administrator(connection: AsyncConnection, user_id: str) -> None:
    """Raises FailedPrecondition (LAST_ADMINISTRATOR) unless somebody else may administer. Under the lock."""
    others = select(users.c.id).where(users.c.id != user_id, users.c.is_admin, users.c.is_active).exists()
    if not (await connection.execute(select(others))).scalar_one():
        raise FailedPrecondition(
            "This is the last administrator: make somebody else one first.",
            reasons.ERROR_REASON_LAST_ADMINISTRATOR,
            metadata={"user_id": user_id},
        )


async def _changed(connection: AsyncConnection, user_id: str, values: Mapping[str, Any]) -> Account:
    changing = update(users).where(users.c.id == user_id).values(**values, update_time=func.now()).returning(*ACCOUNT)
    try:
        return to_account((await connection.execute(changing)).one())
    except IntegrityError as error:
        raise taken(error, username=values.get("username", ""), email=values.get("email", "")) from None


async def _end_what_was(connection: AsyncConnection, before: Account, after: Account) -> Sequence[str]:
    """Ends every session of who may not sign in any more, and of who is no administrator any more."""
    mine = sessions.c.user_id == after.id
    if before.is_active and not after.is_active:
        ended = await end_sessions(connection, "deactivated", mine)
        await end_identities(connection, [before.standing_id])
        # Tokens on behalf of the user that are made after a reactivation name another one.
        standing = update(users).where(users.c.id == after.id).values(standing_id=func.uuidv7())
        await connection.execute(standing)
        return [*ended, before.standing_id]
    if before.is_admin and not after.is_admin:
        return await end_sessions(connection, "role_lost", mine)
    return ()


def _conditions(wanted: UserFilter) -> list[ColumnElement[bool]]:
    conditions = list[ColumnElement[bool]]()
    if wanted.prefix:
        conditions.append(_begins(users.c.username_key, wanted.prefix) | _begins(users.c.email_key, wanted.prefix))
    if wanted.is_active is not None:
        conditions.append(users.c.is_active.is_(wanted.is_active))
    if wanted.is_admin is not None:
        conditions.append(users.c.is_admin.is_(wanted.is_admin))
    return conditions


def _begins(column: ColumnElement[str], prefix: str) -> ColumnElement[bool]:
    """As a range in the order of bytes: LIKE is not leakproof, and would not use the index under row-level security."""
    return and_(column.op("~>=~")(func.lower(prefix)), column.op("~<~")(func.lower(prefix + _LAST_CHARACTER)))
