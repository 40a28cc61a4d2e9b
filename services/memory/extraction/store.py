"""What of a conversation nothing was learned from yet, in Postgres. One public method is one transaction.

Invariant: how far was extracted is noted with the facts, see facts/store.py; here it only goes back, when messages are
written anew or come late. It goes over holes: a turn that memory is never told of, or was made to forget, keeps nothing that
follows from being read.
"""

from collections.abc import Mapping
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.extraction.batch import Unread, UnreadTurn
from services.memory.turns import ConversationKey
from services.memory.upkeep.store import owe
from services.runtime.database import Database

# Of a longer message only the beginning can be its author's own words.
_MOST_CHARACTERS: Final = 16_000

# The turn before the unread ones is what the first of them answers.
_UNREAD: Final = sa.text(
    "select known.extracted_sequence, cast(turns.message_id as text) as message_id, turns.sequence, turns.role,"
    " left(turns.body, :most_characters) as body, turns.revision, turns.create_time"
    " from conversations known left join turns on turns.user_id = known.user_id"
    " and turns.conversation_id = known.conversation_id"
    " and turns.sequence >= known.extracted_sequence"
    " where known.user_id = cast(:user_id as uuid) and known.conversation_id = cast(:conversation_id as uuid)"
    " and known.deleted_at is null order by turns.sequence limit :most"
)
_READ_AGAIN: Final = sa.text(
    "update conversations known set extracted_sequence = least(known.extracted_sequence, told.sequence - 1)"
    " from unnest(cast(:user_ids as uuid[]), cast(:conversation_ids as uuid[]), cast(:sequences as integer[]))"
    " as told (user_id, conversation_id, sequence)"
    " where known.user_id = told.user_id and known.conversation_id = told.conversation_id"
)


async def read_again(connection: AsyncConnection, sequences: Mapping[ConversationKey, int]) -> None:
    """Has conversations read for facts again from these messages on. For a transaction that holds them."""
    values = {
        "user_ids": [key.user_id for key in sequences],
        "conversation_ids": [key.conversation_id for key in sequences],
        "sequences": list(sequences.values()),
    }
    await connection.execute(_READ_AGAIN, values)


class UnreadStore:
    """The turns of every user that were not read for facts; each method acts for the user that it names."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, user_id: str, conversation_id: str, *, most: int) -> Unread | None:
        """The next `most` messages and the one before them; None where the conversation is unknown or deleted."""
        values = {"user_id": user_id, "conversation_id": conversation_id, "most_characters": _MOST_CHARACTERS}
        async with self._database.transaction(user_id=user_id) as connection:
            rows = (await connection.execute(_UNREAD, {**values, "most": most + 2})).all()
        if not rows:
            return None
        turns = [
            UnreadTurn(row.message_id, row.sequence, row.role, row.body, row.revision, row.create_time)
            for row in rows
            if row.message_id is not None
        ]
        after = rows[0].extracted_sequence
        unread = [turn for turn in turns if turn.sequence > after]
        before = [turn for turn in turns if turn.sequence <= after]
        return Unread(conversation_id, after, [*before, *unread[:most]], has_more=len(unread) > most)

    async def owe_rest(self, user_id: str, conversation_id: str) -> None:
        """Notes that more of a conversation is to be read, now."""
        async with self._database.transaction(user_id=user_id) as connection:
            await owe(connection, "extract", [(user_id, conversation_id)])
