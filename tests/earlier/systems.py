"""Small databases of earlier systems, in the shapes that such back ends have: made by hand, table by table."""

import sqlite3
import uuid
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import bcrypt

PASSWORD = "an old password, kept"
ANA, BERT = uuid.UUID("11111111-2222-4333-8444-555555555555"), uuid.UUID("99999999-2222-4333-8444-555555555555")


def hashed(password: str = PASSWORD) -> str:
    """As passlib and bcrypt have kept it."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def write(path: Path, *statements: str, **tables: Iterable[tuple[Any, ...]]) -> Path:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)
        for table, rows in tables.items():
            for row in rows:
                connection.execute(f'insert into "{table}" values ({", ".join("?" * len(row))})', row)
    return path


def mobile_assistant(path: Path, name: str) -> Path:
    """A: UUIDs as SQLAlchemy's Uuid keeps them in SQLite, naive times, a message a row, conversations without a table."""
    return write(
        path,
        "create table users (id char(32) primary key, username varchar, email varchar, password_hash varchar,"
        " created_at datetime)",
        "create table messages (id char(32) primary key, user_id char(32), conversation_id varchar, role varchar,"
        " content text, created_at datetime, model varchar, prompt_tokens integer, completion_tokens integer)",
        users=[(ANA.hex, name, f"{name}@example.com", hashed(), "2024-03-01 08:00:00.123456")],
        messages=[
            (uuid.uuid4().hex, ANA.hex, "trip", "user", "Where shall we go?", "2024-03-02 10:00:00", None, None, None),
            (uuid.uuid4().hex, ANA.hex, "trip", "assistant", "To Lisbon.", "2024-03-02 10:00:05", "gpt-4o", 12, 5),
            (uuid.uuid4().hex, ANA.hex, "food", "system", "You are kind.", "2024-03-03 09:59:59", None, None, None),
            (uuid.uuid4().hex, ANA.hex, "food", "user", "What is for lunch?", "2024-03-03 10:00:00", None, None, None),
        ],
    )


def conversation_sms(path: Path, name: str) -> Path:
    """B: integer ids, aware times, what was said and answered in one row, preferences, no passwords."""
    return write(
        path,
        "create table users (id integer primary key, name varchar, email varchar, phone_number varchar, is_active boolean,"
        " created_at timestamp)",
        "create table user_preferences (id integer primary key, user_id integer, language varchar, tts_voice varchar,"
        " auto_reply_enabled boolean, conversation_timeout integer)",
        "create table conversations (id integer primary key, user_id integer, user_input text, assistant_response text,"
        " model varchar, input_tokens integer, output_tokens integer, created_at timestamp)",
        "create table sms_messages (id integer primary key, user_id integer, body text)",
        users=[(7, name, f"{name}@example.com", "+351911111111", 1, "2023-01-01T00:00:00+00:00")],
        user_preferences=[(1, 7, "pt-PT", "nova", 1, 900)],
        conversations=[
            (1, 7, "Is it raining?", "Yes, a little.", "gpt-4o-mini", 9, 4, "2024-01-05T12:00:00+01:00"),
            (2, 7, "And tomorrow?", "It will be dry.", "gpt-4o-mini", 20, 5, "2024-01-05T12:01:00+01:00"),
            (3, 7, "Read me the news.", "Nothing has happened.", "gpt-4o-mini", 5, 4, "2024-01-06T08:00:00+01:00"),
        ],
        sms_messages=[(1, 7, "hi")],
    )


def memory_chatbot(path: Path, name: str) -> Path:
    """C: sessions, pairs with a time for each, an administrator."""
    return write(
        path,
        "create table users (id varchar primary key, username varchar, email varchar, hashed_password varchar,"
        " is_admin boolean, is_active boolean, created_at datetime)",
        "create table sessions (session_id varchar primary key, user_id varchar, title varchar, created_at datetime,"
        " updated_at datetime)",
        "create table chat_history (id integer primary key, session_id varchar, user_message text, bot_response text,"
        " created_at datetime, responded_at datetime)",
        users=[(str(ANA), name, f"{name}@example.com", hashed(), 1, 1, "2024-05-01 00:00:00")],
        sessions=[("s-1", str(ANA), "Genmaicha", "2024-05-02 07:00:00", "2024-05-02 07:05:00")],
        chat_history=[
            (1, "s-1", "My favourite tea is genmaicha.", "I will remember.", "2024-05-02 07:00:01", "2024-05-02 07:00:03"),
            (2, "s-1", "Where does it grow?", "In Japan.", "2024-05-02 07:04:00", "2024-05-02 07:04:02"),
        ],
    )


def todo_agent(path: Path, name: str) -> Path:
    """D: a user table of a front end (text ids, milliseconds), tasks and conversations that name users by text."""
    return write(
        path,
        'create table "user" (id text primary key, name text, email text, "createdAt" integer)',
        "create table tasks (id integer primary key, user_id varchar, title varchar, description text, completed boolean,"
        " due_date datetime, created_at datetime, updated_at datetime)",
        "create table conversations (id integer primary key, user_id varchar, created_at datetime, updated_at datetime)",
        "create table messages (id integer primary key, conversation_id integer, user_id varchar, role varchar,"
        " content text, created_at datetime)",
        user=[("k3Xy", name, f"{name}@example.com", 1_710_000_000_000)],
        tasks=[
            (1, "k3Xy", "Water the plants", None, 0, "2030-01-01 09:00:00", "2024-06-01 09:00:00", "2024-06-01 09:00:00"),
            (2, "k3Xy", "Call Bert", "about the boat", 1, None, "2024-06-02 09:00:00", "2024-06-03 09:00:00"),
        ],
        conversations=[(5, "k3Xy", "2024-06-01 08:59:00", "2024-06-01 09:00:01")],
        messages=[
            (1, 5, "k3Xy", "user", "Add a task to water the plants", "2024-06-01 09:00:00"),
            (2, 5, "k3Xy", "assistant", "Done.", "2024-06-01 09:00:01"),
        ],
    )


def small_chatbot(path: Path, name: str) -> Path:
    """E: integer ids, seconds since 1970."""
    return write(
        path,
        "create table users (id integer primary key, username text, email text, hashed_password text, created_at integer)",
        "create table conversations (id integer primary key, user_id integer, title text, created_at integer)",
        "create table messages (id integer primary key, conversation_id integer, role text, content text,"
        " created_at integer)",
        users=[(1, name, f"{name}@example.com", hashed(), 1_700_000_000)],
        conversations=[(1, 1, "Otters", 1_700_000_100), (2, 1, "", 1_700_000_200), (3, 1, "Empty", 1_700_000_300)],
        messages=[
            (1, 1, "user", "Do otters hold hands?", 1_700_000_101),
            (2, 1, "assistant", "They do, asleep.", 1_700_000_102),
            (3, 2, "human", "What do seals eat?", 1_700_000_201),
            (4, 2, "ai", "Fish.", 1_700_000_202),
        ],
    )


MAKERS = {
    "mobile-assistant": mobile_assistant,
    "conversation-sms": conversation_sms,
    "memory-chatbot": memory_chatbot,
    "todo-agent": todo_agent,
    "small-chatbot": small_chatbot,
}


def crowd(path: Path, *, users: int, conversations: int, messages: int, prefix: str) -> Path:
    """Many users of E, all with one hash, since hashing is slow by design."""
    same = hashed()
    talks = [(user * 1000 + one, user) for user in range(users) for one in range(conversations)]
    return write(
        path,
        "create table users (id integer primary key, username text, email text, hashed_password text, created_at integer)",
        "create table conversations (id integer primary key, user_id integer, title text, created_at integer)",
        "create table messages (id integer primary key autoincrement, conversation_id integer, role text, content text,"
        " created_at integer)",
        users=((n, f"{prefix}{n}", f"{prefix}{n}@example.com", same, 1_700_000_000) for n in range(users)),
        conversations=((talk, user, f"Talk {talk}", 1_700_000_000) for talk, user in talks),
        messages=(
            (None, talk, "user" if n % 2 == 0 else "assistant", f"Words {n} of {talk}", 1_700_000_000 + n)
            for talk, _ in talks
            for n in range(messages)
        ),
    )
