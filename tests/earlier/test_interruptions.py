"""An import that is killed is run again: everything once, nothing by halves, in little memory."""

import asyncio
import contextlib
import signal
from pathlib import Path

import psutil
import psycopg

from suite.databases import ServiceDatabase
from tests.chat.service import ChatProcess
from tests.earlier import systems
from tests.earlier.conftest import Run
from tests.suite_process import start_command

USERS, TALKS, MESSAGES = 60, 4, 6


async def count(database: ServiceDatabase, statement: str) -> int:
    async with await psycopg.AsyncConnection.connect(database.url, autocommit=True) as connection:
        await connection.execute("select set_config('parley.scope', 'service', false)")
        row = await (await connection.execute(statement.encode())).fetchone()
        assert row is not None
        return int(row[0])


async def test_a_killed_import_goes_on(
    auth_database: ServiceDatabase, chat_database: ServiceDatabase, chat: ChatProcess, run: Run, tmp_path: Path, name: str,
    environment: dict[str, str],
) -> None:  # fmt: skip
    del chat  # whose database is empty before
    path = systems.crowd(tmp_path / "old.db", users=USERS, conversations=TALKS, messages=MESSAGES, prefix=name)
    arguments = ("-m", "suite.command", "import", str(path), "--system", "small-chatbot", "--source", name)
    whole = USERS * TALKS
    kills = 0
    for least in (1, whole // 3):
        process = await start_command(environment, tmp_path, *arguments)
        while await count(chat_database, "select count(*) from conversations") < least and process.returncode is None:
            await asyncio.sleep(0.005)
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        await process.communicate()
        loaded = await count(chat_database, "select count(*) from conversations")
        assert await count(chat_database, f"select count(*) from conversations where message_count <> {MESSAGES}") == 0
        assert await count(chat_database, "select count(*) from messages") == loaded * MESSAGES
    assert kills == 2
    assert loaded < whole, "it was killed before its end"
    code, said, _ = await run("import", path, "--system", "small-chatbot")
    assert code == 0, said
    assert f"conversations: {whole - loaded:,} loaded, {loaded:,} here already" in said
    assert await count(chat_database, "select count(*) from conversations") == whole
    assert await count(chat_database, "select count(*) from messages") == whole * MESSAGES
    assert await count(chat_database, "select count(distinct id) from unrecorded_turns join conversations on id ="
                       " conversation_id") == whole  # fmt: skip
    assert await count(auth_database, f"select count(*) from users where username like '{name}%'") == USERS


async def test_two_imports_at_once_are_one(
    auth_database: ServiceDatabase, chat_database: ServiceDatabase, chat: ChatProcess, run: Run, tmp_path: Path, name: str
) -> None:
    del chat  # whose database is empty before
    path = systems.crowd(tmp_path / "old.db", users=20, conversations=3, messages=4, prefix=name)
    both = await asyncio.gather(*(run("import", path, "--system", "small-chatbot") for _ in range(2)))
    assert [code for code, *_ in both] == [0, 0], both
    assert await count(chat_database, "select count(*) from messages") == 20 * 3 * 4
    assert await count(auth_database, f"select count(*) from users where username like '{name}%'") == 20


async def test_a_conversation_of_any_length_takes_little_memory(
    chat_database: ServiceDatabase, chat: ChatProcess, tmp_path: Path, name: str, environment: dict[str, str]
) -> None:
    """30 MB of text in one conversation: read, sorted and written in pieces."""
    del chat  # whose database is empty before
    path = systems.crowd(tmp_path / "old.db", users=1, conversations=1, messages=0, prefix=name)
    text = "word " * 2_000
    systems.write(path, messages=((None, 0, "user", text, 1_700_000_000 + n) for n in range(3_000)))
    arguments = ("-m", "suite.command", "import", str(path), "--system", "small-chatbot", "--source", name)
    process = await start_command(environment, tmp_path, *arguments)
    greatest = 0
    seen = psutil.Process(process.pid)
    waiting = asyncio.create_task(process.communicate())
    with contextlib.suppress(psutil.NoSuchProcess):
        while not waiting.done():
            greatest = max(greatest, seen.memory_info().rss)
            await asyncio.sleep(0.02)
    await waiting
    assert process.returncode == 0, (await waiting)[1]
    assert await count(chat_database, "select message_count from conversations") == 3_000
    assert 20_000_000 < greatest < 250_000_000, f"{greatest:,}"
