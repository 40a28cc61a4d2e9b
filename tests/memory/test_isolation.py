"""Row-level security and the tables themselves."""

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg import sql
from sqlalchemy import create_engine

from services.memory.consequences import Consequences
from services.memory.schema import metadata
from services.memory.store import TurnStore
from services.memory.summaries.limits import SummaryLimits
from services.memory.turns import ConversationKey
from services.runtime.database import async_url, open_database
from suite.databases import ServiceDatabase
from tests.memory.service import MemoryService, message, new_id

NO_SUMMARIES = SummaryLimits(
    after_messages=100, every_messages=100, delay_seconds=0, portrait_delay_seconds=0, most_input_tokens=1, most_characters=1
)
TABLES = ("conversations", "turns", "forgotten_turns", "pending_evictions")


async def _count(connection: psycopg.AsyncConnection[tuple[int]], table: str) -> int:
    counting = sql.SQL("select count(*) from {}").format(sql.Identifier(table))
    row = await (await connection.execute(counting)).fetchone()
    assert row is not None
    return row[0]


async def _fill_every_table(memory: MemoryService) -> str:
    conversation_id = new_id()
    await memory.record(conversation_id, [message(1), message(2), message(3)])
    store = memory.memory._store
    await store.delete_end(ConversationKey(memory.user_id, conversation_id), from_sequence=3)
    return conversation_id


async def test_the_services_role_sees_no_row_without_a_user_and_none_of_another(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    await _fill_every_table(memory)
    for user_id, expected in (("", 0), (new_id(), 0), (memory.user_id, 1)):
        async with await psycopg.AsyncConnection[tuple[int]].connect(database.url) as connection:
            await connection.execute("select set_config('parley.user_id', %s, true)", [user_id])
            counts = [min(1, await _count(connection, table)) for table in TABLES]
        assert counts == [expected] * len(TABLES)


async def test_the_services_role_cannot_write_a_row_of_another_user(
    memory: MemoryService, database: ServiceDatabase
) -> None:
    async with await psycopg.AsyncConnection.connect(database.url) as connection:
        await connection.execute("select set_config('parley.user_id', %s, true)", [memory.user_id])
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            await connection.execute(
                "insert into conversations (user_id, conversation_id, version) values (%s, %s, 1)", [new_id(), new_id()]
            )


async def test_versions_grow_also_when_the_clock_does_not(memory: MemoryService, database: ServiceDatabase) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id, [message(1)])
    async with await psycopg.AsyncConnection.connect(database.migration_url) as connection:
        await connection.execute("select set_config('parley.scope', 'service', true)")
        await connection.execute("update conversations set version = 9000000000000000")
    await memory.record(conversation_id, [message(2)])
    head = await memory.memory._store.head(ConversationKey(memory.user_id, conversation_id))
    assert head is not None
    assert (head.version, head.last_sequence) == (9000000000000001, 2)
    assert len(await memory.texts(conversation_id)) == 2


async def test_the_tables_are_what_the_migrations_make(database: ServiceDatabase) -> None:
    engine = create_engine(async_url(database.migration_url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        differences = compare_metadata(context, metadata)
    engine.dispose()
    assert [one for one in differences if "alembic_version" not in str(one)] == []


async def test_a_conversation_survives_a_new_process(memory: MemoryService, database: ServiceDatabase) -> None:
    conversation_id = await _fill_every_table(memory)
    other = open_database(database.url, pool_size=1)
    found = await TurnStore(other, Consequences({}, NO_SUMMARIES), concurrency=1).latest(
        ConversationKey(memory.user_id, conversation_id), most_messages=10, most_tokens=1000
    )
    await other.close()
    assert found is not None
    assert [one.sequence for one in found[1].newest_first] == [2, 1]
