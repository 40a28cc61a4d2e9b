"""Every statement about the conversations of all users, for administrators.

Owns one list. Invariant: it reads no content, and is one statement whatever its length.
"""

import datetime as dt

import sqlalchemy as sa

from services.chat.records import Session
from services.chat.schema import conversations
from services.runtime.database import Database


class SessionStore:
    """The conversations of every user in the database. For callers whose right to that was checked."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_sessions(
        self, *, user_id: str | None, limit: int, after: tuple[dt.datetime, str] | None
    ) -> list[Session]:
        """The conversations after a key, of one user or of all, the one with the latest message first."""
        table = conversations.c
        columns = (table.id, table.user_id, table.message_count, table.last_message_time, table.create_time)
        statement = sa.select(*columns, table.latest_time).order_by(table.latest_time.desc(), table.id.desc()).limit(limit)
        if user_id is not None:
            statement = statement.where(table.user_id == user_id)
        if after is not None:
            key = sa.tuple_(sa.literal(after[0], table.latest_time.type), sa.literal(after[1], table.id.type))
            statement = statement.where(sa.tuple_(table.latest_time, table.id) < key)
        async with self._database.service_transaction() as connection:
            return [Session(**row) for row in (await connection.execute(statement)).mappings()]
