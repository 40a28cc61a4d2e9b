"""What lasts over a restart, and what does not outlast its deletion in any tier."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from redis.asyncio import Redis

from tests.e2e.harness import Client, Suite, check_sequence, database_of, environment, text_of

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
    await _check_a_stop_tells_open_streams(first, client)

    second = await Suite.start(first.environment)
    try:
        full = await client.call("GET", f"/api/v1/chat/conversations/{conversation}/full")
        assert [message["text"] for message in full["messages"]] == [f"Remember the word {CANARY}.", text_of(events)]
        reply = await client.call(
            "POST", "/api/v1/chat/completions", message="What did I say before?", conversation_id=conversation
        )
        assert CANARY in reply["message"]["text"]
        assert await _holders(data) >= {"chat", "memory", "redis"}
        await client.call("DELETE", f"/api/v1/chat/conversations/{conversation}")
        async with asyncio.timeout(FORGET_SECONDS):
            while await _holders(data):  # noqa: ASYNC110 - another process's doing: there is no event to wait for
                await asyncio.sleep(0.1)
    finally:
        await client.close()
        assert await second.stop() == 0


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


async def _holders(data: Path) -> set[str]:
    """The databases, and Redis, that hold the canary anywhere in a row, key or value."""
    found = {service for service in SERVICES if await _database_holds(data, service)}
    if await _redis_holds(data):
        found.add("redis")
    return found


async def _database_holds(data: Path, service: str) -> bool:
    async with await psycopg.AsyncConnection.connect(database_of(data, service)) as connection:
        cursor = await connection.execute(
            "select oid::regclass::text from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace"
        )
        for (table,) in await cursor.fetchall():
            query = sql.SQL("select exists (select from {} as one where one::text ilike %s)").format(sql.SQL(table))
            row = await (await connection.execute(query, (f"%{CANARY}%",))).fetchone()
            if row is not None and row[0]:
                return True
    return False


async def _redis_holds(data: Path) -> bool:
    socket = next((data / "redis").rglob("redis.sock"))
    async with Redis(unix_socket_path=str(socket), decode_responses=True, encoding_errors="replace") as redis:
        async for key in redis.scan_iter():
            if CANARY in str(key) + await _value(redis, key):
                return True
    return False


async def _value(redis: Redis, key: str) -> str:
    match await redis.type(key):
        case "string":
            return str(await redis.get(key))
        case "hash":
            return str(await redis.hgetall(key))
        case "list":
            return str(await redis.lrange(key, 0, -1))
        case kind:
            raise AssertionError(f"the test does not know how to read a {kind!r}")
