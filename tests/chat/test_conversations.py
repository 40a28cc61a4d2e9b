"""Conversations: made, listed, read, renamed, deleted, each by its owner only."""

import asyncio
import base64
import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from psycopg import sql

from parley.chat.v1 import conversation_pb2 as pb
from suite.databases import ServiceDatabase
from tests.chat.peers import MemoryStandIn
from tests.chat.service import ChatProcess, User, asked_for_turns, asked_of_database, eventually, refusal


async def new(user: User, title: str = "", **fields: Any) -> pb.Conversation:
    asked = pb.CreateConversationRequest(title=title, **fields)
    return await user.conversations.CreateConversation(asked, metadata=user.metadata, timeout=10)


async def get(user: User, conversation_id: str) -> pb.Conversation:
    asked = pb.GetConversationRequest(conversation_id=conversation_id)
    return await user.conversations.GetConversation(asked, metadata=user.metadata, timeout=10)


async def listed(user: User, **fields: Any) -> pb.ListConversationsResponse:
    asked = pb.ListConversationsRequest(**fields)
    return await user.conversations.ListConversations(asked, metadata=user.metadata, timeout=10)


async def rename(user: User, conversation_id: str, title: str, *paths: str) -> pb.Conversation:
    mask = FieldMask(paths=paths) if paths else None
    asked = pb.UpdateConversationRequest(conversation_id=conversation_id, title=title, update_mask=mask)
    return await user.conversations.UpdateConversation(asked, metadata=user.metadata, timeout=10)


async def page(user: User, conversation_id: str, **fields: Any) -> pb.ListMessagesResponse:
    asked = pb.ListMessagesRequest(conversation_id=conversation_id, **fields)
    return await user.conversations.ListMessages(asked, metadata=user.metadata, timeout=10)


async def full(user: User, conversation_id: str) -> pb.FullConversation:
    asked = pb.GetFullConversationRequest(conversation_id=conversation_id)
    return await user.conversations.GetFullConversation(asked, metadata=user.metadata, timeout=10)


async def test_an_empty_conversation_has_a_title_if_given_and_no_messages(user: User) -> None:
    titled, untitled = await new(user, "Plans"), await new(user)
    assert (titled.title, untitled.title, titled.message_count) == ("Plans", "", 0)
    assert not titled.HasField("last_message_time")
    assert await get(user, titled.id) == titled
    assert list((await page(user, titled.id)).messages) == []
    assert list((await full(user, titled.id)).messages) == []


async def test_creating_twice_with_one_request_id_creates_once(user: User) -> None:
    first, *others = await asyncio.gather(*(new(user, "Plans", request_id="one") for _ in range(5)))
    assert all(one == first for one in others)
    assert len((await listed(user)).conversations) == 1
    refused = await refusal(new(user, "Other", request_id="one"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_the_first_message_becomes_the_title_unless_the_user_gave_one(user: User) -> None:
    long = "What is the best way to learn to play the piano as an adult with little time?"
    answer = await user.create(long)
    title = (await get(user, answer.conversation_id)).title
    assert title == "What is the best way to learn to play the piano as an adult"
    mine = await rename(user, answer.conversation_id, "Piano")
    await user.create("And the violin?", conversation_id=answer.conversation_id)
    assert (await get(user, answer.conversation_id)).title == mine.title == "Piano"
    empty, titled = await new(user), await new(user, "Mine")
    for one in (empty, titled):
        await user.create("Hello\n  there", conversation_id=one.id)
    assert (await get(user, empty.id)).title == "Hello there"
    assert (await get(user, titled.id)).title == "Mine"


async def test_only_the_title_can_be_changed(user: User) -> None:
    made = await new(user, "Old")
    assert (await rename(user, made.id, "New", "title")).title == "New"
    refused = await refusal(rename(user, made.id, "Newer", "title", "message_count"))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["update_mask"])
    assert (await get(user, made.id)).title == "New"
    for title in ("", "x" * 201, "a\x00"):
        assert (await refusal(rename(user, made.id, title))).fields == ["title"]


async def test_the_conversation_with_the_latest_message_comes_first(user: User) -> None:
    ids = [(await user.create(f"Number {number}")).conversation_id for number in range(3)]
    await user.create("Again", conversation_id=ids[0])
    rows = (await listed(user)).conversations
    assert [row.id for row in rows] == [ids[0], ids[2], ids[1]]
    assert [row.message_count for row in rows] == [4, 2, 2]
    assert all(row.HasField("last_message_time") for row in rows)


async def test_pages_of_conversations_hold_each_once(user: User) -> None:
    made = [(await new(user, str(number))).id for number in range(7)]
    seen, token = [], ""
    while True:
        got = await listed(user, page_size=3, page_token=token)
        seen += [row.id for row in got.conversations]
        token = got.next_page_token
        if not token:
            break
        # A newer one shifts nothing.
        await new(user, "Newer")
    assert seen == made[::-1]


async def test_pages_of_messages_stay_stable_while_messages_arrive(user: User) -> None:
    conversation_id = (await user.create("0")).conversation_id
    for number in (1, 2):
        await user.create(str(number), conversation_id=conversation_id)
    first = await page(user, conversation_id, page_size=4)
    await user.create("3", conversation_id=conversation_id)
    second = await page(user, conversation_id, page_size=4, page_token=first.next_page_token)
    assert [one.sequence for one in [*first.messages, *second.messages]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert second.next_page_token == ""


async def test_the_full_view_is_the_conversation_and_its_messages(user: User) -> None:
    answer = await user.create("Hi")
    view = await full(user, answer.conversation_id)
    assert list(view.messages) == [answer.user_message, answer.message]
    assert view.conversation == await get(user, answer.conversation_id)
    assert not view.has_earlier_messages


async def test_the_full_view_of_a_long_conversation_is_its_latest_thousand(user: User, database: ServiceDatabase) -> None:
    made = await new(user)
    async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as connection:
        await connection.execute("select set_config('parley.scope', 'service', false)")
        await connection.execute(
            "insert into messages (user_id, conversation_id, sequence, role, text)"
            " select %s, %s, number, 'user', 'x' from generate_series(1, 1005) number",
            (user.id, made.id),
        )
    view = await full(user, made.id)
    assert [one.sequence for one in view.messages] == list(range(6, 1006))
    assert view.has_earlier_messages


async def test_a_deleted_conversation_is_gone_everywhere(user: User, memory: MemoryStandIn) -> None:
    answer = await user.create("Hi")
    kept = await user.create("Other")
    memory.is_away = True
    deleted = await user.delete(answer.conversation_id)
    assert deleted.deleted_messages == 2
    for call in (get, page, full):
        assert (await refusal(call(user, answer.conversation_id))).reason == "CONVERSATION_NOT_FOUND"
    assert (await refusal(user.delete(answer.conversation_id))).reason == "CONVERSATION_NOT_FOUND"
    assert [row.id for row in (await listed(user)).conversations] == [kept.conversation_id]
    # Memory forgets as soon as it can be reached.
    await asyncio.sleep(0.2)
    assert memory.forgotten == set()
    memory.is_away = False
    await eventually(lambda: answer.conversation_id in memory.forgotten)


NAMED: list[Callable[[User, str], Awaitable[object]]] = [
    get, page, full, lambda user, name: rename(user, name, "Mine now"), lambda user, name: user.delete(name),
]  # fmt: skip


@pytest.mark.parametrize("call", NAMED, ids=["get", "messages", "full", "rename", "delete"])
async def test_what_is_not_the_callers_does_not_exist(
    chat: ChatProcess, call: Callable[[User, str], Awaitable[object]]
) -> None:
    owner, stranger = chat.user(), chat.user()
    theirs = await new(owner, "Theirs")
    missing = await refusal(call(stranger, str(uuid.uuid4())))
    refused = await refusal(call(stranger, theirs.id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND")
    assert (refused.code, refused.reason, refused.message) == (missing.code, missing.reason, missing.message)
    assert (await get(owner, theirs.id)).title == "Theirs"
    assert (await refusal(call(stranger, "not-an-id"))).fields == ["conversation_id"]
    assert (await refusal(call(stranger, ""))).fields == ["conversation_id"]
    assert list((await listed(stranger)).conversations) == []


def token(*parts: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


SOMEBODY = "0199bbbb-0000-7000-8000-000000000003"
MADE_UP = [
    "x",
    token("conversations"),
    token("conversations", 1, "not-an-id"),
    token("conversations", 2**63, SOMEBODY),
    token("messages", 1, SOMEBODY),
    token("conversations", "a", "b"),
]


@pytest.mark.parametrize("page_token", MADE_UP)
async def test_a_page_token_that_the_list_did_not_make_is_refused(user: User, page_token: str) -> None:
    made = await new(user)
    refused = await refusal(listed(user, page_token=page_token))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")
    assert (await refusal(page(user, made.id, page_token=page_token))).reason == "INVALID_PAGE_TOKEN"
    for sequence in (-1, 2**40):
        forged = token(f"messages:{made.id}", sequence)
        assert (await refusal(page(user, made.id, page_token=forged))).reason == "INVALID_PAGE_TOKEN"


async def test_a_page_size_is_bounded(user: User) -> None:
    assert (await refusal(listed(user, page_size=-1))).fields == ["page_size"]
    await new(user)
    assert len((await listed(user, page_size=10**6)).conversations) == 1


async def test_lists_cost_the_same_statements_whatever_their_length(
    chat: ChatProcess, user: User, memory: MemoryStandIn
) -> None:
    conversation_id = (await user.create("Hi")).conversation_id
    counts = []
    for recorded in (2, 22):
        # The jobs read messages too.
        await eventually(lambda: sum(len(known) for known in memory.turns.values()) == recorded)  # noqa: B023
        for call in (listed(user), page(user, conversation_id), full(user, conversation_id)):
            chat.statements.clear()
            await call
            counts.append(len(asked_of_database(chat)))
        if recorded == 2:
            for number in range(5):
                await user.create(str(number), conversation_id=conversation_id)
                await user.create(str(number))
    assert counts == [1, 1, 2, 1, 1, 2]


async def test_a_turn_costs_few_statements(chat: ChatProcess, user: User) -> None:
    conversation_id = (await user.create("Hi")).conversation_id
    chat.statements.clear()
    await user.create("More", conversation_id=conversation_id)
    turn = [one for one in asked_for_turns(chat) if "from messages" not in one.lower()]
    assert len(turn) <= 6, turn


async def test_rows_of_others_are_out_of_reach_even_without_a_where(chat: ChatProcess, database: ServiceDatabase) -> None:
    owner = chat.user()
    await owner.create("Secret")
    async with await psycopg.AsyncConnection.connect(database.url) as connection:
        for table in ("conversations", "messages", "generations"):
            counted = await connection.execute(sql.SQL("select count(*) from {}").format(sql.Identifier(table)))
            assert await counted.fetchone() == (0,)
        await connection.execute("select set_config('parley.user_id', %s, true)", (owner.id,))
        counted = await connection.execute("select count(*) from messages")
        assert await counted.fetchone() == (2,)
