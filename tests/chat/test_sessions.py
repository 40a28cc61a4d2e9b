"""What older systems call sessions: the caller's own by path, and every user's for administrators, without content."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from parley.chat.v1 import admin_pb2, admin_pb2_grpc
from parley.chat.v1 import conversation_pb2 as pb
from tests.chat.service import ChatProcess, User, asked_of_database, refusal
from tests.chat.test_conversations import MADE_UP, new


async def sessions(chat: ChatProcess, caller: User, **fields: Any) -> admin_pb2.ListSessionsResponse:
    stub = admin_pb2_grpc.AdminServiceStub(chat.channel)
    return await stub.ListSessions(admin_pb2.ListSessionsRequest(**fields), metadata=caller.metadata, timeout=10)


async def test_an_administrator_sees_every_users_conversations_without_content(chat: ChatProcess) -> None:
    admin, ana, ben = chat.admin(), chat.user(), chat.user()
    first = await ana.create("Secret words")
    empty = await new(ben, "Secret title")
    second = await ben.create("More secret words")
    answer = await sessions(chat, admin)
    assert [(one.user_id, one.conversation_id, one.message_count) for one in answer.sessions] == [
        (ben.id, second.conversation_id, 2), (ben.id, empty.id, 0), (ana.id, first.conversation_id, 2),
    ]  # fmt: skip
    assert [one.HasField("last_message_time") for one in answer.sessions] == [True, False, True]
    assert all(one.HasField("create_time") for one in answer.sessions)
    assert b"ecret" not in answer.SerializeToString()
    only = await sessions(chat, admin, user_id=ben.id.upper())
    assert {one.user_id for one in only.sessions} == {ben.id}
    assert len(only.sessions) == 2
    assert list((await sessions(chat, admin, user_id=str(uuid.uuid4()))).sessions) == []


async def test_only_administrators_see_them(chat: ChatProcess) -> None:
    user = chat.user()
    for fields in ({}, {"user_id": user.id}):
        refused = await refusal(sessions(chat, user, **fields))
        assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ACCESS_DENIED")


async def test_pages_of_sessions_hold_each_once_and_cost_one_statement(chat: ChatProcess) -> None:
    admin, users = chat.admin(), [chat.user() for _ in range(4)]
    made = {(await new(user, str(number))).id for user in users for number in range(3)}
    seen, page_token, counts = [], "", []
    while True:
        chat.statements.clear()
        got = await sessions(chat, admin, page_size=5, page_token=page_token)
        counts.append(len(asked_of_database(chat)))
        seen += [one.conversation_id for one in got.sessions]
        page_token = got.next_page_token
        if not page_token:
            break
        # A newer one shifts nothing.
        await new(users[0])
    assert (len(seen), set(seen)) == (12, made)
    assert counts == [1, 1, 1]
    of_all = (await sessions(chat, admin, page_size=2)).next_page_token
    assert (await refusal(sessions(chat, admin, user_id=users[0].id, page_token=of_all))).reason == "INVALID_PAGE_TOKEN"


@pytest.mark.parametrize("page_token", MADE_UP)
async def test_a_token_that_the_list_did_not_make_is_refused(chat: ChatProcess, page_token: str) -> None:
    refused = await refusal(sessions(chat, chat.admin(), page_token=page_token))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")
    assert (await refusal(sessions(chat, chat.admin(), user_id="x"))).fields == ["user_id"]


def by_path(caller: User, user_id: str, conversation_id: str) -> list[Callable[[], Awaitable[Any]]]:
    """Every call of the older systems' routes, with the user that their path names."""
    rpc: Any = caller.conversations
    fixed: dict[str, Any] = {"metadata": caller.metadata, "timeout": 10}
    one: dict[str, Any] = {"user_id": user_id, "conversation_id": conversation_id}
    return [
        lambda: rpc.CreateConversation(pb.CreateConversationRequest(user_id=user_id, title="New"), **fixed),
        lambda: rpc.ListConversations(pb.ListConversationsRequest(user_id=user_id), **fixed),
        lambda: rpc.GetConversation(pb.GetConversationRequest(**one), **fixed),
        lambda: rpc.UpdateConversation(pb.UpdateConversationRequest(**one, title="Newer"), **fixed),
        lambda: rpc.DeleteConversation(pb.DeleteConversationRequest(**one), **fixed),
        lambda: caller.create("Hi", user_id=user_id),
    ]


async def test_the_path_names_the_caller_or_me(chat: ChatProcess) -> None:
    user = chat.user()
    for name in ("me", user.id, ""):
        made = await new(user, "Mine")
        for call in by_path(user, name, made.id):
            await call()
    # Which of the two is no part of what a request id names.
    asked = [pb.CreateConversationRequest(title="Once", request_id="one", user_id=name) for name in ("me", user.id)]
    calls = (user.conversations.CreateConversation(one, metadata=user.metadata, timeout=10) for one in asked)
    first, second = await asyncio.gather(*calls)
    assert first == second


async def test_nobody_acts_for_another_user_by_the_path_not_even_an_administrator(chat: ChatProcess) -> None:
    owner, stranger, admin = chat.user(), chat.user(), chat.admin()
    made = await new(owner, "Theirs")
    for caller in (stranger, admin):
        for call in by_path(caller, owner.id, made.id):
            refused = await refusal(call())
            assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ACCESS_DENIED")
            assert ("AdminService.ListSessions" in refused.message) == (caller is admin)
    assert [one.conversation_id for one in (await sessions(chat, admin)).sessions] == [made.id]
