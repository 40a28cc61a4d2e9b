"""What lasts over a restart, and what does not outlast its deletion in any tier."""

import asyncio
import base64
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from redis.asyncio import Redis

from tests.e2e.harness import Client, Suite, check_sequence, database_of, environment, text_of
from tests.e2e.test_tools import PIXEL

CANARY = "Xylotheque-7731"
SERVICES = ("auth", "chat", "memory")
FORGET_SECONDS = 15.0


@pytest.fixture
async def data() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="parley-e2e-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


async def test_a_conversation_outlasts_a_restart_and_its_deletion_reaches_every_tier(data: Path) -> None:
    first = await Suite.start(environment(data))
    client = await Client(first.url).register()
    events = await client.streamed(f"Remember the word {CANARY}.")
    conversation = events[0].data["started"]["conversation_id"]
    assert "chat" in await _parts_that_hold_it(data)
    await _check_a_stop_tells_open_streams(first, client)

    second = await Suite.start(first.environment)
    try:
        full = await client.call("GET", f"/api/v1/chat/conversations/{conversation}/full")
        assert [message["text"] for message in full["messages"]] == [f"Remember the word {CANARY}.", text_of(events)]
        reply = await client.call(
            "POST", "/api/v1/chat/completions", message="What did I say before?", conversation_id=conversation
        )
        assert CANARY in reply["message"]["text"]
        await _say_it_in_every_way(client, conversation)
        assert await _parts_that_hold_it(data) >= {"chat", "memory", "redis"}
        await client.call("DELETE", f"/api/v1/chat/conversations/{conversation}")
        give_up = time.monotonic() + FORGET_SECONDS
        while holders := await _holders(data):
            assert time.monotonic() < give_up, f"the word is still in {sorted(holders)}"
            await asyncio.sleep(0.2)
    finally:
        await client.close()
        assert await second.stop() == 0


async def _say_it_in_every_way(client: Client, conversation: str) -> None:
    """As query, source, code, thought, argument of a tool, image, schema, metadata, title and earlier version."""
    schema = {"type": "object", "properties": {CANARY: {"type": "string"}}}
    image = base64.b64encode(PIXEL + CANARY.encode()).decode()
    ways: list[dict[str, Any]] = [
        {"message": f"search the web for {CANARY}", "use_web_search": True, "reasoning_effort": "high"},
        {"message": f"search the web for {CANARY} again", "use_web_search": True, "metadata": {"note": CANARY}},
        {"message": "calculate 2 + 2", "use_code_interpreter": True, "instructions": f"Say {CANARY}."},
        {"message": f"rename the task nothing to {CANARY}", "use_tasks": True},
        {"message": "look", "images": [{"data": image}, {"url": f"https://example.com/{CANARY}.png"}]},
        {"message": f"fill in {CANARY}", "response_schema": schema},
    ]
    for way in ways:
        check_sequence(await client.streamed(conversation_id=conversation, **way))
    path = f"/api/v1/chat/conversations/{conversation}"
    messages = (await client.call("GET", f"{path}/messages?page_size=200"))["messages"]
    async with client.events("POST", f"{path}/messages/{messages[-1]['id']}:regenerate", json={}) as events:
        check_sequence([event async for event in events])
    await client.call("PATCH", path, title=f"About {CANARY}")
    # A stream that runs when its conversation goes.
    running = client.stream(f"go on about {CANARY}", conversation_id=conversation, model="sim-400-50-0")
    async with running as events:
        await anext(events)


async def _check_a_stop_tells_open_streams(suite: Suite, client: Client) -> None:
    """A reply that outlasts the drain ends with a terminal event, and the text so far, before the connection goes."""
    async with client.stream("a long one", model="sim-400-50-0") as events:
        seen = [await anext(events), await anext(events)]
        stopping = asyncio.create_task(suite.stop())
        seen += [event async for event in events]
    check_sequence(seen)
    assert seen[-1].data["failed"]["reason"] == "GENERATION_INTERRUPTED"
    assert seen[-1].data["failed"]["partial_message"]["text"] == text_of(seen)
    assert await stopping == 0


async def _parts_that_hold_it(data: Path) -> set[str]:
    return {holder.partition(" ")[0] for holder in await _holders(data)}


async def _holders(data: Path) -> set[str]:
    """The tables, and the keys of Redis, that hold the canary anywhere in a row, key or value."""
    tables = [f"{service} {table}" for service in SERVICES for table in await _tables_that_hold_it(data, service)]
    return {*tables, *(f"redis {key}" for key in await _keys_that_hold_it(data))}


async def _tables_that_hold_it(data: Path, service: str) -> list[str]:
    found = []
    async with await psycopg.AsyncConnection.connect(database_of(data, service)) as connection:
        cursor = await connection.execute(
            "select oid::regclass::text from pg_class where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace"
        )
        for (table,) in await cursor.fetchall():
            query = sql.SQL("select exists (select from {} as one where one::text ilike %s)").format(sql.SQL(table))
            row = await (await connection.execute(query, (f"%{CANARY}%",))).fetchone()
            if row is not None and row[0]:
                found.append(str(table))
    return found


async def _keys_that_hold_it(data: Path) -> list[str]:
    socket = next((data / "redis").rglob("redis.sock"))
    async with Redis(unix_socket_path=str(socket), decode_responses=True, encoding_errors="replace") as redis:
        return [str(key) async for key in redis.scan_iter() if CANARY in str(key) + await _value(redis, key)]


async def _value(redis: Redis, key: str) -> str:
    match await redis.type(key):
        case "string":
            return str(await redis.get(key))
        case "hash":
            return str(await redis.hgetall(key))
        case "list":
            return str(await redis.lrange(key, 0, -1))
        case "set":
            return str(await redis.smembers(key))
        case "zset":
            return str(await redis.zrange(key, 0, -1))
        case "stream":
            return str(await redis.xrange(key))
        case kind:
            raise AssertionError(f"the test does not know how to read a {kind!r}")
