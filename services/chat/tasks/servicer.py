"""TaskService: the tasks of the caller over gRPC.

Owns the conversion at the door and nothing else: each method checks, calls, converts.
"""

import datetime as dt
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, cast

import grpc
from google.protobuf import timestamp_pb2

from parley.chat.v1 import task_pb2, task_pb2_grpc
from services.chat.request.ownership import own_id
from services.chat.request.reading import check
from services.chat.tasks.feed import TaskFeed, WatchBeat, WatchBegin, Watched
from services.chat.tasks.records import Task, TaskDraft, TaskEdit, TaskFilter
from services.chat.tasks.store import Key, TaskStore
from services.runtime.calls import current_metadata, current_user_id
from services.runtime.errors import FieldViolation
from services.runtime.paging import bad_page_token, cut_page, decode_page_token, page_size
from services.runtime.request_ids import digest_of, request_id_of

Context = grpc.aio.ServicerContext[Any, Any]

LAST_EVENT_ID: Final = "last-event-id"
_TASKS: Final = "tasks"
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MOST_SEQUENCE: Final = 2**31 - 1
_EDITABLE: Final = ("title", "description", "completed", "due_time")


class TaskServicer(task_pb2_grpc.TaskServiceServicer):
    """The caller's tasks."""

    def __init__(self, store: TaskStore, feed: TaskFeed) -> None:
        self._store = store
        self._feed = feed

    async def CreateTask(self, request: task_pb2.CreateTaskRequest, context: Context) -> task_pb2.Task:
        created = await self._store.create_task(
            TaskDraft(request.title, request.description, _time(request, "due_time")),
            user_id=own_id(request),
            request_id=request_id_of(request, current_metadata()),
            request_digest=digest_of(request, ("request_id", "user_id")),
        )
        return to_task(created)

    async def ListTasks(self, request: task_pb2.ListTasksRequest, context: Context) -> task_pb2.ListTasksResponse:
        wanted = TaskFilter(
            completed=request.completed if request.HasField("completed") else None,
            due_before=_time(request, "due_before"),
            due_from=_time(request, "due_from"),
            text=request.text,
        )
        size = page_size(request.page_size)
        key = _key(decode_page_token(_TASKS, request.page_token, kinds=(int, str)))
        found = await self._store.list_tasks(wanted, user_id=own_id(request), limit=size + 1, after=key)
        page, next_token = cut_page(found, size, list_name=_TASKS, key=_key_of)
        return task_pb2.ListTasksResponse(tasks=[to_task(task) for task in page], next_page_token=next_token)

    async def GetTask(self, request: task_pb2.GetTaskRequest, context: Context) -> task_pb2.Task:
        return to_task(await self._store.read_task(request.task_id, user_id=own_id(request)))

    async def UpdateTask(self, request: task_pb2.UpdateTaskRequest, context: Context) -> task_pb2.Task:
        names = _named(request)
        check(_wrong_names(names))
        return to_task(await self._store.edit_task(request.task_id, _edit(request, names), user_id=own_id(request)))

    async def CompleteTask(self, request: task_pb2.CompleteTaskRequest, context: Context) -> task_pb2.Task:
        return to_task(await self._store.edit_task(request.task_id, {"completed": True}, user_id=own_id(request)))

    async def DeleteTask(self, request: task_pb2.DeleteTaskRequest, context: Context) -> task_pb2.DeleteTaskResponse:
        await self._store.delete_task(request.task_id, user_id=own_id(request))
        return task_pb2.DeleteTaskResponse()

    async def WatchTasks(self, request: task_pb2.WatchTasksRequest, context: Context) -> AsyncIterator[task_pb2.TaskEvent]:
        place = _place(request, current_metadata())
        # Closed here and not by the garbage collector, so that a watcher who left is let go at once.
        async with aclosing(self._feed.watch(current_user_id(), place)) as changes:
            async for change in changes:
                yield to_event(change)


def to_task(task: Task) -> task_pb2.Task:
    """A task as the contract has it."""
    return task_pb2.Task(
        id=task.id,
        title=task.title,
        description=task.description,
        completed=task.complete_time is not None,
        due_time=_stamp(task.due_time),
        complete_time=_stamp(task.complete_time),
        create_time=_stamp(task.create_time),
        update_time=_stamp(task.update_time),
    )


def to_event(watched: Watched) -> task_pb2.TaskEvent:
    """What a watch tells as the contract has it."""
    if isinstance(watched, WatchBeat):
        return task_pb2.TaskEvent(heartbeat=task_pb2.TaskHeartbeat())
    if isinstance(watched, WatchBegin):
        return task_pb2.TaskEvent(sequence=watched.sequence, started=task_pb2.WatchStarted(reset=watched.is_reset))
    if watched.task is None:
        return task_pb2.TaskEvent(sequence=watched.sequence, deleted_task_id=watched.task_id)
    if watched.kind == "created":
        return task_pb2.TaskEvent(sequence=watched.sequence, created=to_task(watched.task))
    return task_pb2.TaskEvent(sequence=watched.sequence, updated=to_task(watched.task))


def _named(request: task_pb2.UpdateTaskRequest) -> Sequence[str]:
    if request.HasField("update_mask"):
        return list(request.update_mask.paths)
    is_set = (request.title, request.description, request.HasField("completed"), request.HasField("due_time"))
    return [name for name, there in zip(_EDITABLE, is_set, strict=True) if there]


def _wrong_names(names: Sequence[str]) -> list[FieldViolation]:
    unknown = sorted(set(names) - set(_EDITABLE))
    return [
        FieldViolation("update_mask", f"`{path}` cannot be changed: only {', '.join(_EDITABLE)} can") for path in unknown
    ]


def _edit(request: task_pb2.UpdateTaskRequest, names: Sequence[str]) -> TaskEdit:
    edit = {name: _time(request, name) if name == "due_time" else getattr(request, name) for name in names}
    return cast(TaskEdit, edit)


def _place(request: task_pb2.WatchTasksRequest, metadata: Mapping[str, str]) -> int | None:
    """The last sequence that the watcher has, by the field and by the header; the greater counts."""
    told = [request.after_sequence] if request.HasField("after_sequence") else []
    header = metadata.get(LAST_EVENT_ID, "")
    if header:
        if not (header.isascii() and header.isdigit() and int(header[:20]) <= _MOST_SEQUENCE):
            check([FieldViolation("after_sequence", "the Last-Event-ID header must be the `id` of an event of this stream")])
        told.append(int(header))
    return max(told, default=None)


def _key_of(task: Task) -> tuple[int, str]:
    return (task.create_time - _EPOCH) // dt.timedelta(microseconds=1), task.id


def _key(key: list[str | int] | None) -> Key | None:
    """What `_key_of` was made from; what a client made up is refused here and not by the database."""
    if key is None:
        return None
    try:
        return _EPOCH + dt.timedelta(microseconds=int(key[0])), str(uuid.UUID(str(key[1])))
    except (OverflowError, ValueError):
        raise bad_page_token() from None


def _time(request: Any, field: str) -> dt.datetime | None:
    if not request.HasField(field):
        return None
    time: dt.datetime = getattr(request, field).ToDatetime(tzinfo=dt.UTC)
    return time


def _stamp(time: dt.datetime | None) -> timestamp_pb2.Timestamp | None:
    if time is None:
        return None
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(time)
    return stamp
