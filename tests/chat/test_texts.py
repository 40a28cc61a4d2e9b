"""Texts (SMS) as turns: sms goes on with the person's conversation by text, with tasks, and reads their history."""

import asyncio
import uuid
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from parley.auth.v1 import user_pb2
from parley.chat.v1 import chat_pb2, conversation_pb2
from simulator.control import Fault, ScriptedAnswer
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.chat.peers import MemoryStandIn, PreferencesStandIn
from tests.chat.service import ChatProcess, User, eventually, refusal
from tests.chat.test_tasks import titles
from tests.chat.test_utterances import kinds, say, silent_for
from tests.issuer import Issuer, Metadata


@pytest.fixture
def by_sms(issuer: Issuer, user: User) -> Metadata:
    """What sms shows when it acts for the user."""
    return issuer.as_service("sms", audience="chat", user_id=user.id)


async def text(user: User, metadata: Metadata, words: str, **fields: Any) -> chat_pb2.Utterance:
    asked = chat_pb2.ProcessUtteranceRequest(text=words, channel="sms", **fields)
    return await user.chat.ProcessUtterance(asked, metadata=metadata, timeout=30)


async def test_texts_go_on_with_the_conversation_by_text_and_no_other(
    user: User, by_sms: Metadata, database: ServiceDatabase
) -> None:
    first = await text(user, by_sms, "hello")
    spoken = await say(user, "hello aloud")
    second = await text(user, by_sms, "again")
    assert first.conversation_id == second.conversation_id != spoken.conversation_id
    assert sorted(await kinds(database)) == ["spoken", "texted"]
    assert (await say(user)).conversation_id == spoken.conversation_id
    await silent_for(database, 2000)
    assert (await text(user, by_sms, "much later")).conversation_id != first.conversation_id


async def test_the_silence_that_ends_it_is_the_users_preference(
    user: User, by_sms: Metadata, database: ServiceDatabase, preferences: PreferencesStandIn
) -> None:
    preferences.known[user.id] = user_pb2.Preferences(conversation_timeout_seconds=3600)
    first = await text(user, by_sms, "hello")
    await silent_for(database, 3000)
    assert (await text(user, by_sms, "again")).conversation_id == first.conversation_id


async def test_a_text_is_one_turn_however_often_it_is_asked(user: User, by_sms: Metadata) -> None:
    many = await asyncio.gather(*(text(user, by_sms, "hello", request_id="sms:1") for _ in range(5)))
    again = await text(user, by_sms, "hello", request_id="sms:1")
    assert {one.id for one in many} == {again.id}
    assert len(await user.messages(again.conversation_id)) == 2


async def test_a_text_that_failed_is_not_tried_again_once_another_began(
    user: User, by_sms: Metadata, simulator: Running
) -> None:
    """Which is why sms keeps the order of a person's texts."""
    await simulator.control.script(ScriptedAnswer(text="never", fault=Fault(kind="cut", after_tokens=0)))
    failed = await refusal(text(user, by_sms, "first", request_id="sms:1"))
    answered = await text(user, by_sms, "second", request_id="sms:2")
    again = await refusal(text(user, by_sms, "first", request_id="sms:1"))
    assert (again.code, again.reason) == (failed.code, failed.reason)
    assert [one.text for one in await user.messages(answered.conversation_id)][::2] == ["first", "second"]


async def test_tasks_work_by_text(user: User, by_sms: Metadata) -> None:
    answer = await text(user, by_sms, "Add milk to my list")
    assert await titles(user) == ["milk"] or await titles(user) == ["Milk"], await titles(user)
    assert "milk" in answer.reply.lower()


async def test_the_model_is_told_to_be_short_and_memory_is_asked_for_the_user(
    user: User, by_sms: Metadata, simulator: Running, memory: MemoryStandIn
) -> None:
    answer = await text(user, by_sms, "hello")
    [asked] = await simulator.control.requests("responses")
    assert "SMS" in asked.body["instructions"]
    await eventually(lambda: answer.conversation_id in memory.turns)
    assert memory.users[answer.conversation_id] == user.id
    await say(user)
    asked = (await simulator.control.requests("responses"))[-1]
    assert "SMS" not in asked.body["instructions"]


async def test_another_way_is_refused(user: User) -> None:
    asked = chat_pb2.ProcessUtteranceRequest(text="hello", channel="fax")
    assert (await refusal(user.chat.ProcessUtterance(asked, metadata=user.metadata, timeout=10))).fields == ["channel"]


async def _turns(user: User, metadata: Metadata, **fields: Any) -> list[conversation_pb2.Turn]:
    request = conversation_pb2.ReadTurnsRequest(**{"limit": 50, **fields})
    return list((await user.conversations.ReadTurns(request, metadata=metadata, timeout=10)).turns)


async def test_turns_of_all_conversations_are_read_with_their_cost(user: User, by_sms: Metadata, chat: ChatProcess) -> None:
    written = await user.create("in writing")
    spoken = await say(user, "aloud")
    texted = await text(user, by_sms, "by text")
    await chat.user().create("another's")
    chat.statements.clear()
    turns = await _turns(user, by_sms)
    assert [(one.input_text, one.conversation_kind, one.conversation_id) for one in turns] == [
        ("by text", "texted", texted.conversation_id),
        ("aloud", "spoken", spoken.conversation_id),
        ("in writing", "written", written.conversation_id),
    ]
    assert (turns[0].reply, turns[0].reply_id, turns[0].status, turns[0].model) == (
        texted.reply, texted.id, "complete", texted.model,
    )  # fmt: skip
    assert turns[2].usage == written.usage
    assert len([one for one in chat.statements if "AS said" in one]) == 1
    # The user's own token goes along when the user asks sms.
    together = (*by_sms[:1], *user.metadata)
    assert await _turns(user, together) == turns


async def test_pages_of_turns_leave_nothing_out(user: User, by_sms: Metadata) -> None:
    said = [(await user.create(f"turn {number}")).user_message.id for number in range(5)]
    read: list[str] = []
    place: dict[str, Any] = {}
    while turns := await _turns(user, by_sms, limit=2, **place):
        read += [one.id for one in turns]
        place = {"before_time": turns[-1].create_time, "before_id": turns[-1].id}
    assert read == said[::-1]


async def test_an_edited_turn_is_there_once_as_it_is_now(user: User, by_sms: Metadata) -> None:
    first = await user.create("before")
    await user.edit(first.user_message, "after")
    assert [one.input_text for one in await _turns(user, by_sms)] == ["after"]


async def test_turns_are_for_services_on_behalf_of_a_user(user: User, issuer: Issuer, by_sms: Metadata) -> None:
    request = conversation_pb2.ReadTurnsRequest(limit=1)
    refused = await refusal(user.conversations.ReadTurns(request, metadata=user.metadata, timeout=10))
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ACCESS_DENIED")
    alone = issuer.as_service("sms", audience="chat")
    assert (await refusal(user.conversations.ReadTurns(request, metadata=alone, timeout=10))).reason == "IDENTITY_MISSING"
    for wrong in ({"limit": 0}, {"limit": 202}, {"before_time": Timestamp(seconds=1)}, {"before_id": str(uuid.uuid4())}):
        assert (await refusal(_turns(user, by_sms, **wrong))).reason == "INVALID_REQUEST"
