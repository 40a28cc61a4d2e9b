"""The purge: everything that memory holds of a user who was deleted, tombstones included.

Order: the fence, which keeps out users who are not known here (any more); the rows, while writers are excluded, the user's
own row last; the working sets in Redis, now and once more when what was under way is over. Confirmed only when a pass found
nothing left. Idempotent, and safe to cut anywhere: the next call goes on.
"""

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.erasure import statements
from services.memory.turns import ConversationKey
from services.memory.working_set import WorkingSet, key_of
from services.runtime.database import Database
from services.runtime.purging import Fence, hold_keys, unfinished

_MINE: Final = "user_id = cast(:user_id as uuid)"
# Waits for those who write, and holds off others; nothing where the user is not known.
_EXCLUDE: Final = sa.text(f"select from people where {_MINE} for update")
_CONVERSATIONS: Final = sa.text(f"select cast(conversation_id as text) from conversations where {_MINE} limit :most")  # noqa: S608


# Before what they refer to.
_DROP: Final = (
    statements.DROP_SOURCES,
    statements.dropping("facts", "id"),
    statements.DROP_EMBEDDINGS,
    statements.DROP_SUMMARIES,
    statements.DROP_UPKEEP,
    statements.dropping("forgotten_turns", "conversation_id, message_id"),
    statements.DROP_SEGMENTS,
    statements.dropping("turns", "message_id"),
)
_DROP_CONVERSATIONS: Final = sa.text(
    f"delete from conversations where {_MINE} and conversation_id = any(cast(:conversation_ids as uuid[]))"  # noqa: S608
)
_DROP_LAST: Final = tuple(
    sa.text(f"delete from {table} where {_MINE}")  # noqa: S608 - of constants
    for table in ("pending_evictions", "people")
)


class PurgeStore:
    """What is to be deleted, of any user."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def delete_some(self, user_id: str) -> bool:
        """Deletes some of it, in one transaction, and keeps the names of working sets; False once nothing was left."""
        async with self._database.transaction(user_id=user_id) as connection:
            await connection.execute(_EXCLUDE, {"user_id": user_id})
            gone = 0
            for statement in _DROP:
                gone += (await connection.execute(statement, {"user_id": user_id})).rowcount
            if gone:
                return True
            return await _delete_conversations(connection, user_id)


async def _delete_conversations(connection: AsyncConnection, user_id: str) -> bool:
    found = await connection.execute(_CONVERSATIONS, {"user_id": user_id, "most": statements.BATCH})
    ids: Sequence[str] = found.scalars().all()
    if ids:
        await hold_keys(connection, user_id, [key_of(ConversationKey(user_id, one)) for one in ids])
        await connection.execute(_DROP_CONVERSATIONS, {"user_id": user_id, "conversation_ids": ids})
        return True
    for statement in _DROP_LAST:
        await connection.execute(statement, {"user_id": user_id})
    return False


class Purge:
    """Deletes what memory holds of users."""

    def __init__(self, fence: Fence, store: PurgeStore, working_set: WorkingSet) -> None:
        self._fence = fence
        self._store = store
        self._working_set = working_set

    async def run(self, user_id: str) -> None:
        """Returns when nothing is left. Raises Unavailable (PURGE_UNFINISHED) while that is not known."""
        await self._fence.put_up(user_id)
        while await self._store.delete_some(user_id):
            pass
        standing = await self._fence.put_up(user_id)
        if not await self._working_set.delete(standing.held_keys):
            raise unfinished("redis")
        if not standing.is_settled:
            raise unfinished("calls under way")
        await self._fence.release_keys(user_id)
