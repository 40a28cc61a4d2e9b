"""The migrations make what the schema says, once, and the service's role is confined by it."""

import asyncio

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine

from services.chat.mcp import schema as mcp
from services.chat.schema import metadata
from services.chat.tasks import schema as tasks
from services.chat.usage import schema as usage
from services.runtime.database import async_url, open_database
from services.runtime.migrations import alembic_config, migrate
from suite.databases import ServiceDatabase

# Each module of tables adds its own to the metadata.
assert {tasks.tasks.metadata, mcp.mcp_servers.metadata, usage.usage_days.metadata} == {metadata}
OURS = set(metadata.tables)


def differences(url: str) -> list[object]:
    engine = create_engine(async_url(url), poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_server_default": False,
                "include_name": lambda name, kind, _: kind != "table" or name in OURS,
            },
        )
        found: list[object] = compare_metadata(context, metadata)
    engine.dispose()
    return found


async def test_the_head_of_the_migrations_is_the_schema(chat_database: ServiceDatabase) -> None:
    assert await asyncio.to_thread(differences, chat_database.migration_url) == []


async def test_there_is_one_head_and_migrating_again_changes_nothing(chat_database: ServiceDatabase) -> None:
    assert len(ScriptDirectory.from_config(alembic_config("services.chat")).get_heads()) == 1
    await asyncio.to_thread(migrate, "services.chat", chat_database.migration_url, service_role=chat_database.service_role)
    assert await asyncio.to_thread(differences, chat_database.migration_url) == []


async def test_the_services_role_is_confined(chat_database: ServiceDatabase) -> None:
    database = open_database(chat_database.url)
    await database.check_role()
    await database.close()
