"""The lists of words in Postgres: one public method is one transaction, of one user.

What is said by a user is numbered as it comes. A segment is a run of these numbers that is closed: nothing new can come to
lie in it, since who closes it excludes everybody who writes, and numbers only grow. Its lists say, by word, which of its
messages hold that word. Messages outside of all segments, and those of a segment without lists, are looked at one by one.

Invariant: the lists of a segment say what its messages say, or there are none. Triggers (migration 0004) drop them in the
transaction that deletes or rewrites one of the messages, whoever does it; the segment stays, and gets new ones by upkeep.
"""

from collections.abc import Sequence
from typing import Final

from services.memory.people import exclude_writers, hold_person
from services.memory.postings import statements
from services.runtime.database import Database

SEGMENT_MESSAGES: Final = 1_000
"""Messages of a segment: so many may be looked at one by one, and lie in lists that a deletion drops."""


class PostingStore:
    """The lists of every user; each method acts for the user that it names."""

    def __init__(self, database: Database, *, segment_messages: int = SEGMENT_MESSAGES) -> None:
        self._database = database
        self._segment_messages = segment_messages

    async def close_segment(self, user_id: str) -> bool:
        """Makes a segment of messages that are in none; whether there may be more to do.

        Idempotent: what is in a segment is not taken again. Keeps who writes for this user waiting meanwhile.
        """
        values = {"user_id": user_id, "most": self._segment_messages}
        async with self._database.transaction(user_id=user_id) as connection:
            await exclude_writers(connection, user_id)
            numbered = (await connection.execute(statements.NUMBER_OLD, values)).rowcount
            closed = (await connection.execute(statements.CLOSE, values)).scalar_one_or_none()
        return numbered > 0 or closed is not None

    async def unbuilt(self, user_id: str, *, most: int) -> Sequence[int]:
        """Segments without lists, by their last numbers."""
        async with self._database.transaction(user_id=user_id) as connection:
            found = await connection.execute(statements.UNBUILT, {"user_id": user_id, "most": most})
            return found.scalars().all()

    async def build(self, user_id: str, last_number: int) -> None:
        """Writes the lists of a segment; where they are there already, or the segment is gone, nothing.

        Erasures wait for it, other writers do not: one that rewrites a message of the segment either waits until the lists
        are there, and drops them, or is waited for before the messages are read.
        """
        of = {"user_id": user_id, "last_number": last_number}
        async with self._database.transaction(user_id=user_id) as connection:
            await hold_person(connection, user_id)
            first_number = (await connection.execute(statements.HOLD, of)).scalar_one_or_none()
            if first_number is not None:
                of["first_number"] = first_number
                await connection.execute(statements.BUILD, of)
                await connection.execute(statements.DROP_EMPTY, of)
