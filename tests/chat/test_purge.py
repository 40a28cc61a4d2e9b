"""PurgeUser: of a deleted user nothing is left, in no table, job or key, nor at the provider, whoever writes meanwhile."""

import asyncio
import uuid
from collections.abc import Awaitable
from typing import Any

import grpc
import httpx2
import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql
from redis.asyncio import Redis

from parley.chat.v1 import chat_pb2, conversation_pb2, mcp_server_pb2, mcp_server_pb2_grpc, task_pb2
from services.chat.conversation.store import with_logs
from services.chat.log.entries import KEY
from services.chat.schema import generations
from services.runtime.database import open_database
from simulator.control import ScriptedAnswer
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.chat.conftest import Start
from tests.chat.service import ChatProcess, User, held, refusal, unpacked
from tests.issuer import Issuer, Metadata

CANARY = "Kryptozebrafink"


async def purge_once(chat: ChatProcess, user_id: str, metadata: Metadata) -> None:
    await User(chat.channel, metadata, user_id).chat.PurgeUser(
        chat_pb2.PurgeUserRequest(user_id=user_id), metadata=metadata, timeout=30
    )


async def purged(chat: ChatProcess, user_id: str, issuer: Issuer, *, within_seconds: float = 30) -> None:
    """Asks, as auth does, until chat confirms."""
    async with asyncio.timeout(within_seconds):
        while True:
            try:
                return await purge_once(chat, user_id, issuer.as_service("auth", audience="chat"))
            except grpc.aio.AioRpcError as error:
                if unpacked(error).reason != "PURGE_UNFINISHED":
                    raise
            await asyncio.sleep(0.3)


async def left(database: ServiceDatabase, *canaries: str) -> list[str]:
    """The rows of every table, jobs included, that hold one of these; but for the fence's own."""
    found = []
    async with await psycopg.AsyncConnection.connect(database.migration_url) as connection:
        await connection.execute("select set_config('parley.scope', 'service', true)")
        tables = await connection.execute(
            "select relname from pg_class where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace"
        )
        names = [name for (name,) in await tables.fetchall()]
        assert {"messages", "procrastinate_jobs", "usage_days", "mcp_servers", "task_changes"} <= set(names)
        for name in names:
            rows = await connection.execute(sql.SQL("select t::text from {} t").format(sql.Identifier(name)))
            for (row,) in await rows.fetchall():
                sought = [form for one in canaries for form in (one.lower(), one.encode().hex())]
                found += [f"{name}: {row}"] if any(one in row.lower() for one in sought) else []
    return [one for one in found if not one.startswith("purged_users: ")]


async def keys_of(redis_url: str, generation_ids: list[str]) -> list[str]:
    async with Redis.from_url(redis_url) as redis:
        return [one for one in generation_ids if await redis.exists(KEY + one)]


async def plant(user: User) -> list[str]:
    """The canary through every door; the ids of the generations."""
    done = await user.create(f"Remember my {CANARY}", metadata={"note": CANARY})
    again = await user.create(f"And again {CANARY}", conversation_id=done.conversation_id)
    await user.edit((await user.messages(done.conversation_id))[-2], f"Rather {CANARY}")
    create = conversation_pb2.CreateConversationRequest(title=CANARY)
    await user.conversations.CreateConversation(create, metadata=user.metadata)
    task = await user.tasks.CreateTask(task_pb2.CreateTaskRequest(title=CANARY, description=CANARY), metadata=user.metadata)
    gone = await user.tasks.CreateTask(task_pb2.CreateTaskRequest(title=CANARY), metadata=user.metadata)
    await user.tasks.DeleteTask(task_pb2.DeleteTaskRequest(task_id=gone.id), metadata=user.metadata)
    assert task.id
    return [done.generation_id, again.generation_id]


async def add_server(chat: ChatProcess, user: User) -> None:
    stub = mcp_server_pb2_grpc.McpServerServiceStub(chat.channel)
    request = mcp_server_pb2.CreateMcpServerRequest(
        label=CANARY, url=f"https://1.1.1.1/{CANARY}", headers={"authorization": CANARY}
    )
    await stub.CreateMcpServer(request, metadata=user.metadata)


async def test_nothing_is_left_and_somebody_elses_stays(
    chat: ChatProcess, user: User, issuer: Issuer, database: ServiceDatabase, redis_url: str
) -> None:
    generation_ids = await plant(user)
    await add_server(chat, user)
    other = chat.user()
    kept = await other.create("Hello")
    assert {row.split(":")[0] for row in await left(database, CANARY)} >= {
        "messages",
        "tasks",
        "task_changes",
        "mcp_servers",
    }
    refused = await refusal(purge_once(chat, user.id, issuer.as_service("auth", audience="chat")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "PURGE_UNFINISHED")
    assert refused.retry_seconds is not None
    assert await left(database, CANARY, user.id) == []
    await purged(chat, user.id, issuer)
    await purge_once(chat, user.id, issuer.as_service("auth", audience="chat"))
    assert await left(database, CANARY, user.id) == []
    assert await keys_of(redis_url, generation_ids) == []
    assert len(await other.messages(kept.conversation_id)) == 2
    assert await left(database, other.id) != []


@pytest.mark.parametrize("is_elsewhere", [False, True])
async def test_a_running_reply_ends_and_leaves_nothing(  # noqa: PLR0913 - fixtures
    start_chat: Start,
    simulator: Running,
    issuer: Issuer,
    database: ServiceDatabase,
    redis_url: str,
    *,
    is_elsewhere: bool,
) -> None:
    background: dict[str, Any] = {"openai_background": "on"}
    async with start_chat(**background) as here, start_chat(**background) as there:
        user = here.user()
        await simulator.control.script(ScriptedAnswer(text=f"{CANARY} " * 6, hold_after_tokens=3))
        call = user.open_stream("Go on for ever")
        started = (await call.read()).started
        await held(simulator)
        ids = await response_ids(database, user.id)
        assert await kept_at_provider(simulator, ids[0])
        await purged(there if is_elsewhere else here, user.id, issuer)
        assert await left(database, CANARY, user.id, started.generation_id) == []
        assert await keys_of(redis_url, [started.generation_id]) == []
        assert not await kept_at_provider(simulator, ids[0])
        await simulator.control.release()
        while (told := await call.read()) is not grpc.aio.EOF:
            last = told
        assert last.WhichOneof("event") == "cancelled"
        await asyncio.sleep(0.5)
        assert await left(database, CANARY, user.id, started.generation_id) == []
        assert await keys_of(redis_url, [started.generation_id]) == []


async def response_ids(database: ServiceDatabase, user_id: str) -> list[str]:
    async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as connection:
        await connection.execute("select set_config('parley.scope', 'service', false)")
        query = "select provider_response_ids from generations where user_id = %s"
        for _ in range(200):
            rows = await (await connection.execute(query, [user_id])).fetchall()
            if found := [one for (ids,) in rows for one in ids]:
                return found
            await asyncio.sleep(0.05)
    raise AssertionError("the provider keeps nothing")


async def kept_at_provider(simulator: Running, response_id: str) -> bool:
    async with httpx2.AsyncClient(trust_env=False) as client:
        headers = {"authorization": "Bearer any"}
        answer = await client.get(f"{simulator.base_url}/responses/{response_id}", headers=headers)
        return bool(answer.status_code == httpx2.codes.OK)


async def test_a_log_whose_end_redis_was_not_told_goes_too(
    chat: ChatProcess, user: User, issuer: Issuer, database: ServiceDatabase, redis_url: str
) -> None:
    done = await user.create(CANARY)
    async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as connection:
        await connection.execute("select set_config('parley.scope', 'service', false)")
        await connection.execute("update generations set end_time = now() - interval '5 minutes'")
    async with Redis.from_url(redis_url) as redis:
        assert await redis.expire(KEY + done.generation_id, 600)
    await purged(chat, user.id, issuer)
    assert await keys_of(redis_url, [done.generation_id]) == []


async def test_a_batch_reads_the_generations_of_its_conversations_and_no_others(database: ServiceDatabase) -> None:
    user_id = str(uuid.uuid4())
    async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as owner:
        await owner.execute("select set_config('parley.scope', 'service', false)")
        await owner.execute(_MANY_CONVERSATIONS, [user_id])
        await owner.execute(_THEIR_GENERATIONS)
        await owner.execute("analyze generations")
        rows = await (await owner.execute("select id::text from conversations limit 50")).fetchall()
    ids = [conversation_id for (conversation_id,) in rows]
    # What a deletion's cascade asks for each conversation.
    columns = generations.c
    cascade = sa.delete(generations).where(columns.conversation_id == ids[0], columns.user_id == user_id)
    opened = open_database(database.url, pool_size=1)
    async with opened.service_transaction() as connection:
        for statement in (with_logs(ids, user_id=user_id), cascade):
            shown = statement.compile(dialect=opened.engine.dialect, compile_kwargs={"literal_binds": True})
            plan = "\n".join((await connection.execute(sa.text(f"explain {shown}"))).scalars())
            assert "generations_conversation_idx" in plan, plan
            assert "Seq Scan" not in plan, plan
    await opened.close()


_MANY_CONVERSATIONS = "insert into conversations (id, user_id) select gen_random_uuid(), %s from generate_series(1, 5000)"
_THEIR_GENERATIONS = (
    "insert into generations (id, user_id, conversation_id, user_message_id, reply_message_id, request_digest, status,"
    " owner, lease_expire_time, model, end_time) select gen_random_uuid(), user_id, id, gen_random_uuid(),"
    " gen_random_uuid(), '', 'completed', 'nobody', now(), 'any', now() from conversations"
)


async def test_nobody_writes_for_them_any_more(
    chat: ChatProcess, user: User, issuer: Issuer, database: ServiceDatabase
) -> None:
    done = await user.create("Hello")
    await purged(chat, user.id, issuer)
    calls: list[Awaitable[object]] = [
        user.create(CANARY),
        user.tasks.CreateTask(task_pb2.CreateTaskRequest(title=CANARY), metadata=user.metadata),
        user.conversations.CreateConversation(
            conversation_pb2.CreateConversationRequest(title=CANARY), metadata=user.metadata
        ),
        add_server(chat, user),
    ]
    for call in calls:
        refused = await refusal(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "USER_DELETED")
    missing = await refusal(user.create(CANARY, conversation_id=done.conversation_id))
    assert missing.reason == "CONVERSATION_NOT_FOUND"
    assert await left(database, CANARY, user.id) == []


_WRITERS = 6


async def test_writers_at_the_same_time_bring_nothing_back(
    start_chat: Start, issuer: Issuer, database: ServiceDatabase
) -> None:
    async with start_chat() as here, start_chat() as there:
        user, stop, enough, written = here.user(), asyncio.Event(), asyncio.Event(), 0
        allowed = {"USER_DELETED", "CONVERSATION_NOT_FOUND", "CONFLICT", "GENERATION_INTERRUPTED", "CONVERSATION_BUSY"}

        async def write(through: User) -> None:
            nonlocal written
            conversation_id = ""
            while not stop.is_set():
                try:
                    task = task_pb2.CreateTaskRequest(title=CANARY)
                    await through.tasks.CreateTask(task, metadata=through.metadata)
                    done = await through.create(CANARY, conversation_id=conversation_id)
                    conversation_id = done.conversation_id
                    written += 1
                    if written > _WRITERS:
                        enough.set()
                except grpc.aio.AioRpcError as error:
                    if unpacked(error).reason not in allowed:
                        raise
                    conversation_id = ""

        writers = [asyncio.create_task(write(each)) for each in (user, user.at(there)) * (_WRITERS // 2)]
        async with asyncio.timeout(30):
            await enough.wait()
        await purged(here, user.id, issuer)
        stop.set()
        await asyncio.gather(*writers)
        await asyncio.sleep(0.5)
        assert await left(database, CANARY, user.id) == []


async def test_only_auth_for_itself_may_ask(
    chat: ChatProcess, user: User, issuer: Issuer, database: ServiceDatabase
) -> None:
    await user.create("Hello")
    for metadata in (
        user.metadata,
        issuer.as_service("sms", audience="chat"),
        issuer.as_service("auth", audience="chat", user_id=user.id),
        issuer.as_service("sms", audience="chat", user_id=user.id),
    ):
        refused = await refusal(purge_once(chat, user.id, metadata))
        assert refused.reason == "ACCESS_DENIED"
    for rubbish in ("", "nobody", "x" * 500):
        refused = await refusal(purge_once(chat, rubbish, issuer.as_service("auth", audience="chat")))
        assert refused.reason == "INVALID_REQUEST"
    assert await left(database, user.id) != []
