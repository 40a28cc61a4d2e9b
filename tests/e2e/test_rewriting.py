"""The last turn said or answered anew, titles, search, the older paths, preferences, usage and utterances."""

import asyncio
import json
from typing import Any

import psycopg

from simulator.control import Control, Match, ScriptedAnswer
from tests.e2e.harness import Client, Event, Suite, check_sequence, database_of, saved, text_of

CONVERSATIONS = "/api/v1/chat/conversations"
UNARY = "/api/v1/chat/completions"


async def rewritten(client: Client, what: str, old: dict[str, Any], **body: Any) -> list[Event]:
    path = f"{CONVERSATIONS}/{old['conversation_id']}/messages/{old['id']}:{what}"
    async with client.events("POST", path, json=body) as events:
        told = [event async for event in events]
    check_sequence(told)
    return told


async def texts_of(client: Client, conversation: str, query: str = "") -> list[tuple[str, int, bool]]:
    listed = await client.call("GET", f"{CONVERSATIONS}/{conversation}/messages{query}")
    return [(message["text"], message["version"], message["is_superseded"]) for message in listed["messages"]]


async def test_the_last_message_is_said_anew_and_the_old_branch_kept(client: Client, control: Control) -> None:
    await control.script(*(ScriptedAnswer(text=text) for text in ("first", "old", "new")))
    first = await client.call("POST", UNARY, message="one")
    conversation = first["conversation_id"]
    second = await client.call("POST", UNARY, message="two", conversation_id=conversation)
    events = await rewritten(client, "edit", second["user_message"], message="three")
    assert text_of(events) == "new"
    now = [("one", 1, False), ("first", 1, False), ("three", 2, False), ("new", 2, False)]
    assert await texts_of(client, conversation) == now
    whole = await texts_of(client, conversation, "?include_superseded=true")
    assert whole == [*now[:2], ("two", 1, True), ("three", 2, False), ("old", 1, True), ("new", 2, False)]
    asked = (await control.requests("responses"))[-1].body["input"]
    assert [item["content"] for item in asked] == ["one", "first", "three"]


async def test_the_last_reply_is_written_anew_with_other_options(client: Client, control: Control) -> None:
    await control.script(ScriptedAnswer(text="old"), ScriptedAnswer(text="new"))
    reply = await client.call("POST", UNARY, message="one")
    options = {"reasoning_effort": "low"}
    events = await rewritten(client, "regenerate", reply["message"], options=options, request_id="again")
    assert saved(events)["text"] == "new"
    assert await rewritten(client, "regenerate", reply["message"], options=options, request_id="again") == events
    assert await texts_of(client, reply["conversation_id"]) == [("one", 1, False), ("new", 2, False)]
    assert (await control.requests("responses"))[-1].body["reasoning"]["effort"] == "low"


async def test_only_the_last_turn_can_be_changed(client: Client) -> None:
    first = await client.call("POST", UNARY, message="one")
    await client.call("POST", UNARY, message="two", conversation_id=first["conversation_id"])
    path = f"{CONVERSATIONS}/{first['conversation_id']}/messages"
    edit = f"{path}/{first['user_message']['id']}:edit"
    assert await client.refusal("POST", edit, message="x") == (400, "NOT_LAST_TURN")
    assert await client.refusal("POST", f"{path}/{first['message']['id']}:regenerate", content=b"{}") == (
        400,
        "NOT_LAST_TURN",
    )


async def until_titled(client: Client, conversation: str, wanted: str) -> None:
    async with asyncio.timeout(15):
        while (await client.call("GET", f"{CONVERSATIONS}/{conversation}"))["title"] != wanted:  # noqa: ASYNC110 - another process decides
            await asyncio.sleep(0.1)


async def test_the_model_gives_a_conversation_its_title(client: Client, control: Control) -> None:
    await control.script(ScriptedAnswer(match=Match(asks_title=True), text="A weekend in Porto"))
    reply = await client.call("POST", UNARY, message="Where to eat in Porto on a Sunday?")
    await until_titled(client, reply["conversation_id"], "A weekend in Porto")


async def test_the_persons_own_title_wins(client: Client) -> None:
    made = await client.call("POST", CONVERSATIONS, title="Mine")
    await client.call("POST", UNARY, message="Where to eat?", conversation_id=made["id"])
    renamed = await client.call("POST", UNARY, message="Where to sleep?")
    path = f"{CONVERSATIONS}/{renamed['conversation_id']}"
    await client.call("PATCH", path, title="Mine too")
    later = await client.call("POST", UNARY, message="what to read on the beach with children")
    await until_titled(client, later["conversation_id"], "What to read on the beach")
    assert (await client.call("GET", f"{CONVERSATIONS}/{made['id']}"))["title"] == "Mine"
    assert (await client.call("GET", path))["title"] == "Mine too"


async def test_conversations_are_found_by_their_words(client: Client, stranger: Client) -> None:
    porto = await client.call("POST", UNARY, message="A quiet hotel in Porto with a garden")
    await client.call("POST", UNARY, message="Bread without yeast")
    await stranger.call("POST", UNARY, message="A quiet hotel in Porto")
    found = (await client.call("POST", f"{CONVERSATIONS}:search", query="garden port"))["results"]
    assert [one["conversation"]["id"] for one in found] == [porto["conversation_id"]]
    assert "garden" in found[0]["excerpt"]
    assert (await client.call("POST", f"{CONVERSATIONS}:search", query="volcano"))["results"] == []


async def test_the_sessions_paths_of_the_older_systems(client: Client, stranger: Client) -> None:
    base = f"/api/v1/chat/{client.user['id']}/sessions"
    made = await client.call("POST", base, title="Old")
    assert await client.call("GET", f"{base}/{made['id']}") == made
    assert [row["id"] for row in (await client.call("GET", "/api/v1/chat/me/sessions"))["conversations"]] == [made["id"]]
    assert (await client.call("PATCH", f"{base}/{made['id']}", title="Older"))["title"] == "Older"
    assert await stranger.refusal("GET", base) == (403, "ACCESS_DENIED")
    assert (await client.call("DELETE", f"{base}/{made['id']}"))["deleted_messages"] == 0


async def test_administrators_see_that_there_are_conversations(client: Client, stranger: Client, suite: Suite) -> None:
    reply = await client.call("POST", UNARY, message="private words")
    path = f"/api/v1/admin/sessions?user_id={client.user['id']}"
    assert await stranger.refusal("GET", path) == (403, "ACCESS_DENIED")
    async with await psycopg.AsyncConnection.connect(database_of(suite.data, "auth")) as connection:
        await connection.execute("update users set is_admin = true where id = %s", (stranger.user["id"],))
    answer = await stranger.call("POST", "/api/v1/auth/login", username=stranger.username, password="correct horse battery")
    stranger.tokens = answer["tokens"]
    listed = await stranger.call("GET", path)
    assert [row["conversation_id"] for row in listed["sessions"]] == [reply["conversation_id"]]
    assert "private" not in json.dumps(listed)


async def test_preferences_are_kept_and_used(client: Client, control: Control) -> None:
    path = f"/api/v1/users/{client.user['id']}/preferences"
    given = {"language": "pt-PT", "tts_voice": "alloy", "instructions": "Call me Captain.", "reasoning_effort": "low"}
    made = await client.call("POST", path, **given)
    assert {name: made[name] for name in given} == given
    assert (await client.call("PATCH", "/api/v1/users/me/preferences", language="de-DE"))["language"] == "de-DE"
    await client.call("POST", UNARY, message="hello")
    asked = (await control.requests("responses"))[-1].body
    assert "Call me Captain." in json.dumps(asked)
    assert asked["reasoning"]["effort"] == "low"
    await client.call("DELETE", path)
    assert not (await client.call("GET", path)).get("language")


async def test_an_utterance_is_answered_with_how_to_speak_it(client: Client, control: Control) -> None:
    await client.call("POST", "/api/v1/users/me/preferences", language="en-GB", tts_voice="fable")
    await control.script(ScriptedAnswer(text="**Yes**, see [the map](https://maps.example)."), ScriptedAnswer(text="Bye."))
    first = await client.call("POST", "/api/v1/conversation", text="Can you hear me?")
    assert first["input_text"] == "Can you hear me?"
    speech = first["speech"]
    assert (speech["voice"], speech["language"]) == ("fable", "en-GB")
    assert "*" not in speech["text"]
    assert "https" not in speech["text"]
    assert speech["estimated_duration_seconds"] > 0
    again = await client.call("POST", "/api/v1/conversation", text="Good bye")
    assert again["conversation_id"] == first["conversation_id"]


async def test_usage_adds_up(client: Client) -> None:
    costs = [(await client.call("POST", UNARY, message=message))["usage"] for message in ("one", "two words")]
    told = await client.call("GET", "/api/v1/chat/usage")
    spent = sum(day["usage"]["output_tokens"] for day in told["days"])
    assert spent >= sum(cost["output_tokens"] for cost in costs)
    assert sum(day["replies"] for day in told["days"]) >= 2
    assert told["used_tokens"] >= sum(cost["input_tokens"] + cost["output_tokens"] for cost in costs)
    assert "budget_tokens" not in told
