"""Every SQL statement about one-time tokens by which a password is set. One public method is one transaction.

A token is known by its digest only. A user has one at most; it is gone once it was used.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import and_, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth.records import Account, Origin
from services.auth.schema import password_tokens, sessions, users
from services.auth.statements import ACCOUNT, after, bound_ending, end_sessions, note_event, to_account
from services.runtime.database import Database, violated_constraint


class PasswordStore:
    """One-time tokens, and the passwords that they set."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_token(self, user_id: str, digest: bytes, *, lifetime_seconds: float, origin: Origin) -> datetime | None:
        """A new token in the place of an earlier one; returns when it expires, None where there is no such user."""
        async with self._database.service_transaction() as connection:
            try:
                expire_time = await put_password_token(connection, user_id, digest, lifetime_seconds=lifetime_seconds)
            except IntegrityError as error:
                if violated_constraint(error) != "password_tokens_user_id_fkey":
                    raise
                return None
            await note_event(connection, "password_token_created", user_id=user_id, origin=origin)
        return expire_time

    async def find_account(self, digest: bytes) -> Account | None:
        """Whose token this is, if it can still be used."""
        query = (
            select(*ACCOUNT)
            .join(password_tokens, password_tokens.c.user_id == users.c.id)
            .where(password_tokens.c.digest == digest, password_tokens.c.expire_time > func.now())
        )
        async with self._database.service_transaction() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else to_account(row)

    async def set_password(self, digest: bytes, *, password_hash: str, origin: Origin) -> tuple[str, Sequence[str]] | None:
        """Uses the token up, sets the password and ends every session; returns whose, and the sessions.

        None for a token that was used meanwhile or has expired: of two who use it at once one wins.
        """
        good = and_(password_tokens.c.digest == digest, password_tokens.c.expire_time > func.now())
        # The user's row before the token: in the order of whoever deletes the user, or changes the password.
        whose = select(users.c.id).where(users.c.id == select(password_tokens.c.user_id).where(good).scalar_subquery())
        using = delete(password_tokens).where(good)
        async with self._database.service_transaction() as connection:
            await bound_ending(connection)
            await connection.execute(whose.with_for_update(key_share=True))
            user_id = (await connection.execute(using.returning(password_tokens.c.user_id))).scalar_one_or_none()
            if user_id is None:
                return None
            values = {"password_hash": password_hash, "credential_version": users.c.credential_version + 1}
            await connection.execute(update(users).where(users.c.id == user_id).values(**values, update_time=func.now()))
            ended = await end_sessions(connection, "password_changed", sessions.c.user_id == user_id)
            await note_event(connection, "password_changed", user_id=user_id, origin=origin, details=["by_token"])
        return user_id, ended

    async def sweep(self, *, batch: int) -> int:
        """Deletes up to `batch` expired tokens; returns how many."""
        stale = select(password_tokens.c.digest).where(password_tokens.c.expire_time < func.now()).limit(batch)
        chosen = stale.with_for_update(skip_locked=True).scalar_subquery()
        async with self._database.service_transaction() as connection:
            return (await connection.execute(delete(password_tokens).where(password_tokens.c.digest.in_(chosen)))).rowcount


async def put_password_token(
    connection: AsyncConnection, user_id: str, digest: bytes, *, lifetime_seconds: float
) -> datetime:
    """Inside a transaction: the user's token, in the place of an earlier one; returns when it expires."""
    values = {"digest": digest, "expire_time": after(lifetime_seconds)}
    putting = insert(password_tokens).values(**values, user_id=user_id)
    putting = putting.on_conflict_do_update(index_elements=["user_id"], set_=values)
    expire_time: datetime = (await connection.execute(putting.returning(password_tokens.c.expire_time))).scalar_one()
    return expire_time
