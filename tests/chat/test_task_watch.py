"""WatchTasks: changes as they happen, by whomever and wherever, and again after a cut."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import psycopg
import pytest

from parley.chat.v1 import task_pb2
from services.chat.tasks import feed
from services.chat.tasks.change_store import TaskChangeStore
from services.runtime.database import open_database
from services.runtime.errors import ResourceExhausted
from suite.databases import ServiceDatabase
from tests.chat.conftest import Start
from tests.chat.service import ChatProcess, User, eventually, refusal, unpacked
from tests.chat.test_tasks import add, complete, delete, update
from tests.issuer import Issuer
from tests.work import PATIENCE_SECONDS


class Watch:
    """A stream, and what it told so far."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def next(self, *, within_seconds: float = PATIENCE_SECONDS) -> task_pb2.TaskEvent:
        async with asyncio.timeout(within_seconds):
            event = await self.call.read()
        assert isinstance(event, task_pb2.TaskEvent), "the stream ended"
        return event

    async def take(self, count: int) -> list[task_pb2.TaskEvent]:
        return [await self.next() for _ in range(count)]


@asynccontextmanager
async def watching(user: User, *, header: str = "", **fields: Any) -> AsyncIterator[Watch]:
    """A watch that has begun."""
    metadata = (*user.metadata, *([("last-event-id", header)] if header else []))
    call = user.tasks.WatchTasks(task_pb2.WatchTasksRequest(**fields), metadata=metadata, timeout=60)
    try:
        yield Watch(call)
    finally:
        call.cancel()


def kinds(events: Sequence[task_pb2.TaskEvent]) -> list[tuple[int, str | None]]:
    return [(event.sequence, event.WhichOneof("event")) for event in events]


async def test_a_watch_tells_every_change_from_now_on(user: User) -> None:
    await add(user, "Before")
    async with watching(user) as watch:
        assert kinds([await watch.next()]) == [(1, "started")]
        task = await add(user, "Milk")
        renamed = await update(user, task.id, title="Oat milk")
        done = await complete(user, task.id)
        await complete(user, task.id)
        await delete(user, task.id)
        events = await watch.take(4)
    assert kinds(events) == [(2, "created"), (3, "updated"), (4, "updated"), (5, "deleted_task_id")]
    assert [events[0].created, events[1].updated, events[2].updated] == [task, renamed, done]
    assert events[3].deleted_task_id == task.id


async def test_nobody_sees_the_changes_of_others(chat: ChatProcess, user: User) -> None:
    other = chat.user()
    async with watching(user) as watch, watching(other) as foreign:
        await asyncio.gather(watch.next(), foreign.next())
        await add(other, "Secret")
        await add(user, "Mine")
        assert (await watch.next()).created.title == "Mine"
        assert (await foreign.next()).created.title == "Secret"


async def test_changes_at_another_process_come_without_a_look_for_them(
    start_chat: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_POLL_SECONDS", 300.0)
    async with start_chat() as here, start_chat() as there:
        user = here.user()
        async with watching(user) as watch:
            await watch.next()
            told = asyncio.create_task(watch.next())
            # The subscription of the process may take a moment after its start.
            while not told.done():
                await add(user.at(there), "From there")
                await asyncio.wait([told], timeout=0.2)
            assert (await told).created.title == "From there"


async def test_without_redis_changes_at_another_process_come_within_a_second_or_so(start_chat: Start) -> None:
    nowhere = {"redis_url": "redis://127.0.0.1:1/0"}
    async with start_chat(**nowhere) as here, start_chat(**nowhere) as there:
        user = here.user()
        async with watching(user) as watch:
            await watch.next()
            await add(user.at(there), "From there")
            assert (await watch.next()).created.title == "From there"


async def test_two_processes_and_many_writers_leave_no_hole(start_chat: Start) -> None:
    async with start_chat() as here, start_chat() as there:
        user = here.user()
        async with watching(user) as one, watching(user.at(there)) as other:
            await asyncio.gather(one.next(), other.next())
            for _ in range(5):
                await asyncio.gather(*(add(user.at(process), "Task") for process in (here, there) for _ in range(4)))
            seen = [await one.take(40), await other.take(40)]
        assert [[event.sequence for event in events] for events in seen] == [list(range(1, 41))] * 2
        assert seen[0] == seen[1]


async def test_a_watch_that_was_cut_goes_on_where_it_was(user: User) -> None:
    for number in range(3):
        await add(user, str(number))
    async with watching(user, after_sequence=1) as watch:
        events = await watch.take(3)
        assert kinds(events) == [(1, "started"), (2, "created"), (3, "created")]
        assert not events[0].started.reset
        await add(user, "3")
        assert (await watch.next()).created.title == "3"
    async with watching(user, after_sequence=1, header="3") as watch:
        assert kinds(await watch.take(2)) == [(3, "started"), (4, "created")]
    async with watching(user, after_sequence=0) as watch:
        assert kinds(await watch.take(5))[-1] == (4, "created")


async def test_a_bad_last_event_id_is_refused(user: User) -> None:
    for header in ("x", "-1", "99999999999999999999"):
        async with watching(user, header=header) as watch:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await watch.next()
        assert unpacked(refused.value).reason == "INVALID_REQUEST"


async def test_changes_that_are_not_kept_any_more_mean_a_reset(user: User, database: ServiceDatabase) -> None:
    for number in range(3):
        await add(user, str(number))
    async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as connection:
        await connection.execute("select set_config('parley.scope', 'service', false)")
        await connection.execute("update task_changes set create_time = now() - interval '25 hours' where sequence <= 2")
    service = open_database(database.url, pool_size=1)
    assert await TaskChangeStore(service).forget_old() == 2
    await service.close()
    for after, reset in ((0, True), (1, True), (2, False), (3, False), (9, True)):
        async with watching(user, after_sequence=after) as watch:
            begin = await watch.next()
            assert (begin.started.reset, begin.sequence) == (reset, 3 if reset else after), after
            if after == 2:
                assert (await watch.next()).sequence == 3


async def test_silence_is_broken_by_heartbeats(start_chat: Start) -> None:
    async with start_chat(heartbeat_seconds=0.1) as chat:
        user = chat.user()
        async with watching(user) as watch:
            events = await watch.take(3)
            assert kinds(events) == [(0, "started"), (0, "heartbeat"), (0, "heartbeat")]
            await add(user)
            while (event := await watch.next()).WhichOneof("event") == "heartbeat":
                pass
            assert event.sequence == 1


async def test_a_watcher_that_does_not_keep_up_is_cut_and_can_go_on(chat: ChatProcess, user: User) -> None:
    feed = chat.task_feed
    async with asyncio.timeout(60):
        watch = feed.watch(user.id, None)
        begin = await anext(watch)
        assert begin is not None
        async with watching(user) as quick:
            await quick.next()
            for _ in range(6):
                await asyncio.gather(*(add(user) for _ in range(100)))
                await quick.take(100)
        with pytest.raises(ResourceExhausted) as cut:
            async for _ in watch:
                pass
        place = int(cut.value.metadata["last_sequence"])
        await watch.aclose()
    async with watching(user, after_sequence=place) as again:
        events = await again.take(601 - place)
        assert [event.sequence for event in events] == list(range(place, 601))


async def test_watchers_go_elsewhere_when_the_process_stops(start_chat: Start) -> None:
    async with start_chat() as chat:
        user = chat.user()
        async with watching(user) as watch:
            await watch.next()
            chat.task_feed.close()
            with pytest.raises(grpc.aio.AioRpcError) as stopped:
                await watch.next()
        assert unpacked(stopped.value).reason == "SERVICE_STOPPING"
        async with watching(user) as late:
            with pytest.raises(grpc.aio.AioRpcError) as stopped:
                await late.next()
        assert unpacked(stopped.value).reason == "SERVICE_STOPPING"


async def test_a_watcher_who_left_costs_nothing_any_more(chat: ChatProcess, user: User) -> None:
    async with watching(user) as watch:
        await watch.next()
        assert chat.task_feed.watchers == 1
    await eventually(lambda: chat.task_feed.watchers == 0)


async def test_many_idle_watchers_are_read_for_by_one_statement(chat: ChatProcess) -> None:
    users = [chat.user() for _ in range(30)]
    calls = [one.tasks.WatchTasks(task_pb2.WatchTasksRequest(), metadata=one.metadata, timeout=60) for one in users]
    for call in calls:
        await call.read()
    await asyncio.sleep(0.1)
    chat.statements.clear()
    await asyncio.sleep(2.2)
    looks = [one for one in chat.statements if "task_changes" in one]
    assert 1 <= len(looks) <= 3, looks
    for call in calls:
        call.cancel()


async def test_who_is_not_signed_in_watches_nothing(chat: ChatProcess) -> None:
    stranger = User(chat.channel, (), "nobody")
    asked = task_pb2.ListTasksRequest()
    assert (await refusal(stranger.tasks.ListTasks(asked, timeout=5))).code == grpc.StatusCode.UNAUTHENTICATED


async def test_a_place_that_is_far_ahead_is_told_to_begin_anew(user: User) -> None:
    await add(user, "Milk")
    async with watching(user, after_sequence=2**31 - 1) as watch:
        first = await watch.next()
    assert (first.sequence, first.started.reset) == (1, True)
    async with watching(user, header=str(2**31 - 1)) as watch:
        assert (await watch.next()).started.reset


async def test_a_watch_ends_with_its_session(start_chat: Start, issuer: Issuer) -> None:
    async with start_chat(heartbeat_seconds=0.2) as chat:
        user = chat.user()
        session_id = str(uuid.uuid4())
        signed_in = (("authorization", f"Bearer {issuer.user_token(user.id, session_id=session_id)}"),)
        call = user.tasks.WatchTasks(task_pb2.WatchTasksRequest(), metadata=signed_in, timeout=30)
        told: list[task_pb2.TaskEvent] = []
        ended = asyncio.create_task(refusal(_read(call, told)))
        await eventually(lambda: bool(told))
        issuer.ended.add(session_id)
        assert (await ended).reason == "SESSION_ENDED"
    assert {event.WhichOneof("event") for event in told} <= {"started", "heartbeat"}


async def _read(call: Any, told: list[task_pb2.TaskEvent]) -> None:
    told.append(await call.read())
    while (event := await call.read()) is not grpc.aio.EOF:
        told.append(event)


async def test_who_changes_much_at_once_holds_nobody_up(chat: ChatProcess, user: User) -> None:
    other = chat.user()
    await add(other, "Begin")
    burst = [asyncio.ensure_future(add(user, f"Task {number}")) for number in range(300)]
    await asyncio.sleep(0.05)
    await add(other, "Milk")
    assert sum(one.done() for one in burst) < 150, "it waited for the burst of another"
    await asyncio.gather(*burst)
