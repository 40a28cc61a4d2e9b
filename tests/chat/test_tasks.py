"""Tasks over gRPC: the list, its filters and pages, and what nobody else may see."""

import asyncio
import datetime as dt
import uuid
from collections.abc import Awaitable
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf import field_mask_pb2, timestamp_pb2
from psycopg import sql

from parley.chat.v1 import task_pb2
from suite.databases import ServiceDatabase
from tests.chat.conftest import Start
from tests.chat.service import ChatProcess, Refusal, User, refusal

NEVER = str(uuid.uuid4())


def at(text: str) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(dt.datetime.fromisoformat(text))
    return stamp


def add(user: User, title: str = "Buy milk", **fields: Any) -> Awaitable[task_pb2.Task]:
    return user.tasks.CreateTask(task_pb2.CreateTaskRequest(title=title, **fields), metadata=user.metadata, timeout=10)


def get(user: User, task_id: str) -> Awaitable[task_pb2.Task]:
    return user.tasks.GetTask(task_pb2.GetTaskRequest(task_id=task_id), metadata=user.metadata, timeout=10)


def update(user: User, task_id: str, **fields: Any) -> Awaitable[task_pb2.Task]:
    asked = task_pb2.UpdateTaskRequest(task_id=task_id, **fields)
    return user.tasks.UpdateTask(asked, metadata=user.metadata, timeout=10)


def complete(user: User, task_id: str) -> Awaitable[task_pb2.Task]:
    return user.tasks.CompleteTask(task_pb2.CompleteTaskRequest(task_id=task_id), metadata=user.metadata, timeout=10)


def delete(user: User, task_id: str) -> Awaitable[task_pb2.DeleteTaskResponse]:
    return user.tasks.DeleteTask(task_pb2.DeleteTaskRequest(task_id=task_id), metadata=user.metadata, timeout=10)


def listed(user: User, **fields: Any) -> Awaitable[task_pb2.ListTasksResponse]:
    return user.tasks.ListTasks(task_pb2.ListTasksRequest(**fields), metadata=user.metadata, timeout=10)


async def titles(user: User, **fields: Any) -> list[str]:
    return [task.title for task in (await listed(user, **fields)).tasks]


async def test_a_task_is_kept_as_it_was_given(user: User) -> None:
    task = await add(user, "  Buy milk ", description="Two litres", due_time=at("2026-12-01T10:00:00+00:00"))
    assert (task.title, task.description, task.completed) == ("Buy milk", "Two litres", False)
    assert task.due_time == at("2026-12-01T10:00:00+00:00")
    assert not task.HasField("complete_time")
    assert await get(user, task.id) == task
    assert (await listed(user)).tasks == [task]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"title": ""}, "title"),
        ({"title": "   "}, "title"),
        ({"title": "x" * 201}, "title"),
        ({"title": "a\nb"}, "title"),
        ({"title": "a\tb"}, "title"),
        ({"title": "a\x00b"}, "title"),
        ({"description": "x" * 2001}, "description"),
        ({"description": "\x07"}, "description"),
        ({"description": "\x85"}, "description"),
        ({"request_id": "x" * 201}, "request_id"),
        ({"due_time": timestamp_pb2.Timestamp(seconds=10**12)}, "due_time"),
    ],
)
async def test_what_is_no_task_is_refused(user: User, fields: dict[str, Any], wrong: str) -> None:
    refused = await refusal(add(user, **fields))
    assert (refused.code, refused.reason, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", [wrong])
    assert await titles(user) == []


async def test_a_title_of_200_characters_is_taken(user: User) -> None:
    assert (await add(user, "ü" * 200)).title == "ü" * 200


async def test_the_same_request_creates_one_task_also_at_once(user: User) -> None:
    tasks = await asyncio.gather(*(add(user, request_id="once") for _ in range(5)))
    assert len({task.id for task in tasks}) == 1
    assert await titles(user) == ["Buy milk"]
    again = await refusal(add(user, "Another", request_id="once"))
    assert (again.code, again.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_a_request_id_is_a_users_own(chat: ChatProcess, user: User) -> None:
    mine, its = await add(user, request_id="once"), await add(chat.user(), request_id="once")
    assert mine.id != its.id


async def test_completing_keeps_the_first_time_and_can_be_undone(user: User) -> None:
    task = await add(user)
    done = await complete(user, task.id)
    assert done.completed
    assert done.HasField("complete_time")
    assert await complete(user, task.id) == done
    opened = await update(user, task.id, completed=False)
    assert (opened.completed, opened.HasField("complete_time")) == (False, False)
    assert opened.update_time.ToDatetime() > done.update_time.ToDatetime() > task.update_time.ToDatetime()


async def test_an_update_changes_what_it_names_and_nothing_else(user: User) -> None:
    task = await add(user, description="Two litres", due_time=at("2026-12-01T10:00:00+00:00"))
    renamed = await update(user, task.id, title=" Buy oat milk ")
    assert (renamed.title, renamed.description, renamed.due_time) == ("Buy oat milk", "Two litres", task.due_time)
    emptied = await update(
        user, task.id, title="ignored", update_mask=field_mask_pb2.FieldMask(paths=["description", "due_time"])
    )
    assert (emptied.title, emptied.description, emptied.HasField("due_time")) == ("Buy oat milk", "", False)
    assert await update(user, task.id) == emptied


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"title": "x" * 201}, "title"),
        ({"title": " "}, "title"),
        ({"update_mask": field_mask_pb2.FieldMask(paths=["title"])}, "title"),
        ({"update_mask": field_mask_pb2.FieldMask(paths=["id"])}, "update_mask"),
        ({"description": "x" * 2001}, "description"),
    ],
)
async def test_a_wrong_update_changes_nothing(user: User, fields: dict[str, Any], wrong: str) -> None:
    task = await add(user)
    refused = await refusal(update(user, task.id, **fields))
    assert (refused.reason, refused.fields) == ("INVALID_REQUEST", [wrong])
    assert await get(user, task.id) == task


async def test_a_deleted_task_is_gone(user: User) -> None:
    task = await add(user)
    await delete(user, task.id)
    assert await titles(user) == []
    assert (await refusal(delete(user, task.id))).reason == "TASK_NOT_FOUND"


async def every_refusal(user: User, task_id: str) -> list[Refusal]:
    calls: list[Awaitable[object]] = [
        get(user, task_id),
        update(user, task_id, title="Mine"),
        complete(user, task_id),
        delete(user, task_id),
    ]
    return [await refusal(call) for call in calls]


async def test_another_users_task_is_as_one_that_does_not_exist(chat: ChatProcess, user: User) -> None:
    task, stranger = await add(user), chat.user()
    for foreign, absent in zip(await every_refusal(stranger, task.id), await every_refusal(stranger, NEVER), strict=True):
        assert (foreign.code, foreign.reason, foreign.message) == (absent.code, absent.reason, absent.message)
        assert (foreign.code, foreign.reason) == (grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND")
    assert await titles(stranger) == []
    assert await get(user, task.id) == task


async def test_rows_of_others_are_out_of_reach_even_without_a_where(user: User, database: ServiceDatabase) -> None:
    await add(user)
    async with await psycopg.AsyncConnection.connect(database.url) as connection:
        for table in ("tasks", "task_changes", "task_counters"):
            counted = await connection.execute(sql.SQL("select count(*) from {}").format(sql.Identifier(table)))
            assert await counted.fetchone() == (0,)


async def test_a_path_with_another_user_is_refused(user: User) -> None:
    assert (await refusal(listed(user, user_id=NEVER))).code == grpc.StatusCode.PERMISSION_DENIED
    assert (await listed(user, user_id="me")).tasks == []
    assert (await add(user, user_id=user.id)).title == "Buy milk"


async def test_filters_must_all_hold(user: User) -> None:
    await add(user, "Buy milk", due_time=at("2026-12-01T10:00:00+00:00"))
    done = await add(user, "Call Ana", description="about the MILK round", due_time=at("2026-12-02T10:00:00+00:00"))
    await add(user, "100% sure_thing")
    await complete(user, done.id)
    assert await titles(user) == ["100% sure_thing", "Call Ana", "Buy milk"]
    assert await titles(user, completed=True) == ["Call Ana"]
    assert await titles(user, completed=False) == ["100% sure_thing", "Buy milk"]
    assert await titles(user, text="milk") == ["Call Ana", "Buy milk"]
    assert await titles(user, text="%") == ["100% sure_thing"]
    assert await titles(user, text="sure_") == ["100% sure_thing"]
    assert await titles(user, text="e_t") == ["100% sure_thing"]
    noon = at("2026-12-02T10:00:00+00:00")
    assert await titles(user, due_before=noon) == ["Buy milk"]
    assert await titles(user, due_from=noon) == ["Call Ana"]
    assert await titles(user, due_from=noon, completed=False) == []


async def test_pages_stay_stable_while_tasks_are_added(user: User) -> None:
    for number in range(7):
        await add(user, str(number))
    seen: list[str] = []
    token = ""
    while True:
        page = await listed(user, page_size=3, page_token=token)
        seen += [task.title for task in page.tasks]
        await add(user, f"later {len(seen)}")
        token = page.next_page_token
        if not token:
            break
    assert seen == ["6", "5", "4", "3", "2", "1", "0"]


async def test_a_page_token_that_this_list_did_not_make_is_refused(user: User) -> None:
    for token in ("x", "WyJ0YXNrcyIsMSwieCJd", "WyJ0YXNrcyIsOTk5OTk5OTk5OTk5OTk5OTk5OTksIngiXQ"):
        assert (await refusal(listed(user, page_token=token))).reason == "INVALID_PAGE_TOKEN"


async def test_the_list_costs_one_statement_whatever_its_length(chat: ChatProcess, user: User) -> None:
    counts = []
    for more in (1, 20):
        for number in range(more):
            await add(user, str(number))
        chat.statements.clear()
        await listed(user, text="1", completed=False)
        of_tasks = [one for one in chat.statements if "from tasks" in one.lower()]
        counts.append(len(of_tasks))
    assert counts == [1, 1]


async def test_a_user_may_have_so_many_tasks(start_chat: Start) -> None:
    async with start_chat(max_tasks=2) as chat:
        user = chat.user()
        first, _ = await add(user), await add(user)
        refused = await refusal(add(user))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED")
        assert refused.metadata == {"kind": "tasks", "limit": "2"}
        await asyncio.gather(*(refusal(add(user)) for _ in range(3)))
        await delete(user, first.id)
        await add(user)
        assert len(await titles(user)) == 2
