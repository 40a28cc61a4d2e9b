"""ProcessUtterance: one spoken conversation that goes on, a reply that can be spoken, and its figures."""

import asyncio
from typing import Any

import grpc
import psycopg
import pytest

from parley.auth.v1 import user_pb2
from parley.chat.v1 import chat_pb2
from simulator.control import ScriptedAnswer
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.chat.conftest import Start
from tests.chat.peers import PreferencesStandIn
from tests.chat.service import ChatProcess, User, held, refusal


async def say(user: User, text: str = "hello", **fields: Any) -> chat_pb2.Utterance:
    asked = chat_pb2.ProcessUtteranceRequest(text=text, **fields)
    return await user.chat.ProcessUtterance(asked, metadata=user.metadata, timeout=30)


async def silent_for(database: ServiceDatabase, seconds: int) -> None:
    async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as connection:
        await connection.execute("select set_config('parley.scope', 'service', false)")
        await connection.execute(
            "update conversations set last_message_time = last_message_time - make_interval(secs => %s)", (seconds,)
        )


async def kinds(database: ServiceDatabase) -> list[str]:
    async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as connection:
        await connection.execute("select set_config('parley.scope', 'service', false)")
        cursor = await connection.execute("select kind from conversations order by create_time")
        return [kind for (kind,) in await cursor.fetchall()]


async def test_an_utterance_gets_its_reply_with_all_figures(user: User, preferences: PreferencesStandIn) -> None:
    preferences.known[user.id] = user_pb2.Preferences(tts_voice="luciana", language="pt-BR", model="gpt-5")
    answer = await say(user, "say **this** aloud")
    assert answer.input_text == "say **this** aloud"
    assert (answer.model, answer.speech.voice, answer.speech.language) == ("gpt-5", "luciana", "pt-BR")
    assert answer.reply
    assert "*" not in answer.speech.text
    assert answer.speech.estimated_duration_seconds > 0
    assert answer.usage.output_tokens > 0
    assert answer.processing_time_ms >= 0
    assert answer.create_time.seconds > 0
    [said, reply] = await user.messages(answer.conversation_id)
    assert (said.text, reply.id, reply.text) == ("say **this** aloud", answer.id, answer.reply)
    assert reply.generation_id == answer.generation_id


async def test_without_preferences_there_is_neither_voice_nor_language(user: User) -> None:
    answer = await say(user)
    assert (answer.speech.voice, answer.speech.language) == ("", "")


async def test_utterances_go_on_with_the_last_spoken_conversation_and_no_written_one(
    user: User, database: ServiceDatabase
) -> None:
    written = await user.create("written")
    first = await say(user, "one")
    await user.create("also written")
    second = await say(user, "two")
    assert first.conversation_id == second.conversation_id != written.conversation_id
    assert [one.text for one in await user.messages(first.conversation_id)][::2] == ["one", "two"]
    assert await kinds(database) == ["written", "spoken", "written"]


async def test_after_a_silence_a_new_conversation_begins(user: User, database: ServiceDatabase) -> None:
    first = await say(user)
    await silent_for(database, 1_790)
    second = await say(user)
    await silent_for(database, 1_801)
    third = await say(user)
    assert first.conversation_id == second.conversation_id != third.conversation_id


async def test_how_long_the_silence_may_be_is_a_preference(
    user: User, database: ServiceDatabase, preferences: PreferencesStandIn
) -> None:
    preferences.known[user.id] = user_pb2.Preferences(conversation_timeout_seconds=60)
    first = await say(user)
    await silent_for(database, 61)
    assert (await say(user)).conversation_id != first.conversation_id


async def test_each_user_has_a_spoken_conversation_of_their_own(chat: ChatProcess) -> None:
    answers = [await say(chat.user()) for _ in range(2)]
    assert len({one.conversation_id for one in answers}) == 2


async def test_an_utterance_may_name_its_conversation(chat: ChatProcess, user: User) -> None:
    written = await user.create("hello")
    answer = await say(user, conversation_id=written.conversation_id)
    assert answer.conversation_id == written.conversation_id
    other = chat.user()
    refused = await refusal(say(other, conversation_id=written.conversation_id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND")


async def test_two_utterances_at_once_do_not_both_begin_a_conversation(
    user: User, database: ServiceDatabase, simulator: Running
) -> None:
    await simulator.control.script(ScriptedAnswer(text="One is answered.", hold_after_tokens=0))
    first = asyncio.create_task(say(user, "one"))
    second = asyncio.create_task(say(user, "two"))
    await held(simulator)
    [busy], [going] = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
    await simulator.control.release()
    refused = await refusal(busy)
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "CONVERSATION_BUSY")
    assert refused.retry_seconds is not None
    answer = await going
    assert refused.metadata == {"conversation_id": answer.conversation_id}
    assert await kinds(database) == ["spoken"]
    assert (await say(user, "three")).conversation_id == answer.conversation_id


async def test_the_same_utterance_at_once_on_two_processes_is_one_turn(start_chat: Start) -> None:
    async with start_chat() as one, start_chat() as other:
        user = one.user()
        answers = await asyncio.gather(*(say(user.at(where), request_id="once") for where in (one, other)))
        assert len({answer.id for answer in answers}) == 1
        assert len(await user.messages(answers[0].conversation_id)) == 2


async def test_an_utterance_that_is_repeated_much_later_is_the_same(user: User, database: ServiceDatabase) -> None:
    first = await say(user, request_id="once")
    await silent_for(database, 10_000)
    assert await say(user, request_id="once") == first
    refused = await refusal(say(user, "something else", request_id="once"))
    assert refused.reason == "REQUEST_ID_REUSED"


async def test_an_utterance_that_the_model_fails_on_fails(user: User, preferences: PreferencesStandIn) -> None:
    preferences.known[user.id] = user_pb2.Preferences(model="sim-10-0-0-cut-3")
    refused = await refusal(say(user))
    assert refused.reason == "MODEL_UNAVAILABLE"


@pytest.mark.parametrize("fields", [{"text": ""}, {"text": "x" * 10_001}, {"text": "x", "conversation_id": "x"}])
async def test_what_is_no_utterance_is_refused(user: User, fields: dict[str, str]) -> None:
    assert (await refusal(say(user, **fields))).reason == "INVALID_REQUEST"


async def test_nobody_speaks_for_another(chat: ChatProcess, user: User) -> None:
    refused = await refusal(say(user, user_id=chat.user().id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ACCESS_DENIED")
