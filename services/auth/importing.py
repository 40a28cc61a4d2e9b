"""Accounts of an earlier system, with their preferences, written as they were.

One public method is one transaction, so that a user is there as a whole or not at all. Invariants: an account that is here
already is never changed by an import, whether an earlier run brought it or somebody registered it; a name that another
account has is refused, in any case.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth.schema import deletions, preferences, users
from services.runtime.database import Database


@dataclass(frozen=True, slots=True)
class ImportedAccount:
    """A user of another system. `id` is always the same for the same user of it; `preferences` name columns."""

    id: str
    username: str
    email: str
    password_hash: str = field(repr=False)
    is_active: bool
    is_admin: bool
    create_time: datetime | None
    """None: the time of the import."""
    preferences: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Landed:
    """What became of an account: `loaded`, `present` before, or refused.

    A name may be another account's, or the id that of somebody with other names (a user of another system, then), or of
    somebody who was deleted: who is not brought back.
    """

    status: Literal["loaded", "present", "username_taken", "email_taken", "somebody_else", "deleted"]
    user_id: str
    is_remembered: bool
    """Whether the user wants what they say to be remembered."""


class AccountImport:
    """The way of other systems' users into auth's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self, account: ImportedAccount, *, is_rehearsal: bool = False) -> Landed:
        """Creates the account with its preferences, unless it is here. Idempotent. A rehearsal writes nothing in the end."""
        async with self._database.service_transaction() as connection:
            landed = await _load(connection, account)
            if is_rehearsal:
                await connection.rollback()
        return landed

    async def find(self, name: str) -> Landed | None:
        """The account that has this username or email address here, in any case."""
        key = users.c.email_key if "@" in name else users.c.username_key
        async with self._database.service_transaction() as connection:
            found = await connection.execute(select(users.c.id).where(key == func.lower(name)))
            user_id = found.scalar_one_or_none()
            return None if user_id is None else await _present(connection, user_id)


async def _load(connection: AsyncConnection, account: ImportedAccount) -> Landed:
    was_deleted = select(deletions.c.user_id).where(deletions.c.user_id == account.id)
    if (await connection.execute(was_deleted)).scalar_one_or_none() is not None:
        return Landed("deleted", account.id, is_remembered=False)
    values = {
        "id": account.id,
        "username": account.username,
        "email": account.email,
        "password_hash": account.password_hash,
        "is_active": account.is_active,
        "is_admin": account.is_admin,
    }
    if account.create_time is not None:
        values["create_time"] = account.create_time
    # A conflict, and not an error: which of the names it is about is looked up afterwards.
    created = await connection.execute(insert(users).values(values).on_conflict_do_nothing().returning(users.c.id))
    if created.scalar_one_or_none() is None:
        return await _refused(connection, account)
    if account.preferences:
        await connection.execute(insert(preferences).values(dict(account.preferences) | {"user_id": account.id}))
    return Landed("loaded", account.id, account.preferences.get("memory_enabled") is not False)


async def _refused(connection: AsyncConnection, account: ImportedAccount) -> Landed:
    is_named = users.c.username_key == func.lower(account.username)
    is_same = or_(is_named, users.c.email_key == func.lower(account.email))
    query = select(
        select(is_same).where(users.c.id == account.id).scalar_subquery().label("is_same"),
        select(users.c.id).where(is_named).exists().label("is_named"),
    )
    row = (await connection.execute(query)).one()
    if row.is_same:
        return await _present(connection, account.id)
    if row.is_same is False:
        return Landed("somebody_else", account.id, is_remembered=False)
    return Landed("username_taken" if row.is_named else "email_taken", account.id, is_remembered=False)


async def _present(connection: AsyncConnection, user_id: str) -> Landed:
    query = select(preferences.c.memory_enabled).where(preferences.c.user_id == user_id)
    wanted = (await connection.execute(query)).scalar_one_or_none()
    return Landed("present", user_id, wanted is not False)
