"""Every statement that deletes what chat holds of a user. Idempotent.

It goes by batches, so that none comes near the time that a statement may take.
What refers to a conversation goes with it. The names of what is held in Redis are kept, by the fence, in the transaction
that deletes the rows which tell of them; the provider's responses become jobs in it. Call these behind the fence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chat.conversation.store import with_logs
from services.chat.generation_store import FORGET_RESPONSES, defer_forgetting
from services.chat.log.entries import KEY
from services.chat.schema import conversations
from services.runtime.database import Database
from services.runtime.jobs import Jobs
from services.runtime.purging import hold_keys

_CONVERSATIONS_AT_ONCE: Final = 50
_ROWS_AT_ONCE: Final = 5_000
# By their names: their own code stands above this.
_TABLES: Final = tuple(
    sa.table(name, sa.column("user_id", sa.Uuid(as_uuid=False)))
    for name in ("tasks", "task_changes", "task_counters", "mcp_servers", "usage_days", "token_reservations")
)
# What is owed of a deleted user is owed to nobody, but for what the provider keeps. A job that is being done right now ends,
# and is found by the next call.
_DROP_JOBS: Final = sa.text(
    "delete from procrastinate_jobs where status = 'todo' and task_name <> :kept"
    " and (args ->> 'user_id' = :user_id or args ->> 'conversation_id' = any(cast(:conversation_ids as text[])))"
)
_HAS_JOBS: Final = sa.text(
    "select exists (select from procrastinate_jobs where status in ('todo', 'doing') and args ->> 'user_id' = :user_id)"
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Some conversations that are gone; `running_ids` are the generations that were running in them."""

    count: int
    running_ids: Sequence[str]


class PurgeStore:
    """What is to be deleted. Each method is one transaction."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        self._database = database
        self._jobs = jobs

    async def delete_conversations(self, user_id: str) -> Batch:
        """Deletes some conversations with all that hangs on them, and what is owed for them; a count of 0 is the end."""
        async with self._database.service_transaction() as connection:
            ids = await _locked(connection, user_id)
            await connection.execute(_DROP_JOBS, {"user_id": user_id, "conversation_ids": ids, "kept": FORGET_RESPONSES})
            if not ids:
                return Batch(0, ())
            found = (await connection.execute(with_logs(ids, user_id=user_id))).all()
            await hold_keys(connection, user_id, [KEY + row.id for row in found])
            running = [row for row in found if row.status == "running"]
            if kept := [response_id for row in running for response_id in row.provider_response_ids]:
                await defer_forgetting(self._jobs, connection, kept, user_id=user_id)
            await connection.execute(conversations.delete().where(conversations.c.id.in_(ids)))
        return Batch(len(ids), [row.id for row in running])

    async def delete_rest(self, user_id: str) -> int:
        """Deletes some of everything else; returns how many rows, 0 at the end."""
        gone = 0
        async with self._database.service_transaction() as connection:
            for table in _TABLES:
                row: sa.ColumnClause[object] = sa.literal_column("ctid")
                some = sa.select(row).select_from(table).where(table.c.user_id == user_id).limit(_ROWS_AT_ONCE)
                gone += (await connection.execute(sa.delete(table).where(row.in_(some)))).rowcount
        return gone

    async def has_jobs(self, user_id: str) -> bool:
        """Whether something is still owed: what the provider keeps, or what is being done right now."""
        async with self._database.service_transaction() as connection:
            return bool((await connection.execute(_HAS_JOBS, {"user_id": user_id})).scalar_one())


async def _locked(connection: AsyncConnection, user_id: str) -> Sequence[str]:
    mine = sa.select(conversations.c.id).where(conversations.c.user_id == user_id).limit(_CONVERSATIONS_AT_ONCE)
    return (await connection.execute(mine.with_for_update())).scalars().all()
