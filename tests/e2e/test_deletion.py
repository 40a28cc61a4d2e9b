"""A person leaves: nothing is left anywhere, whatever was under way, and the audit log says that it was so."""

import asyncio
import contextlib

import httpx2
import psycopg
from psycopg import sql
from redis.asyncio import Redis

from suite.sockets import socket_folder
from tests.e2e.harness import PASSWORD, Client, Json, Suite, database_of
from tests.e2e.test_memory import fact_about, said, until

CANARY = "Kryptozebrafink"
SERVICES = ("auth", "chat", "memory")
# What tells that there was a deletion: ids and times.
KEPT = {"audit_events", "deletions", "deletion_services", "purged_users"}


async def administrator(suite: Suite) -> Client:
    """Somebody who registered and was made an administrator."""
    client = await Client(suite.url).register()
    async with await psycopg.AsyncConnection.connect(database_of(suite.data, "auth"), autocommit=True) as connection:
        await connection.execute("update users set is_admin = true where id = %s", [client.user["id"]])
    answer = await client.call("POST", "/api/v1/auth/login", username=client.username, password=PASSWORD)
    client.tokens = answer["tokens"]
    return client


async def rows_with(suite: Suite, *canaries: str) -> list[str]:
    """Every row of every table of every service that holds one of these; as the superuser, who sees all."""
    found = []
    for service in SERVICES:
        async with await psycopg.AsyncConnection.connect(database_of(suite.data, service)) as connection:
            tables = await connection.execute(
                "select nspname, relname from pg_class join pg_namespace on pg_namespace.oid = relnamespace"
                " where relkind in ('r', 'p') and nspname not in ('pg_catalog', 'information_schema')"
            )
            for schema, table in await tables.fetchall():
                rows = await connection.execute(sql.SQL("select t::text from {} t").format(sql.Identifier(schema, table)))
                for (row,) in await rows.fetchall():
                    if table not in KEPT and any(one.lower() in row.lower() for one in canaries):
                        found.append(f"{service}.{table}: {row[:200]}")
    return found


async def keys_with(suite: Suite, *canaries: str) -> list[str]:
    found = []
    socket = socket_folder(suite.data / "redis", "redis") / "redis.sock"
    async with Redis(unix_socket_path=str(socket)) as redis:
        async for key in redis.scan_iter(count=1000):
            held = key.lower() + (await redis.dump(key) or b"").lower()
            found += [key.decode()] if any(one.lower().encode() in held for one in canaries) else []
    return found


async def test_everything_goes_and_what_was_under_way_brings_nothing_back(remembering: Suite) -> None:
    person, admin = await Client(remembering.url).register(), await administrator(remembering)
    user_id = person.user["id"]
    preferences = {"instructions": f"I breed {CANARY}"}
    await person.call("PATCH", "/api/v1/users/me/preferences", **preferences)
    await said(person, f"My name is {CANARY} and I live in Oslo")
    await said(person, f"My favourite bird is the {CANARY}")
    await person.call("POST", "/api/v1/tasks", title=f"Feed the {CANARY}")
    await until(lambda: fact_about(person, "Oslo"))
    assert {row.split(".")[0] for row in await rows_with(remembering, CANARY)} == set(SERVICES)

    stop = asyncio.Event()

    async def go_on() -> None:
        """Somebody whose other devices do not know yet."""
        while not stop.is_set():
            with contextlib.suppress(AssertionError, httpx2.HTTPError):
                await person.streamed(f"And another {CANARY}")
            with contextlib.suppress(AssertionError, httpx2.HTTPError):
                await person.call("POST", "/api/v1/tasks", title=CANARY)

    others = [asyncio.create_task(go_on()) for _ in range(3)]
    await asyncio.sleep(0.5)
    begun = await person.call("DELETE", "/api/v1/users/me")
    assert [one["service"] for one in begun["services"]] == ["chat", "memory", "sms"]

    async def done() -> Json | None:
        found = await admin.call("GET", f"/api/v1/admin/deletions/{user_id}")
        return found if "complete_time" in found else None

    found = await until(done)
    assert all("confirm_time" in one for one in found["services"])
    stop.set()
    await asyncio.gather(*others)
    await asyncio.sleep(2)
    assert await rows_with(remembering, CANARY, user_id, person.username) == []
    assert await keys_with(remembering, CANARY, user_id) == []
    assert await person.refusal("GET", "/api/v1/auth/me") == (401, "SESSION_ENDED")
    events = (await admin.call("GET", f"/api/v1/admin/audit?user_id={user_id}"))["events"]
    assert [one["kind"] for one in events][:2] == ["deletion_completed", "user_deleted"]
    await person.close()
    await admin.close()
