"""Every statement that changes or lists tasks.

Owns the tasks in the database. Invariants: each change leaves its trace in `task_changes` under the user's next sequence, in
the same transaction; what changes nothing leaves none; what is another user's is not there. One public method is one
transaction.
"""

import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chat.refusals import request_id_reused
from services.chat.tasks.records import (
    Task,
    TaskDraft,
    TaskEdit,
    TaskFilter,
    clean_description,
    clean_title,
    stored_task,
)
from services.chat.tasks.refusals import task_not_found, too_many_tasks
from services.chat.tasks.schema import task_changes, task_counters, tasks
from services.chat.tools.call_store import CallKey, HeldCall, held_call
from services.chat.tools.tool import ToolError
from services.runtime.database import Database
from services.runtime.fairness import FairGate

_COLUMNS: Final = tuple(
    tasks.c[name] for name in ("id", "title", "description", "due_time", "complete_time", "create_time", "update_time")
)

Key = tuple[dt.datetime, str]


class TaskStore:
    """The tasks in the database. `on_change` is told the user after each commit that changed something.

    At most `concurrency` changes are made at a time, and one of a user: the others wait here, and hold no connection.
    """

    def __init__(self, database: Database, *, max_tasks: int, concurrency: int, on_change: Callable[[str], None]) -> None:
        self._database = database
        self._gate = FairGate(size=concurrency)
        self._max_tasks = max_tasks
        self._on_change = on_change

    async def create_task(self, draft: TaskDraft, *, user_id: str, request_id: str | None, request_digest: bytes) -> Task:
        """Creates a task, or returns the one that the request id created before.

        Raises InvalidArgument, AlreadyExists (REQUEST_ID_REUSED) when the id named another request, and ResourceExhausted
        (LIMIT_REACHED).
        """
        async with self._changing(user_id) as held:
            found = None if request_id is None else await held.made_by(request_id, request_digest)
            return found or await held.add(draft, request_id=request_id, request_digest=request_digest)

    async def edit_task(self, task_id: str, edit: TaskEdit, *, user_id: str) -> Task:
        """Changes a task. Idempotent. Raises NotFound and InvalidArgument."""
        async with self._changing(user_id) as held:
            return await held.edit(task_id, edit)

    async def delete_task(self, task_id: str, *, user_id: str) -> None:
        """Deletes a task for good. Raises NotFound."""
        async with self._changing(user_id) as held:
            await held.delete(task_id)

    async def act(self, work: Callable[["HeldTasks"], Awaitable[str]], *, user_id: str, call: CallKey | None) -> str:
        """Does some work on the tasks of a user and returns its result, in one transaction.

        With a `call` exactly once: the result becomes that of the call in the same commit, and is what a repeat gets.
        Raises ToolError for a call that was ended as failed before.
        """
        async with self._changing(user_id, call) as held:
            if held.call is None:
                return await work(held)
            if held.call.stored.status == "succeeded":
                return held.call.stored.result
            if held.call.stored.status != "running":
                raise ToolError(held.call.stored.error)
            result = await work(held)
            await held.call.succeed(result)
            return result

    @contextlib.asynccontextmanager
    async def _changing(self, user_id: str, call: CallKey | None = None) -> AsyncIterator["HeldTasks"]:
        async with self._gate.passed(user_id), self._database.transaction(user_id=user_id) as connection:
            held = HeldTasks(connection, user_id, max_tasks=self._max_tasks)
            # The call before the counter, always: no deadlock.
            held.call = None if call is None else await held_call(connection, call, user_id=user_id)
            await connection.execute(_LOCK, {"user_id": user_id})
            yield held
        if held.is_changed:
            self._on_change(user_id)

    async def list_tasks(self, wanted: TaskFilter, *, user_id: str, limit: int, after: Key | None = None) -> list[Task]:
        """The tasks after a key, the newest first."""
        statement = (
            sa.select(*_COLUMNS)
            .where(tasks.c.user_id == user_id, *_conditions(wanted))
            .order_by(tasks.c.create_time.desc(), tasks.c.id.desc())
            .limit(limit)
        )
        if after is not None:
            key = sa.tuple_(sa.literal(after[0], tasks.c.create_time.type), sa.literal(after[1], tasks.c.id.type))
            statement = statement.where(sa.tuple_(tasks.c.create_time, tasks.c.id) < key)
        async with self._database.transaction(user_id=user_id) as connection:
            return [_task(row) for row in (await connection.execute(statement)).mappings()]

    async def read_task(self, task_id: str, *, user_id: str) -> Task:
        """One task. Raises NotFound."""
        async with self._database.transaction(user_id=user_id) as connection:
            return await _read(connection, task_id, user_id)


# Makes the user's counter and locks it: the changes of a user follow each other.
_LOCK: Final = (
    insert(task_counters)
    .values(user_id=sa.bindparam("user_id"))
    .on_conflict_do_update(index_elements=["user_id"], set_={"last_sequence": task_counters.c.last_sequence})
)


class HeldTasks:
    """The tasks of a user inside a transaction, which nobody else changes meanwhile."""

    def __init__(self, connection: AsyncConnection, user_id: str, *, max_tasks: int) -> None:
        self._connection = connection
        self._user_id = user_id
        self._max_tasks = max_tasks
        self.call: HeldCall | None = None
        self.is_changed = False

    async def made_by(self, request_id: str, request_digest: bytes) -> Task | None:
        """The task that a request made before. Raises AlreadyExists when it was another request."""
        statement = sa.select(*_COLUMNS, tasks.c.request_digest).where(
            tasks.c.user_id == self._user_id, tasks.c.request_id == request_id
        )
        row = (await self._connection.execute(statement)).mappings().one_or_none()
        if row is not None and row["request_digest"] != request_digest:
            raise request_id_reused(request_id)
        return None if row is None else _task(row)

    async def add(self, draft: TaskDraft, *, request_id: str | None = None, request_digest: bytes = b"") -> Task:
        """Adds a task. Raises InvalidArgument and ResourceExhausted (LIMIT_REACHED)."""
        values = {
            "user_id": self._user_id,
            "title": clean_title(draft.title),
            "description": clean_description(draft.description),
            "due_time": draft.due_time,
            "request_id": request_id,
            "request_digest": None if request_id is None else request_digest,
            # Not the transaction's time: under the lock this one grows with the sequence.
            "create_time": sa.func.clock_timestamp(),
        }
        inserted = await self._connection.execute(tasks.insert().values(values).returning(*_COLUMNS))
        task = _task(inserted.mappings().one())
        await self._trace("created", task.id, task, added=1)
        return task

    async def edit(self, task_id: str, edit: TaskEdit) -> Task:
        """Changes a task; what is so already is left alone. Raises NotFound and InvalidArgument."""
        old = await _read(self._connection, task_id, self._user_id)
        values = _changed(old, edit)
        if not values:
            return old
        updated = await self._connection.execute(
            tasks.update()
            .where(_is(task_id, self._user_id))
            .values(values | {"update_time": sa.func.clock_timestamp()})
            .returning(*_COLUMNS)
        )
        task = _task(updated.mappings().one())
        await self._trace("updated", task_id, task)
        return task

    async def delete(self, task_id: str) -> None:
        """Deletes a task. Raises NotFound."""
        deleted = await self._connection.execute(tasks.delete().where(_is(task_id, self._user_id)).returning(tasks.c.id))
        if deleted.scalar_one_or_none() is None:
            raise task_not_found(task_id)
        await self._trace("deleted", task_id, None, added=-1)

    async def read(self, task_id: str) -> Task:
        """One task. Raises NotFound."""
        return await _read(self._connection, task_id, self._user_id)

    async def called(self, title: str, *, limit: int) -> Sequence[Task]:
        """The tasks whose title holds this one, whatever its case: those with just this title first, then the newest."""
        statement = (
            sa.select(*_COLUMNS)
            .where(tasks.c.user_id == self._user_id, tasks.c.title.icontains(title, autoescape=True))
            .order_by((sa.func.lower(tasks.c.title) == title.lower()).desc(), tasks.c.create_time.desc())
            .limit(limit)
        )
        return [_task(row) for row in (await self._connection.execute(statement)).mappings()]

    async def _trace(self, kind: str, task_id: str, task: Task | None, *, added: int = 0) -> None:
        count = task_counters.c.task_count + added
        counted = await self._connection.execute(
            task_counters.update()
            .where(task_counters.c.user_id == self._user_id)
            .values(last_sequence=task_counters.c.last_sequence + 1, task_count=count)
            .returning(task_counters.c.last_sequence, task_counters.c.task_count)
        )
        sequence, task_count = counted.one()
        if added > 0 and task_count > self._max_tasks:
            raise too_many_tasks(self._max_tasks)
        stored = None if task is None else stored_task(task)
        change = {"user_id": self._user_id, "sequence": sequence, "kind": kind, "task_id": task_id}
        # The clock's time and not the transaction's: pruning goes by it, and must not tear holes.
        rest = {"task": stored or sa.null(), "create_time": sa.func.clock_timestamp()}
        await self._connection.execute(task_changes.insert().values(change | rest))
        self.is_changed = True


async def _read(connection: AsyncConnection, task_id: str, user_id: str) -> Task:
    statement = sa.select(*_COLUMNS).where(_is(task_id, user_id))
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise task_not_found(task_id)
    return _task(row)


def _changed(old: Task, edit: TaskEdit) -> dict[str, Any]:
    """The columns that an edit changes, and nothing that is so already."""
    values: dict[str, Any] = {}
    if "title" in edit:
        values["title"] = clean_title(edit["title"])
    if "description" in edit:
        values["description"] = clean_description(edit["description"])
    if "due_time" in edit:
        values["due_time"] = edit["due_time"]
    values = {name: value for name, value in values.items() if value != getattr(old, name)}
    if "completed" in edit and edit["completed"] != (old.complete_time is not None):
        values["complete_time"] = sa.func.clock_timestamp() if edit["completed"] else None
    return values


def _conditions(wanted: TaskFilter) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if wanted.completed is not None:
        found.append(tasks.c.complete_time.is_not(None) if wanted.completed else tasks.c.complete_time.is_(None))
    if wanted.due_before is not None:
        found.append(tasks.c.due_time < wanted.due_before)
    if wanted.due_from is not None:
        found.append(tasks.c.due_time >= wanted.due_from)
    if wanted.text:
        holds = (column.icontains(wanted.text, autoescape=True) for column in (tasks.c.title, tasks.c.description))
        found.append(sa.or_(*holds))
    return found


def _is(task_id: str, user_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(tasks.c.id == task_id, tasks.c.user_id == user_id)


def _task(row: Mapping[Any, Any]) -> Task:
    return Task(**{column.name: row[column.name] for column in _COLUMNS})
