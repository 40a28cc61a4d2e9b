"""Tasks of an earlier system, written as they were, with the trace that every change of tasks leaves.

Invariant: what is here already is not changed, and leaves no second trace. How many tasks a user may have bounds what they
add, not what they bring along.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chat.tasks.records import Task, stored_task
from services.chat.tasks.schema import task_changes, task_counters, tasks
from services.runtime.database import Database


@dataclass(frozen=True, slots=True)
class ImportedTask:
    """A task of another system. `id` is always the same for the same one."""

    id: str
    title: str = field(repr=False)
    description: str = field(repr=False)
    due_time: dt.datetime | None
    complete_time: dt.datetime | None
    create_time: dt.datetime
    update_time: dt.datetime


class TaskImport:
    """The way of other systems' tasks into chat's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self, found: Sequence[ImportedTask], *, user_id: str, is_rehearsal: bool = False) -> int:
        """Creates those that are not here, in one transaction, and returns how many. Idempotent.

        A rehearsal writes nothing in the end.
        """
        async with self._database.transaction(user_id=user_id) as connection:
            count = await _load(connection, found, user_id)
            if is_rehearsal:
                await connection.rollback()
        return count


async def _load(connection: AsyncConnection, found: Sequence[ImportedTask], user_id: str) -> int:
    counter = insert(task_counters).values(user_id=user_id)
    # Locks the user's counter, as every change of tasks does.
    same = {"last_sequence": task_counters.c.last_sequence}
    counter = counter.on_conflict_do_update(index_elements=["user_id"], set_=same)
    last = (await connection.execute(counter.returning(task_counters.c.last_sequence))).scalar_one()
    here = sa.select(tasks.c.id).where(tasks.c.user_id == user_id, tasks.c.id.in_([one.id for one in found]))
    known = set((await connection.execute(here)).scalars())
    new = [one for one in found if one.id not in known]
    if not new:
        return 0
    await connection.execute(tasks.insert(), [asdict(one) | {"user_id": user_id} for one in new])
    changes = [
        {
            "user_id": user_id,
            "sequence": last + place,
            "kind": "created",
            "task_id": one.id,
            "task": stored_task(Task(**asdict(one))),
        }
        for place, one in enumerate(new, start=1)
    ]
    await connection.execute(task_changes.insert(), changes)
    await connection.execute(
        task_counters.update()
        .where(task_counters.c.user_id == user_id)
        .values(last_sequence=last + len(new), task_count=task_counters.c.task_count + len(new))
    )
    return len(new)
