"""What the assistant can do with a user's tasks: add, list, complete, update and delete, by words.

The model's tools and the suite's own MCP server both call these. Invariants: a task is meant by its id, or by a title that
only one of them has; results are JSON, refusals are sentences that say what to do next. It refuses to guess.
"""

import datetime as dt
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from services.chat.model.request import FunctionSpec
from services.chat.tasks.records import (
    MAX_DESCRIPTION_CHARACTERS,
    MAX_TITLE_CHARACTERS,
    Task,
    TaskDraft,
    TaskEdit,
    TaskFilter,
)
from services.chat.tasks.store import HeldTasks, TaskStore
from services.chat.tools.call_store import CallKey
from services.chat.tools.tool import ToolError
from services.runtime.calls import current_request_id
from services.runtime.database import DATABASE_FAILURES
from services.runtime.errors import ServiceError, to_service_error
from services.runtime.rules import CONTROL_CHARACTERS

Arguments = Mapping[str, Any]

_MOST_LISTED: Final = 50
_MOST_CANDIDATES: Final = 10

_TITLE: Final = {"type": "string", "description": f"What is to be done, in 1 to {MAX_TITLE_CHARACTERS} characters."}
_DESCRIPTION: Final = {"type": "string", "description": f"More about it; up to {MAX_DESCRIPTION_CHARACTERS} characters."}
_DUE: Final = {
    "type": ["string", "null"],
    "description": "By when it is to be done: a time like 2026-05-04T17:00:00Z (RFC 3339, with an offset), or null.",
}
_ID: Final = {"type": "string", "description": "The id of the task, as list_tasks tells it."}
_CALLED: Final = {
    "type": "string",
    "description": "The title of the task, or a part that no other title has; instead of task_id.",
}


def _spec(name: str, description: str, properties: Mapping[str, Any], *, required: Sequence[str] = ()) -> FunctionSpec:
    parameters = {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }
    return FunctionSpec(name, description, parameters)


ADD: Final = _spec(
    "add_task",
    "Adds a task to the user's to-do list.",
    {"title": _TITLE, "description": _DESCRIPTION, "due_time": _DUE},
    required=("title",),
)
LIST: Final = _spec(
    "list_tasks",
    f"Lists the tasks on the user's to-do list, the newest first, at most {_MOST_LISTED}.",
    {
        "completed": {"type": "boolean", "description": "Only completed tasks (true) or only open ones (false)."},
        "text": {"type": "string", "maxLength": 200, "description": "Only tasks whose title or description holds this."},
        "due_before": {"type": "string", "description": "Only tasks due before this time (RFC 3339)."},
        "due_from": {"type": "string", "description": "Only tasks due at this time or later (RFC 3339)."},
    },
)
COMPLETE: Final = _spec("complete_task", "Marks a task as done.", {"task_id": _ID, "title": _CALLED})
UPDATE: Final = _spec(
    "update_task",
    "Changes a task: only what is given changes.",
    {
        "task_id": _ID,
        "title": _CALLED,
        "new_title": _TITLE,
        "description": _DESCRIPTION,
        "due_time": _DUE,
        "completed": {"type": "boolean", "description": "Whether it is done; false opens it again."},
    },
)
DELETE: Final = _spec(
    "delete_task",
    "Deletes a task for good. For a task that was done, use complete_task.",
    {"task_id": _ID, "title": _CALLED},
)


@dataclass(frozen=True, slots=True)
class TaskVerb:
    """One thing that can be done. `do` gets the arguments, the user, and the call it serves, if it serves one."""

    spec: FunctionSpec
    do: Callable[[Arguments, str, CallKey | None], Awaitable[str]]

    async def run(self, arguments: Arguments, *, user_id: str, call: CallKey | None = None) -> str:
        """Does it and returns the result as JSON. The arguments fit the spec. Raises ToolError.

        With a `call` exactly once, however often it is repeated.
        """
        for name, value in arguments.items():
            if isinstance(value, str) and CONTROL_CHARACTERS.search(value):
                raise ToolError(f"{name} holds a control character (NUL, say): remove it.")
        try:
            return await self.do(arguments, user_id, call)
        except ServiceError as error:
            raise ToolError(error.message) from error
        except DATABASE_FAILURES as error:
            raise ToolError(to_service_error(error, current_request_id()).message) from error


class TaskActions:
    """The verbs, on the tasks of whoever they are called for."""

    def __init__(self, store: TaskStore) -> None:
        self._store = store
        self.verbs: Final[Sequence[TaskVerb]] = (
            TaskVerb(ADD, self.add),
            TaskVerb(LIST, self.list),
            TaskVerb(COMPLETE, self.complete),
            TaskVerb(UPDATE, self.update),
            TaskVerb(DELETE, self.delete),
        )

    async def add(self, arguments: Arguments, user_id: str, call: CallKey | None) -> str:
        """Adds a task."""
        draft = TaskDraft(arguments["title"], arguments.get("description", ""), _time(arguments.get("due_time"), "due_time"))

        async def work(held: HeldTasks) -> str:
            return _told({"added": _plain(await held.add(draft))})

        return await self._store.act(work, user_id=user_id, call=call)

    async def list(self, arguments: Arguments, user_id: str, call: CallKey | None) -> str:  # noqa: ARG002 - reads only
        """Lists tasks."""
        wanted = TaskFilter(
            completed=arguments.get("completed"),
            text=arguments.get("text", ""),
            due_before=_time(arguments.get("due_before"), "due_before"),
            due_from=_time(arguments.get("due_from"), "due_from"),
        )
        found = await self._store.list_tasks(wanted, user_id=user_id, limit=_MOST_LISTED + 1)
        return _told({"tasks": [_plain(task) for task in found[:_MOST_LISTED]], "has_more": len(found) > _MOST_LISTED})

    async def complete(self, arguments: Arguments, user_id: str, call: CallKey | None) -> str:
        """Marks a task as done; one that is done stays so."""

        async def work(held: HeldTasks) -> str:
            task = await _meant(held, arguments, is_open_preferred=True)
            return _told({"completed": _plain(await held.edit(task.id, {"completed": True}))})

        return await self._store.act(work, user_id=user_id, call=call)

    async def update(self, arguments: Arguments, user_id: str, call: CallKey | None) -> str:
        """Changes a task."""
        edit = _edit(arguments)

        async def work(held: HeldTasks) -> str:
            task = await _meant(held, arguments)
            return _told({"updated": _plain(await held.edit(task.id, edit))})

        return await self._store.act(work, user_id=user_id, call=call)

    async def delete(self, arguments: Arguments, user_id: str, call: CallKey | None) -> str:
        """Deletes a task."""

        async def work(held: HeldTasks) -> str:
            task = await _meant(held, arguments)
            await held.delete(task.id)
            return _told({"deleted": _plain(task)})

        return await self._store.act(work, user_id=user_id, call=call)


async def _meant(held: HeldTasks, arguments: Arguments, *, is_open_preferred: bool = False) -> Task:
    """The task that the arguments mean. Raises ToolError, with the candidates where there are several."""
    task_id, title = arguments.get("task_id"), str(arguments.get("title") or "").strip()
    if task_id:
        return await held.read(_uuid(task_id))
    if not title:
        raise ToolError("Say which task: give its task_id, or its title.")
    found = await held.called(title, limit=_MOST_CANDIDATES + 1)
    if is_open_preferred:
        found = [task for task in found if task.complete_time is None] or found
    same = [task for task in found if task.title.lower() == title.lower()]
    candidates = same or found
    if not candidates:
        raise ToolError("No task has this title. list_tasks tells which there are.")
    if len(candidates) > 1:
        shown = _told([_plain(task) for task in candidates[:_MOST_CANDIDATES]])
        raise ToolError(f"Several tasks have this in their title. Ask the user which one, then use its task_id: {shown}")
    return candidates[0]


def _edit(arguments: Arguments) -> TaskEdit:
    edit: TaskEdit = {}
    if "new_title" in arguments:
        edit["title"] = arguments["new_title"]
    if "description" in arguments:
        edit["description"] = arguments["description"]
    if "due_time" in arguments:
        edit["due_time"] = _time(arguments["due_time"], "due_time")
    if "completed" in arguments:
        edit["completed"] = arguments["completed"]
    if not edit:
        raise ToolError("Say what is to change: new_title, description, due_time or completed.")
    return edit


def _time(text: str | None, name: str) -> dt.datetime | None:
    if not text:
        return None
    try:
        time = dt.datetime.fromisoformat(text)
        if time.tzinfo is not None:
            return time.astimezone(dt.UTC)
    except (ValueError, OverflowError):
        pass
    raise ToolError(f"{name} must be a time with its offset from UTC, like 2026-05-04T17:00:00Z.")


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise ToolError("task_id is not the id of a task. list_tasks tells the ids.") from None


def _plain(task: Task) -> dict[str, Any]:
    return {
        "task_id": task.id,
        "title": task.title,
        "description": task.description,
        "completed": task.complete_time is not None,
        "due_time": task.due_time,
    }


def _told(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_UTC_Z).decode()
