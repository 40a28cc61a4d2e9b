"""Every statement that reads the changes of tasks, and the one that forgets them.

Invariant: sequences of a user have no holes, so a missing one says that it was forgotten. One public method is one
transaction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from services.chat.tasks.records import TaskChange, task_of
from services.chat.tasks.schema import task_changes, task_counters
from services.runtime.database import Database, interval

KEPT_SECONDS: Final = 24 * 3600
_PRUNED_AT_ONCE: Final = 10_000

# An array of users and of sequences: one statement for everybody whom this process follows.
_NEW: Final = sa.text(
    "select cast(change.user_id as text) as user_id, change.sequence, kind, cast(task_id as text) as task_id, task"
    " from unnest(cast(:user_ids as uuid[]), cast(:sequences as integer[])) as followed (user_id, sequence)"
    " join task_changes change on change.user_id = followed.user_id and change.sequence > followed.sequence"
    " order by change.user_id, change.sequence limit :most"
)


@dataclass(frozen=True, slots=True)
class Since:
    """Where a user's changes stand, and whether all of those after a given sequence are still there."""

    last_sequence: int
    is_whole: bool


class TaskChangeStore:
    """The changes in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read_since(self, after_sequence: int | None, *, user_id: str) -> Since:
        """Where the changes stand. Without a sequence nothing can be missing."""
        column = task_changes.c
        last = sa.select(task_counters.c.last_sequence).where(task_counters.c.user_id == user_id).scalar_subquery()
        # Of 64 bits: a client may have any sequence of 32.
        wanted = sa.literal((after_sequence or 0) + 1, sa.BigInteger)
        next_one = sa.exists().where(column.user_id == user_id, column.sequence == wanted)
        async with self._database.transaction(user_id=user_id) as connection:
            last_sequence, has_next = (await connection.execute(sa.select(sa.func.coalesce(last, 0), next_one))).one()
        return Since(last_sequence, after_sequence is None or after_sequence == last_sequence or has_next)

    async def read_changes(self, *, user_id: str, after_sequence: int, limit: int) -> Sequence[TaskChange]:
        """The changes after a sequence, in their order."""
        column = task_changes.c
        statement = (
            sa.select(column.sequence, column.kind, column.task_id, column.task)
            .where(column.user_id == user_id, column.sequence > after_sequence)
            .order_by(column.sequence)
            .limit(limit)
        )
        async with self._database.transaction(user_id=user_id) as connection:
            return [_change(row) for row in (await connection.execute(statement)).mappings()]

    async def read_new(self, followed: Mapping[str, int], *, limit: int) -> Sequence[tuple[str, TaskChange]]:
        """The changes of all these users after a sequence of each, in their order, with their users."""
        values = {"user_ids": list(followed), "sequences": list(followed.values()), "most": limit}
        async with self._database.service_transaction() as connection:
            return [(row["user_id"], _change(row)) for row in (await connection.execute(_NEW, values)).mappings()]

    async def forget_old(self) -> int:
        """Forgets changes that are older than 24 hours, at most 10,000; returns how many."""
        column = task_changes.c
        old = (
            sa.select(column.user_id, column.sequence)
            .where(column.create_time < sa.func.now() - interval(KEPT_SECONDS))
            .order_by(column.create_time)
            .limit(_PRUNED_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        deletion = task_changes.delete().where(sa.tuple_(column.user_id, column.sequence).in_(old))
        async with self._database.service_transaction() as connection:
            return (await connection.execute(deletion)).rowcount


def _change(row: Mapping[Any, Any]) -> TaskChange:
    task = None if row["task"] is None else task_of(row["task"])
    return TaskChange(sequence=row["sequence"], kind=row["kind"], task_id=row["task_id"], task=task)
