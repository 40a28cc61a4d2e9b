"""A call of a tool runs once: whoever runs it, however often it is asked for, wherever its process died."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from services.chat.records import Generation, ToolCall, Usage
from services.chat.rows import TURN, turn_of
from services.chat.tasks.store import TaskStore
from services.chat.tasks.verbs import TaskActions
from services.chat.tools.call_store import CallKey, RoundOver, ToolCallStore
from services.chat.tools.tool import ToolError
from services.runtime.database import Database, open_database
from services.runtime.errors import Unavailable
from simulator.control import ScriptedAnswer
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.chat.service import User, held
from tests.chat.test_tasks import titles

CALL = ToolCall("call_1", "add_task", "", '{"title": "Once"}')
USAGE = Usage(5, 0, 7, 0)
ITEM = {"type": "function_call", "call_id": "call_1", "name": "add_task", "arguments": CALL.arguments}


@dataclass
class Stores:
    """The stores of another process than the one that writes the reply."""

    generation: Generation
    calls: ToolCallStore
    actions: TaskActions

    async def add(self) -> str:
        [verb] = [one for one in self.actions.verbs if one.spec.name == "add_task"]
        key = CallKey(self.generation.id, CALL.id)
        return await verb.run({"title": "Once"}, user_id=self.generation.user_id, call=key)

    async def start(self, *, stored_items: int = 0, generation: Generation | None = None) -> None:
        over = RoundOver(stored_items, [ITEM], "resp_1", USAGE, [CALL])
        await self.calls.start_calls(generation or self.generation, over)


@asynccontextmanager
async def opened(database: ServiceDatabase) -> AsyncIterator[Database]:
    service = open_database(database.url, pool_size=4)
    yield service
    await service.close()


@pytest.fixture
async def stores(user: User, simulator: Running, database: ServiceDatabase) -> AsyncIterator[Stores]:
    """Of a generation that is running, and stays so until the simulator goes on."""
    await simulator.control.script(ScriptedAnswer(text="one two", hold_after_tokens=1))
    writing = asyncio.create_task(user.stream("Hi"))
    await held(simulator)
    async with opened(database) as service:
        async with service.transaction(user_id=user.id) as connection:
            row = (await connection.execute(TURN)).mappings().one()
        store = TaskStore(service, max_tasks=100, concurrency=2, on_change=lambda _user_id: None)
        yield Stores(turn_of(row).generation, ToolCallStore(service, concurrency=2), TaskActions(store))
        await simulator.control.release()
        await writing


async def test_the_same_call_changes_once_and_tells_the_same(stores: Stores, user: User) -> None:
    await stores.start()
    results = await asyncio.gather(*(stores.add() for _ in range(5)))
    assert len(set(results)) == 1
    assert await stores.add() == results[0]
    assert await titles(user) == ["Once"]
    [stored] = (await stores.calls.read_progress(stores.generation)).calls.values()
    assert (stored.status, stored.result) == ("succeeded", results[0])


async def test_a_result_that_is_stored_stays(stores: Stores, user: User) -> None:
    await stores.start()
    await stores.add()
    late = await stores.calls.finish_call(stores.generation, dataclasses.replace(CALL, status="failed", error="too late"))
    assert late.status == "succeeded"
    assert await titles(user) == ["Once"]


async def test_a_call_that_was_ended_as_failed_changes_nothing_any_more(stores: Stores, user: User) -> None:
    await stores.start()
    await stores.calls.finish_call(stores.generation, dataclasses.replace(CALL, status="failed", error="It took too long."))
    with pytest.raises(ToolError, match="It took too long"):
        await stores.add()
    assert await titles(user) == []


async def test_a_call_of_a_generation_that_is_over_changes_nothing(stores: Stores, user: User, simulator: Running) -> None:
    await stores.start()
    await simulator.control.release()
    for _ in range(500):
        if (await user.messages(stores.generation.conversation_id))[-1].status == "complete":
            break
        await asyncio.sleep(0.02)
    with pytest.raises(ToolError):
        await stores.add()
    assert await titles(user) == []


async def test_a_round_is_stored_once_and_by_its_owner_only(stores: Stores) -> None:
    await stores.start()
    await stores.start()
    progress = await stores.calls.read_progress(stores.generation)
    assert (progress.items, progress.response_id, progress.usage) == ([ITEM], "resp_1", USAGE)
    assert list(progress.calls) == ["call_1"]
    stale = dataclasses.replace(stores.generation, epoch=stores.generation.epoch + 1)
    with pytest.raises(Unavailable):
        await stores.start(stored_items=1, generation=stale)
    assert (await stores.calls.read_progress(stores.generation)).items == [ITEM]


async def test_items_with_nul_are_stored_without_it(stores: Stores) -> None:
    item = {"type": "function_call_output", "call_id": "x", "output": "a\x00b\\u0000c"}
    await stores.calls.start_calls(stores.generation, RoundOver(0, [item], "resp_1", None, [CALL]))
    assert (await stores.calls.read_progress(stores.generation)).items == [{**item, "output": "ab\\u0000c"}]
