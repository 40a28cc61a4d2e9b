"""Each of the five earlier systems is loaded; its users sign in with their old passwords and find what they had."""

import datetime as dt
from pathlib import Path

import grpc
import pytest

from parley.auth.v1 import user_pb2, user_pb2_grpc
from parley.chat.v1 import conversation_pb2
from suite.databases import ServiceDatabase
from tests.auth.harness import RunningAuth, bearer, refusal
from tests.chat.service import ChatProcess
from tests.earlier import systems
from tests.earlier.conftest import Run, Seen, everything

CHAT_TABLES = ("conversations", "messages", "tasks", "task_changes", "task_counters")


async def user_id_of(auth: RunningAuth, name: str) -> str:
    [(user_id,)] = await auth.execute("select cast(id as text) from users where username_key = %s", name.lower())
    return str(user_id)


async def signed_in(auth: RunningAuth, name: str) -> str:
    """The id of a user who signs in with the old password."""
    tokens = await auth.login(name, systems.PASSWORD)
    return (await auth.me(tokens.access_token)).id


def moment(time: object) -> dt.datetime:
    return time.ToDatetime(dt.UTC)  # type: ignore[attr-defined, no-any-return]


async def test_a_mobile_assistant(auth: RunningAuth, chat: ChatProcess, run: Run, tmp_path: Path, name: str) -> None:
    code, said, errors = await run(
        "import", systems.mobile_assistant(tmp_path / "a.db", name), "--system", "mobile-assistant"
    )
    assert (code, errors) == (3, ""), said
    assert "1 not loaded: says nothing, or is no message of the user or the assistant" in said
    seen = Seen(chat, await signed_in(auth, name))
    food, trip = await seen.conversations()
    assert await seen.texts(trip.id) == [(1, "user", "Where shall we go?"), (2, "assistant", "To Lisbon.")]
    assert await seen.texts(food.id) == [(1, "user", "What is for lunch?")]
    assert (trip.title, trip.message_count) == ("Where shall we go?", 2)
    assert moment(trip.last_message_time) == dt.datetime(2024, 3, 2, 10, 0, 5, tzinfo=dt.UTC)
    reply = (await seen.user.messages(trip.id))[1]
    assert (reply.model, reply.usage.input_tokens, reply.usage.output_tokens) == ("gpt-4o", 12, 5)
    created = await auth.execute("select create_time from users where username_key = %s", name)
    assert created == [(dt.datetime(2024, 3, 1, 8, 0, 0, 123456, tzinfo=dt.UTC),)]


async def test_a_conversation_and_sms_service(
    auth: RunningAuth, chat: ChatProcess, run: Run, tmp_path: Path, name: str
) -> None:
    path = systems.conversation_sms(tmp_path / "b.db", name)
    code, said, errors = await run("import", path, "--system", "conversation-sms")
    assert (code, errors) == (0, ""), said
    assert "they have no password: they need a set-password token" in said
    assert "tables that are not read: sms_messages" in said
    assert "not read: phone_number" in said
    user_id = await user_id_of(auth, name)
    seen = Seen(chat, user_id)
    news, rain = await seen.conversations()
    assert [text for _, _, text in await seen.texts(rain.id)] == [
        *("Is it raining?", "Yes, a little.", "And tomorrow?", "It will be dry."),
    ]
    assert [text for _, _, text in await seen.texts(news.id)] == ["Read me the news.", "Nothing has happened."]
    assert moment(rain.create_time) == dt.datetime(2024, 1, 5, 11, 0, tzinfo=dt.UTC)
    assert (await refusal(auth.login(name, systems.PASSWORD))).code is grpc.StatusCode.UNAUTHENTICATED
    await auth.execute("update users set password_hash = %s where id = %s", systems.hashed(), user_id)
    metadata = bearer((await auth.login(name, systems.PASSWORD)).access_token)
    users = user_pb2_grpc.UserServiceStub(auth.channel)
    found = await users.GetPreferences(user_pb2.GetPreferencesRequest(user_id="me"), metadata=metadata, timeout=10)
    assert (found.language, found.tts_voice, found.auto_reply_enabled) == ("pt-PT", "nova", True)
    assert found.conversation_timeout_seconds == 900
    assert not found.HasField("memory_enabled")


async def test_a_chatbot_with_memory(auth: RunningAuth, chat: ChatProcess, run: Run, tmp_path: Path, name: str) -> None:
    code, said, errors = await run("import", systems.memory_chatbot(tmp_path / "c.db", name), "--system", "memory-chatbot")
    assert (code, errors) == (0, ""), said
    assert "messages in chat_history (a question and its answer a row)" in said
    assert "was an administrator and is none here: --keep-admins keeps them" in said
    user_id = await signed_in(auth, name)
    assert await auth.execute("select is_admin from users where id = %s", user_id) == [(False,)]
    seen = Seen(chat, user_id)
    [one] = await seen.conversations()
    assert (one.title, one.message_count) == ("Genmaicha", 4)
    assert (await seen.texts(one.id))[:2] == [
        (1, "user", "My favourite tea is genmaicha."),
        (2, "assistant", "I will remember."),
    ]
    times = [moment(message.create_time).second for message in await seen.user.messages(one.id)]
    assert times == [1, 3, 0, 2]


async def test_a_todo_agent(auth: RunningAuth, chat: ChatProcess, run: Run, tmp_path: Path, name: str) -> None:
    code, said, errors = await run("import", systems.todo_agent(tmp_path / "d.db", name), "--system", "todo-agent")
    assert (code, errors) == (0, ""), said
    seen = Seen(chat, await user_id_of(auth, name))
    call, water = await seen.tasks()
    assert (water.title, water.description, water.completed) == ("Water the plants", "", False)
    assert moment(water.due_time) == dt.datetime(2030, 1, 1, 9, tzinfo=dt.UTC)
    assert (call.title, call.description, call.completed) == ("Call Bert", "about the boat", True)
    assert moment(call.complete_time) == dt.datetime(2024, 6, 3, 9, tzinfo=dt.UTC)
    [talk] = await seen.conversations()
    assert [text for _, _, text in await seen.texts(talk.id)] == ["Add a task to water the plants", "Done."]


async def test_a_small_chatbot_and_its_user_goes_on(
    auth: RunningAuth, chat: ChatProcess, run: Run, tmp_path: Path, name: str
) -> None:
    path = systems.small_chatbot(tmp_path / "e.db", name)
    code, said, errors = await run("import", path, "--system", "small-chatbot")
    assert (code, errors) == (0, ""), said
    user_id = await signed_in(auth, f"{name.upper()}@EXAMPLE.com")
    hashed = await auth.execute("select password_hash from users where id = %s", user_id)
    assert hashed[0][0].startswith("$argon2id$"), "the hash is upgraded at the sign-in"
    seen = Seen(chat, user_id)
    titles = [(one.title, one.message_count) for one in await seen.conversations()]
    assert titles == [("Empty", 0), ("What do seals eat?", 2), ("Otters", 2)]
    stranger = chat.user()
    [*_, otters] = await seen.conversations()
    asked = conversation_pb2.GetConversationRequest(conversation_id=otters.id)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stranger.conversations.GetConversation(asked, metadata=stranger.metadata, timeout=10)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("system", systems.MAKERS)
async def test_twice_is_once(
    auth_database: ServiceDatabase, chat_database: ServiceDatabase, chat: ChatProcess, run: Run, tmp_path: Path, name: str,
    system: str,
) -> None:  # fmt: skip
    del chat  # whose database is empty before
    path = systems.MAKERS[system](tmp_path / "old.db", name)
    rehearsed = await run("import", path, "--system", system, "--dry-run")
    assert await everything(chat_database, *CHAT_TABLES) == [[]] * len(CHAT_TABLES)
    first = await run("import", path, "--system", system)
    assert rehearsed[1].replace("What would be loaded (nothing was):", "What was loaded:") == first[1]
    loaded = (await everything(auth_database, "users", "preferences"), await everything(chat_database, *CHAT_TABLES))
    assert loaded[1][0]
    second = await run("import", path, "--system", system)
    assert "users:         1 here already" in second[1]
    assert loaded == (await everything(auth_database, "users", "preferences"), await everything(chat_database, *CHAT_TABLES))
