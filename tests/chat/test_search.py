"""The search over one's conversations, by the words in their titles and messages."""

import json
from typing import Any

import grpc
import psycopg
import pytest

from parley.chat.v1 import conversation_pb2 as pb
from simulator.control import ScriptedAnswer
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.chat.service import ChatProcess, User, asked_of_database, refusal
from tests.chat.test_conversations import MADE_UP, new, rename, token


async def search(user: User, query: str, **fields: Any) -> pb.SearchConversationsResponse:
    asked = pb.SearchConversationsRequest(query=query, **fields)
    return await user.conversations.SearchConversations(asked, metadata=user.metadata, timeout=10)


async def found(user: User, query: str) -> list[str]:
    return [one.conversation.id for one in (await search(user, query)).results]


async def said(user: User, text: str, simulator: Running, *, reply: str = "Yes.", **fields: Any) -> Any:
    await simulator.control.script(ScriptedAnswer(text=reply))
    return await user.create(text, **fields)


async def test_every_word_must_occur_in_any_order_the_last_as_a_beginning(user: User, simulator: Running) -> None:
    piano = (await said(user, "How do I tune a piano at home?", simulator)).conversation_id
    await said(user, "How do I tune a violin?", simulator)
    assert await found(user, "piano tune") == [piano]
    assert await found(user, "PIANO, tun") == [piano]
    assert await found(user, "pian tune") == []
    assert await found(user, "piano violin") == []
    assert len(await found(user, "tune")) == 2


async def test_the_reply_is_searched_too_and_the_title_with_either(user: User, simulator: Running) -> None:
    made = await said(user, "What is it?", simulator, reply="A grand piano.")
    [one] = (await search(user, "grand")).results
    assert (one.message_id, one.excerpt) == (made.message.id, "A grand piano.")
    await rename(user, made.conversation_id, "Furniture")
    [one] = (await search(user, "furniture")).results
    assert (one.conversation.title, one.message_id, one.excerpt) == ("Furniture", "", "")
    [one] = (await search(user, "piano furniture")).results
    assert one.message_id == made.message.id
    # Words of two messages are not together in either.
    assert await found(user, "what grand") == []


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Das ist ÄRGERLICH, Straße", "ärgerlich straße"),
        ("Ελληνικά γράμματα", "ΓΡΆΜΜΑΤΑ"),
        ("see https://example.com/path?x=1", "example path"),
        ("see https://example.com/path?x=1", "example.com"),
        ("version 3.14-beta of foo_bar", "3.14 beta bar"),
        ("cafe\u0301 au lait", "caf\u00e9"),
        ("\uff46\uff55\uff4c\uff4c width", "full"),
        ("हिन्दी में बात", "हिन्दी बात"),
        ("don't stop", "don't"),
        ("emoji 🎹 here", "emoji 🎹 here"),
    ],
)
async def test_words_are_letters_and_digits_in_every_language(user: User, simulator: Running, text: str, query: str) -> None:
    made = await said(user, text, simulator)
    assert await found(user, query) == [made.conversation_id]


HOSTILE = [
    "a' & 'b",
    "'); drop table messages; --",
    "a:* | b",
    "!a",
    "a <-> b",
    "\\",
    "a\\'b",
    "((((a",
    "a & !b",
    "%' or 1=1",
]


@pytest.mark.parametrize("query", HOSTILE)
async def test_no_query_is_syntax(user: User, simulator: Running, query: str) -> None:
    await said(user, "nothing of that", simulator)
    if not any(character.isalnum() for character in query):
        assert (await refusal(search(user, query))).fields == ["query"]
        return
    assert await found(user, query) == []
    made = await said(user, f"before {query} after", simulator)
    assert await found(user, query) == [made.conversation_id]


async def test_a_search_for_nothing_is_refused(user: User) -> None:
    for query in ("", "   ", "?!", "x" * 501, "a\x00"):
        refused = await refusal(search(user, query))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["query"])


async def test_the_best_comes_first(user: User, simulator: Running) -> None:
    long = (await said(user, "Of a piano and " + "many other things " * 30, simulator)).conversation_id
    titled = (await said(user, "Piano", simulator, reply="A piano.")).conversation_id
    assert await found(user, "piano") == [titled, long]


async def test_the_excerpt_is_around_the_words_and_plain(user: User, simulator: Running) -> None:
    text = "<b>start</b> " + "lorem ipsum " * 100 + "the grand <i>piano</i>\n\nstands here " + "dolor sit " * 100
    made = await said(user, text, simulator)
    await rename(user, made.conversation_id, "Untitled")
    [one] = (await search(user, "stands piano")).results
    assert "the grand <i>piano</i> stands here" in one.excerpt
    assert one.excerpt.startswith("… ")
    assert one.excerpt.endswith(" …")
    assert len(one.excerpt) < 260
    assert (await search(user, "start")).results[0].excerpt.startswith("<b>start</b> lorem")


async def test_what_was_superseded_is_not_searched(user: User, simulator: Running) -> None:
    made = await said(user, "A violin", simulator, reply="Of wood.")
    await simulator.control.script(ScriptedAnswer(text="Of brass."))
    await user.edit(made.user_message, "A trumpet")
    assert await found(user, "violin") == await found(user, "wood") == []
    assert await found(user, "brass") == await found(user, "trumpet") == [made.conversation_id]


async def test_nobody_elses_conversations_are_found(chat: ChatProcess, simulator: Running) -> None:
    owner, stranger = chat.user(), chat.user()
    made = await said(owner, "Secret piano", simulator)
    await said(stranger, "Own piano", simulator)
    assert await found(owner, "piano") == [made.conversation_id]
    assert await found(stranger, "secret") == []
    await owner.delete(made.conversation_id)
    assert await found(owner, "piano") == []


async def test_pages_hold_each_once_and_cost_one_statement(chat: ChatProcess, user: User) -> None:
    made = {(await new(user, f"Piano {number}")).id for number in range(7)}
    seen, page_token, counts = [], "", []
    while True:
        chat.statements.clear()
        got = await search(user, "piano", page_size=3, page_token=page_token)
        counts.append(len(asked_of_database(chat)))
        seen += [one.conversation.id for one in got.results]
        page_token = got.next_page_token
        if not page_token:
            break
    assert (len(seen), set(seen)) == (7, made)
    assert counts == [1, 1, 1]
    assert (await refusal(search(user, "piano", page_size=-1))).fields == ["page_size"]
    # A token belongs to its query.
    token_of_piano = (await search(user, "piano", page_size=3)).next_page_token
    assert (await refusal(search(user, "pian", page_token=token_of_piano))).reason == "INVALID_PAGE_TOKEN"


@pytest.mark.parametrize("page_token", [*MADE_UP, token("found:0", 1, "0199bbbb-0000-7000-8000-000000000003")])
async def test_a_token_that_the_search_did_not_make_is_refused(user: User, page_token: str) -> None:
    assert (await refusal(search(user, "piano", page_token=page_token))).reason == "INVALID_PAGE_TOKEN"


_FILL = """
with made as (
  insert into conversations (user_id, title, message_count, last_message_time)
  select %(user)s, 'Number ' || number, 20, now() from generate_series(1, %(count)s) number returning id
)
insert into messages (user_id, conversation_id, sequence, role, text)
select %(user)s, made.id, number, case when number %% 2 = 1 then 'user' else 'assistant' end,
  'piano' || (number %% 7) || repeat(' some words of an ordinary answer ' || number, 12)
from made, generate_series(1, 20) number
"""


async def fill(database: ServiceDatabase, user_id: str, conversations: int) -> None:
    async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as connection:
        await connection.execute("select set_config('parley.scope', 'service', false)")
        await connection.execute(_FILL, {"user": user_id, "count": conversations})
        await connection.execute("analyze messages, conversations")


async def test_only_the_users_own_rows_are_read(chat: ChatProcess, database: ServiceDatabase) -> None:
    """By the plan: as rows of others multiply, what is read does not."""
    user, other = chat.user(), chat.user()
    await fill(database, user.id, 50)
    await fill(database, other.id, 500)
    chat.statements.clear()
    assert len((await search(user, "piano3 ordinary", page_size=100)).results) == 50
    [statement] = [one for one in chat.statements if "words_of" in one]
    rows = await rows_read(database, statement, user.id)
    # Each once, and those of the page once more, for their excerpts.
    assert rows["messages"] <= 1_020
    assert rows["conversations"] <= 200


async def rows_read(database: ServiceDatabase, statement: str, user_id: str) -> dict[str, int]:
    """Rows that each table's scans of a search gave, those that a filter took away included."""
    values = {
        "query": "piano3 ordinary", "user_id": user_id, "limit": 20, "after_score": 0, "after_id": None,
        "searched": 100_000, "window": 600,
    }  # fmt: skip
    async with await psycopg.AsyncConnection.connect(database.url) as connection:
        await connection.execute("select set_config('parley.user_id', %s, true)", (user_id,))
        cursor = await connection.execute(b"explain (analyze, format json) " + statement.encode(), values)
        row = await cursor.fetchone()
    assert row is not None
    plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
    read: dict[str, int] = {}

    def walk(node: dict[str, Any]) -> None:
        if "Relation Name" in node:
            rows = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            read[node["Relation Name"]] = read.get(node["Relation Name"], 0) + int(rows)
        for child in node.get("Plans", []):
            walk(child)

    walk(plan[0]["Plan"])
    return read
