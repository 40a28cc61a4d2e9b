"""Numbers that a user had, as far as sms has seen: every statement.

It is a hint where to ask, never an answer: whose a number is now says auth.
"""

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database
from services.sms.schema import seen_numbers

# A code that was asked for in vain leaves a number too: those of some days must not hide the one that is verified.
_MOST_ASKED: Final = 50


async def note_number(connection: AsyncConnection, user_id: str, phone_number: str) -> None:
    """Notes that a number is, or is becoming, the user's."""
    await connection.execute(
        insert(seen_numbers)
        .values(user_id=user_id, phone_number=phone_number)
        .on_conflict_do_update(index_elements=["user_id", "phone_number"], set_={"seen_time": sa.func.now()})
    )


class SeenNumberStore:
    """The numbers in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_numbers(self, user_id: str) -> Sequence[str]:
        """The numbers that the user was seen with, the latest first; at most fifty."""
        statement = (
            sa.select(seen_numbers.c.phone_number)
            .where(seen_numbers.c.user_id == user_id)
            .order_by(seen_numbers.c.seen_time.desc())
            .limit(_MOST_ASKED)
        )
        async with self._database.service_transaction() as connection:
            return (await connection.execute(statement)).scalars().all()
