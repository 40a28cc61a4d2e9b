"""Every SQL statement about preferences. One public method is one transaction, of the user whose they are.

A user without a row has no preferences: that is a state like any other, and no error.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.records import Preferences
from services.auth.schema import preferences
from services.auth.statements import Record
from services.runtime.database import Database, violated_constraint
from services.runtime.errors import AlreadyExists, NotFound

_PREFERENCES = tuple(preferences.c)


class PreferenceStore:
    """What users prefer. `values` name columns; None takes a preference away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, user_id: str, values: Mapping[str, Any]) -> Preferences:
        """The first preferences of a user. Raises AlreadyExists (PREFERENCES_EXIST), NotFound (USER_NOT_FOUND)."""
        adding = insert(preferences).values(dict(values) | {"user_id": user_id})
        # A conflict, and not an error: an error would be the log's as well.
        adding = adding.on_conflict_do_nothing(index_elements=["user_id"])
        row = await self._write(user_id, adding.returning(*_PREFERENCES))
        if row is None:
            raise AlreadyExists("You have preferences already: update them instead.", reasons.ERROR_REASON_PREFERENCES_EXIST)
        return _to_preferences(row)

    async def read(self, user_id: str) -> Preferences:
        """The preferences of a user; all None while there are none. One query."""
        query = select(*_PREFERENCES).where(preferences.c.user_id == user_id)
        async with self._database.transaction(user_id=user_id) as connection:
            row = (await connection.execute(query)).one_or_none()
        return Preferences(user_id) if row is None else _to_preferences(row)

    async def update(self, user_id: str, values: Mapping[str, Any]) -> Preferences:
        """Changes what `values` name and keeps the rest, in one statement; creates what is not there.

        Raises NotFound (USER_NOT_FOUND).
        """
        changed = dict(values) | {"update_time": func.now()}
        writing = insert(preferences).values(dict(values) | {"user_id": user_id})
        writing = writing.on_conflict_do_update(index_elements=["user_id"], set_=changed)
        row = await self._write(user_id, writing.returning(*_PREFERENCES))
        if row is None:
            raise RuntimeError("an upsert returned nothing")
        return _to_preferences(row)

    async def _write(self, user_id: str, statement: Any) -> Record | None:
        try:
            async with self._database.transaction(user_id=user_id) as connection:
                row: Record | None = (await connection.execute(statement)).one_or_none()
                return row
        except IntegrityError as error:
            if violated_constraint(error) != "preferences_user_id_fkey":
                raise
            raise NotFound(
                f"There is no user {user_id}.", reasons.ERROR_REASON_USER_NOT_FOUND, metadata={"user_id": user_id}
            ) from None

    async def delete(self, user_id: str) -> None:
        """Takes all preferences of a user away. Idempotent."""
        async with self._database.transaction(user_id=user_id) as connection:
            await connection.execute(delete(preferences).where(preferences.c.user_id == user_id))


def _to_preferences(row: Record) -> Preferences:
    return Preferences(**{column.name: getattr(row, column.name) for column in _PREFERENCES})
