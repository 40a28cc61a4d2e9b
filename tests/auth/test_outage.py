"""The database goes away and comes back: calls are refused as unavailable, the process stays and recovers."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from parley.auth.v1 import auth_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import Unavailable
from suite.databases import ServiceDatabase
from suite.postgres import EmbeddedPostgres
from tests.auth.harness import RunningAuth, make_settings, new_name, refusal, running_auth


@pytest.fixture
async def lonely(own_database: ServiceDatabase, tmp_path: Path) -> AsyncIterator[RunningAuth]:
    async with running_auth(own_database, make_settings(own_database, tmp_path)) as auth:
        yield auth


async def set_reachable(postgres: EmbeddedPostgres, role: str, *, reachable: bool) -> None:
    async with await psycopg.AsyncConnection.connect(postgres.admin_url, autocommit=True) as connection:
        may = sql.SQL("login" if reachable else "nologin")
        await connection.execute(sql.SQL("alter role {} {}").format(sql.Identifier(role), may))
        await connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", (role,))


async def test_a_lost_database_is_unavailable_and_no_end(lonely: RunningAuth, postgres: EmbeddedPostgres) -> None:
    person = await lonely.register()
    await set_reachable(postgres, lonely.database.service_role, reachable=False)
    refused = await refusal(lonely.login(person.username))
    assert isinstance(refused, Unavailable)
    assert refused.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert refused.metadata == {"dependency": "database"}
    keys = await lonely.auth.GetJwks(auth_pb2.GetJwksRequest())
    assert {key.kid for key in keys.keys} == set(await lonely.assembly.keys.public_keys())
    issuing = await lonely.service_tokens("chat").for_audience("memory")
    assert issuing.count(".") == 2

    await set_reachable(postgres, lonely.database.service_role, reachable=True)
    async with asyncio.timeout(5):
        assert (await lonely.me(person.tokens.access_token)).id == person.id
    assert (await lonely.register(new_name())).id


async def test_a_busy_port_is_told_as_such(lonely: RunningAuth, tmp_path: Path) -> None:
    settings = make_settings(lonely.database, tmp_path, listen_address=lonely.target)
    with pytest.raises(OSError, match=f"cannot listen on {lonely.target}"):
        async with running_auth(lonely.database, settings):
            pass
