"""Rows that are not right, names that others have, tables that are not as they were thought: told, and never half loaded."""

import json
import sqlite3
import uuid
from pathlib import Path

import pytest

from suite.databases import ServiceDatabase
from tests.auth.harness import RunningAuth
from tests.chat.service import ChatProcess
from tests.earlier import systems
from tests.earlier.conftest import Run, Seen, everything

USERS = "create table users (id integer primary key, username text, email text, hashed_password text, created_at text)"
TALKS = "create table conversations (id integer primary key, user_id integer, title text, created_at text)"
MESSAGES = "create table messages (id integer primary key, conversation_id integer, role text, content, created_at text)"
TIME = "2024-01-01 10:00:00"


async def names(auth: RunningAuth, like: str) -> set[str]:
    return {row[0] for row in await auth.execute("select username from users where username like %s", f"{like}%")}


async def test_a_bad_row_costs_itself_and_is_told_by_its_id(
    auth: RunningAuth, chat: ChatProcess, run: Run, tmp_path: Path, name: str
) -> None:
    path = systems.write(
        tmp_path / "old.db", USERS, TALKS, MESSAGES,
        users=[(1, name, f"{name}@example.com", systems.hashed(), TIME), (2, "x", "no address", systems.hashed(), TIME)],
        conversations=[(1, 1, "t" * 300, TIME), (2, 1, "Gone", "yesterday"), (3, 2, "Not theirs", TIME)],
        messages=[
            (1, 1, "user", "first", TIME), (2, 1, "robot", "unknown role", TIME), (3, 1, "assistant", "no time", "soon"),
            (4, 1, "assistant", b"\xff\xfe", TIME), (5, 1, "assistant", "a\x1b[1mb", TIME), (6, 1, "user", "", TIME),
            (7, 1, "user", "last", "2024-01-01T10:00:09Z"), (8, 99, "user", "lost", TIME),
            (9, 1, "user", "w" * 400_001, TIME),
            (10, 3, "user", "of the refused", TIME), (11, 1, "user", "tomorrow", "2090-01-01 00:00:00"),
        ],
    )  # fmt: skip
    with sqlite3.connect(path) as connection:
        connection.execute("update messages set content = cast(x'61ff62' as text) where id = 3")
    code, said, errors = await run("import", path, "--system", "small-chatbot", "--report", tmp_path / "report.jsonl")
    assert (code, errors) == (3, "")
    told = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    found = {(one["kind"], one["id"], one["outcome"]) for one in told}
    skipped = {*(("messages", str(n), "not loaded") for n in (2, 3, 4, 6, 8, 9, 10, 11)), ("users", "2", "not loaded")}
    assert found == {
        *skipped, ("messages", "5", "changed"), ("conversations", "1", "changed"), ("conversations", "2", "not loaded"),
        ("conversations", "3", "not loaded"),
    }  # fmt: skip
    assert "username has 1 characters, at least 3 are needed" in said
    for secret in (name, "lost", "robot", "no address"):
        assert secret not in said + (tmp_path / "report.jsonl").read_text()
    [(user_id,)] = await auth.execute("select cast(id as text) from users where username = %s", name)
    seen = Seen(chat, user_id)
    [talk] = await seen.conversations()
    assert talk.title == "t" * 199 + "…"
    assert await seen.texts(talk.id) == [(1, "user", "first"), (2, "assistant", "a[1mb"), (3, "user", "last")]


async def test_ids_that_are_no_text_and_values_beyond_every_bound_end_nothing(
    auth: RunningAuth, chat: ChatProcess, run: Run, tmp_path: Path, name: str
) -> None:
    path = systems.write(
        tmp_path / "old.db", USERS.replace("integer", "text"), TALKS.replace("integer", "text"),
        MESSAGES.replace("integer", "text").replace("content", "content, input_tokens, output_tokens"),
        users=[(one, f"{name}{one}", f"{name}{one}@example.com", systems.hashed(), TIME) for one in ("1", "bad")],
        conversations=[("bad", "1", "One", TIME), ("2", "bad", "Not theirs", TIME), ("3", "1", "Two", TIME)],
        messages=[
            ("1", "bad", "user", "first", None, None, TIME), ("2", "bad", "assistant", "second", "9" * 5_000, "7", TIME),
            ("3", "bad", "user", "third", None, None, "0001-01-01T00:00:00+02:00"),
            ("4", "bad", "user", "fourth", None, None, "9999-12-31 23:59:59"),
            ("bad", "bad", "robot", "fifth", None, None, TIME), ("6", "3", "user", "sixth", None, None, TIME),
        ],
    )  # fmt: skip
    with sqlite3.connect(path) as connection:
        for table, column in (
            *(("users", "id"), ("conversations", "id"), ("conversations", "user_id")),
            *(("messages", "id"), ("messages", "conversation_id")),
        ):
            connection.execute(f"update {table} set {column} = cast(x'62ff64' as text) where {column} = 'bad'")
    written = tmp_path / "report.jsonl"
    given = ("--system", "small-chatbot", "--timezone", "America/New_York", "--report", written)
    code, said, errors = await run("import", path, *given)
    assert (code, errors) == (3, ""), said
    told = {(one["kind"], one["id"], one["reason"]) for one in map(json.loads, written.read_text().splitlines())}
    assert {(kind, old_id) for kind, old_id, _ in told} == {
        *(("messages", old_id) for old_id in ("3", "4", "b?d")), ("users", "b?d"), ("conversations", "2"),
    }  # fmt: skip
    assert ("users", "b?d", "its id is not UTF-8") in told
    [(user_id,)] = await auth.execute("select cast(id as text) from users where username = %s", f"{name}1")
    seen = Seen(chat, user_id)
    talks = {one.title: one.id for one in await seen.conversations()}
    assert set(talks) == {"One", "Two"}
    assert await seen.texts(talks["One"]) == [(1, "user", "first"), (2, "assistant", "second")]


async def test_names_of_others_are_told_and_resolved(
    auth: RunningAuth, chat: ChatProcess, run: Run, tmp_path: Path, name: str
) -> None:
    here = await auth.register(f"{name}-here")
    same = systems.hashed()
    path = systems.write(
        tmp_path / "old.db", USERS, TALKS, MESSAGES,
        users=[
            (1, here.username.upper(), f"{name}1@example.com", same, TIME), (2, f"{name}-2", here.email.upper(), same, TIME),
            (3, f"{name}-3", f"{name}3@example.com", same, TIME),
            (4, f"{name}-3".upper(), f"{name}4@example.com", same, TIME),
            (5, "Ana Maria", f"{name}5@example.com", same, TIME),
        ],
        conversations=[(n, n, f"Of {n}", TIME) for n in range(1, 6)],
        messages=[(n, n, "user", f"I am {n}", TIME) for n in range(1, 6)],
    )  # fmt: skip
    proposed = tmp_path / "names.json"
    code, said, _ = await run("import", path, "--system", "small-chatbot", "--suggest-names", proposed)
    assert code == 3
    assert await names(auth, name) == {f"{name}-3", f"{name}-here"}
    assert "another account here has the username" in said
    assert "another account here has the email address" in said
    assert "another old user has the same username" in said
    names_file = json.loads(proposed.read_text())
    assert set(names_file) == {"1", "5"}
    assert names_file["5"] == {"username": "Ana.Maria-5"}
    names_file["5"] = {"username": f"{name}-5"}
    names_file |= {"1": {"username": f"{name}-1"}, "2": {"user": here.email}, "4": {"username": f"{name}-4"}}
    proposed.write_text(json.dumps(names_file))
    code, said, _ = await run("import", path, "--system", "small-chatbot", "--names", proposed)
    assert code == 0, said
    assert await names(auth, name) == {f"{name}-{n}" for n in (1, 3, 4, 5)} | {f"{name}-here"}
    assert [one.title for one in await Seen(chat, here.id).conversations()] == ["Of 2"]
    await auth.login(here.username)  # with the password of the account that was here
    await auth.login(f"{name}5@example.com", systems.PASSWORD)


async def test_users_of_two_systems_with_the_same_ids_are_not_mixed(
    auth: RunningAuth, chat: ChatProcess, run: Run, tmp_path: Path, name: str
) -> None:
    del chat  # whose database is empty before
    one = systems.crowd(tmp_path / "one.db", users=2, conversations=1, messages=2, prefix=name)
    other = systems.crowd(tmp_path / "other.db", users=2, conversations=2, messages=2, prefix=f"{name}-")
    assert (await run("import", one, "--system", "small-chatbot"))[0] == 0
    code, said, _ = await run("import", other, "--system", "small-chatbot")
    assert code == 3
    assert "2 not loaded: somebody with other names was loaded with this id" in said
    assert "conversations: 4 not loaded" in said
    assert await names(auth, name) == {f"{name}0", f"{name}1"}


async def test_a_user_who_was_deleted_is_not_brought_back(
    auth: RunningAuth, chat: ChatProcess, run: Run, tmp_path: Path, name: str
) -> None:
    del chat  # whose database is empty before
    path = systems.small_chatbot(tmp_path / "old.db", name)
    assert (await run("import", path, "--system", "small-chatbot"))[0] == 0
    [(user_id,)] = await auth.execute("delete from users where username = %s returning cast(id as text)", name)
    await auth.execute("insert into deletions (user_id) values (%s)", user_id)
    code, said, _ = await run("import", path, "--system", "small-chatbot")
    assert code == 3
    assert "was deleted here, and is not brought back" in said
    assert await names(auth, name) == set()


async def test_nothing_is_guessed(run: Run, tmp_path: Path, name: str, auth: RunningAuth) -> None:
    path = systems.write(
        tmp_path / "old.db",
        "create table members (nick text, mail text, secret text)",
        "create table lines (who text, room text, said text, at text)",
        members=[(name, f"{name}@example.com", systems.hashed())],
        lines=[(name, "a", "Hello", TIME)],
    )
    code, said, errors = await run("import", path, "--system", "small-chatbot")
    assert (code, said) == (2, "")
    assert "users: no table users or user or accounts" in errors
    assert "messages: no table" in errors
    mapping = tmp_path / "mapping.json"
    columns = {"id": "nick", "username": "nick", "email": {"template": "{username}@example.org"}, "password_hash": "secret"}
    said_of = {"conversation": "room", "user": "who", "text": "said", "create_time": "at"}
    mapping.write_text(json.dumps({
        "users": {"table": "members", "columns": columns}, "messages": {"table": "lines", "columns": said_of},
    }))  # fmt: skip
    code, _, errors = await run("import", path, "--system", "other", "--mapping", mapping)
    assert code == 2
    assert "table lines has neither role and text nor prompt and reply" in errors
    assert await names(auth, name) == set()
    with sqlite3.connect(path) as connection:
        connection.execute("alter table lines add column kind text default 'human'")
    mapping.write_text(json.dumps({
        "users": {"table": "members", "columns": columns},
        "messages": {"table": "lines", "columns": said_of | {"role": "kind"}},
    }))  # fmt: skip
    code, said, errors = await run("import", path, "--system", "other", "--mapping", mapping)
    assert (code, errors) == (0, ""), said
    await auth.login(f"{name}@example.org", systems.PASSWORD)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "neither a SQLite file nor a dump"),
        (b"SQLite format 3\0" + b"rubbish" * 1000, "as SQLite"),
        (b"PGDMP\x01\x0e", "pg_restore --file=dump.sql"),
        (b"-- PostgreSQL database dump\nINSERT INTO public.users VALUES (1);\n", "make the dump without --inserts"),
        (b"PRAGMA foreign_keys=OFF;\nATTACH '/tmp/evil.db' AS evil;\n", "users: no table"),
    ],
)
async def test_what_is_no_database_is_refused(run: Run, tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "old.db"
    path.write_bytes(content)
    code, _, errors = await run("import", path, "--system", "small-chatbot")
    assert code == 2
    assert problem in errors
    assert errors.count("\n") == 1


async def test_a_dump_of_sqlite_does_nothing_but_fill_tables(
    auth: RunningAuth, chat: ChatProcess, run: Run, tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim.db"
    with sqlite3.connect(systems.small_chatbot(tmp_path / "old.db", name)) as connection:
        lines = ["PRAGMA foreign_keys=OFF;", *connection.iterdump()]
    lines += [
        f"ATTACH '{victim}' AS v;", "CREATE VIEW loud AS SELECT * FROM users;",
        "INSERT INTO messages VALUES(50,1,'user',unistr('two\\u000alines'),1700000103);",
        "INSERT INTO messages VALUES(51,1,'user',replace('two\\nmore','\\n',char(10)),1700000104);",
        "INSERT INTO nowhere VALUES(1);",
    ]  # fmt: skip
    dump = tmp_path / "dump.sql"
    dump.write_text("\n".join(lines) + "\n")
    code, said, errors = await run("import", dump, "--system", "small-chatbot")
    assert (code, errors) == (0, ""), said
    assert "was not read: OperationalError" in said
    assert not victim.exists()
    [(user_id,)] = await auth.execute("select cast(id as text) from users where username = %s", name)
    seen = Seen(chat, user_id)
    [*_, otters] = await seen.conversations()
    assert [text for *_, text in await seen.texts(otters.id)][2:] == ["two\nlines", "two\nmore"]


async def test_a_plain_dump_of_postgres(auth: RunningAuth, chat: ChatProcess, run: Run, tmp_path: Path, name: str) -> None:
    talk = uuid.uuid4()
    dump = tmp_path / "dump.sql"
    dump.write_text(
        "--\n-- PostgreSQL database dump\n--\nSET client_encoding = 'UTF8';\n"
        "CREATE TABLE public.users (id uuid NOT NULL);\n\n"
        "COPY public.users (id, username, email, hashed_password, is_active, created_at) FROM stdin;\n"
        f"{systems.BERT}\t{name}\t{name}@example.com\t{systems.hashed()}\tt\t2024-01-01 00:00:00+00\n"
        f"{systems.BERT}\t{name}-2\t{name}2@example.com\t{systems.hashed()}\tt\t2024-01-01 00:00:00+00\n\\.\n\n"
        "COPY public.conversations (id, user_id, title, created_at) FROM stdin;\n"
        f"{talk}\t{systems.BERT}\t\\N\t2024-01-01 10:00:00+00\n\\.\n\n"
        "COPY public.messages (id, conversation_id, role, content, created_at) FROM stdin;\n"
        f"1\t{talk}\tMessageRole.USER\tTab\\there\\nand \\\\ back\t2024-01-01 10:00:00.5+00\n"
        "2\tbroken\n"
        f"3\t{talk}\tassistant\tYes\t2024-01-01 12:00:01.25+02\n\\.\n"
    )
    code, said, errors = await run("import", dump, "--system", "small-chatbot")
    assert (code, errors) == (3, ""), said
    assert "was not read: 2 values for 5 columns of messages" in said
    assert "1 not loaded: another old user has the same id" in said
    [(user_id,)] = await auth.execute("select cast(id as text) from users where username = %s", name)
    seen = Seen(chat, user_id)
    [one] = await seen.conversations()
    assert await seen.texts(one.id) == [(1, "user", "Tab\there\nand \\ back"), (2, "assistant", "Yes")]
    await auth.login(name, systems.PASSWORD)


DUMPED = """--
-- PostgreSQL database dump
--
SET client_encoding = '{encoding}';
COPY public.users (id, username, email, hashed_password) FROM stdin;
1\t{name}\t{name}@example.com\t{hashed}
2\t{name}é\t{name}2@example.com\t{hashed}
\\.
COPY public.conversations (id, user_id, title, created_at) FROM stdin;
1\t1\tOne\t2024-01-01 10:00:00
\\.
COPY public.messages (id, conversation_id, role, content, created_at) FROM stdin;
1\t1\tuser\tUm café\t2024-01-01 10:00:00
2\t1\tassistant\tGladly\t2024-01-01 10:00:01
\\.
COPY public."é" ("é") FROM stdin;
é
\\.
"""


@pytest.mark.parametrize(("encoding", "is_known"), [("LATIN1", True), ("WIN1252", True), ("SQL_ASCII", False)])
async def test_a_dump_of_postgres_in_another_encoding(
    auth: RunningAuth, chat: ChatProcess, run: Run, tmp_path: Path, name: str, encoding: str, *, is_known: bool
) -> None:
    dump = tmp_path / "dump.sql"
    dump.write_bytes(DUMPED.format(encoding=encoding, name=name, hashed=systems.hashed()).encode("latin-1"))
    code, said, errors = await run("import", dump, "--system", "small-chatbot")
    assert (code, errors) == (3, ""), said
    assert ("is not UTF-8" in said) is not is_known
    [(user_id,)] = await auth.execute("select cast(id as text) from users where username = %s", name)
    seen = Seen(chat, user_id)
    [one] = await seen.conversations()
    assert [text for *_, text in await seen.texts(one.id)] == (["Um café", "Gladly"] if is_known else ["Gladly"])


async def test_a_statement_of_a_dump_that_is_no_text_costs_itself(
    auth: RunningAuth, chat: ChatProcess, run: Run, tmp_path: Path, name: str
) -> None:
    with sqlite3.connect(systems.small_chatbot(tmp_path / "old.db", name)) as connection:
        lines = ["PRAGMA foreign_keys=OFF;", *connection.iterdump()]
    dump = tmp_path / "dump.sql"
    bad = [rb"INSERT INTO messages VALUES(50,1,'user','caf" + end + rb"',1700000103);" for end in (b"\xe9", b"\0")]
    dump.write_bytes(b"\n".join([*(line.encode() for line in lines), *bad, b""]))
    code, said, errors = await run("import", dump, "--system", "small-chatbot")
    assert (code, errors) == (0, ""), said
    assert said.count("was not read") == len(bad)
    [(user_id,)] = await auth.execute("select cast(id as text) from users where username = %s", name)
    assert len(await Seen(chat, user_id).conversations()) == 3


async def test_what_memory_is_told_is_spread_and_left_to_who_wants_it(
    run: Run, tmp_path: Path, name: str, chat: ChatProcess, chat_database: ServiceDatabase
) -> None:
    del chat  # whose database is empty before
    path = systems.crowd(tmp_path / "old.db", users=2, conversations=3, messages=2, prefix=name)
    with sqlite3.connect(path) as connection:
        connection.execute("create table preferences (user_id integer, memory_enabled boolean)")
        connection.execute("insert into preferences values (1, 0)")
    mapping = tmp_path / "mapping.json"
    columns = {"user": "user_id", "memory_enabled": "memory_enabled"}
    mapping.write_text(json.dumps({"preferences": {"table": "preferences", "columns": columns}}))
    given = ("--system", "small-chatbot", "--mapping", mapping, "--memory-pace", "1")
    code, said, _ = await run("import", path, *given)
    assert code == 0, said
    [owed] = await everything(chat_database, "unrecorded_turns")
    assert len(owed) == 3, "of the user who wants to be remembered"
    due = sorted(row[3] for row in owed)
    assert [round((later - due[0]).total_seconds() / 60) for later in due] == [0, 1, 2]
    assert {row[2] for row in owed} == {1}
