"""The command as a person runs it, against real databases; and what came of it, asked of the services by their RPCs."""

import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from parley.chat.v1 import conversation_pb2, task_pb2
from services.chat.settings import ChatSettings
from suite.databases import ServiceDatabase
from tests.auth.harness import RunningAuth, make_settings, running_auth
from tests.chat.service import ChatProcess, running_chat
from tests.conftest import truncate
from tests.issuer import Issuer
from tests.suite_process import ROOT, outcome, start_command

Run = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture(scope="session")
async def auth(auth_database: ServiceDatabase, run_folder: Path) -> AsyncIterator[RunningAuth]:
    async with running_auth(auth_database, make_settings(auth_database, run_folder)) as running:
        yield running


@pytest.fixture
async def chat(chat_database: ServiceDatabase, redis_url: str, issuer: Issuer) -> AsyncIterator[ChatProcess]:
    """Chat whose peers are away: what is asked of it here needs none."""
    await truncate(chat_database)
    nobody = "ipv4:127.0.0.1:1"
    settings = {
        "listen_address": "127.0.0.1:0", "metrics_address": "127.0.0.1:0", "mcp_listen_address": "127.0.0.1:0",
        "database_url": chat_database.url, "redis_url": redis_url, "auth_target": nobody, "memory_target": nobody,
        "workload_credential_file": "unused", "openai_api_key": "any", "openai_base_url": "http://127.0.0.1:1/v1",
        "sealing_key": "A" * 43 + "=",
    }  # fmt: skip
    async with running_chat(ChatSettings.model_validate(settings), issuer) as process:
        yield process


@pytest.fixture
def environment(auth_database: ServiceDatabase, chat_database: ServiceDatabase) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    urls = {"AUTH_DATABASE_URL": auth_database.url, "CHAT_DATABASE_URL": chat_database.url}
    return {**kept, **urls, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path, name: str) -> Run:
    """`parley` with these arguments: exit code, output, errors. Each test's files are of a system of its own."""

    async def run_command(*arguments: str | Path) -> tuple[int, str, str]:
        said = ("-m", "suite.command", *map(str, arguments), "--source", name)
        return await outcome(await start_command(environment, tmp_path, *said))

    return run_command


@pytest.fixture
def name() -> str:
    """Of somebody whom no other test knows."""
    return f"ana{uuid.uuid4().hex[:12]}"


class Seen:
    """What a user finds in chat."""

    def __init__(self, chat: ChatProcess, user_id: str) -> None:
        self.user = chat.user(user_id)

    async def conversations(self) -> list[conversation_pb2.Conversation]:
        asked = conversation_pb2.ListConversationsRequest(page_size=100)
        return list(
            (await self.user.conversations.ListConversations(asked, metadata=self.user.metadata, timeout=10)).conversations
        )

    async def texts(self, conversation_id: str) -> list[tuple[int, str, str]]:
        return [(one.sequence, one.role, one.text) for one in await self.user.messages(conversation_id)]

    async def tasks(self) -> list[task_pb2.Task]:
        asked = task_pb2.ListTasksRequest(page_size=100)
        return list((await self.user.tasks.ListTasks(asked, metadata=self.user.metadata, timeout=10)).tasks)


async def everything(database: ServiceDatabase, *tables: str) -> list[Any]:
    """All rows, to be compared with themselves."""
    async with await psycopg.AsyncConnection.connect(database.url, autocommit=True) as connection:
        await connection.execute("select set_config('parley.scope', 'service', false)")
        return [await (await connection.execute(f"select * from {one} order by 1, 2".encode())).fetchall() for one in tables]
