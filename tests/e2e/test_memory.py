"""An assistant that remembers, as a person meets it: through the edge, on the real parts, with the simulated model."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from tests.e2e.harness import Client, Event, Json, check_sequence, of_kind, reason_of, saved, text_of

# Each step of what follows a turn looks for work every two seconds, on a machine that does other things besides.
PATIENCE_SECONDS = 30.0
SOMEBODY = "01990000-0000-7000-8000-00000000000a"


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """What a condition gives once it gives anything."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := await condition()):
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.1)
    return found


async def said(client: Client, message: str, **body: Any) -> list[Event]:
    events = await client.streamed(message, **body)
    check_sequence(events)
    assert events[-1].kind == "completed", events[-1]
    return events


def conversation_of(events: list[Event]) -> str:
    return str(events[0].data["started"]["conversation_id"])


async def search(client: Client, query: str, **body: Any) -> list[Json]:
    """What is found, the best first, each with its score."""
    answer = await client.call("POST", "/api/v1/memories/search", query=query, **body)
    assert answer["degraded"] == []
    return list(answer["memories"])


async def found_text(client: Client, query: str, words: str) -> Json | None:
    """The first found memory that holds the words."""
    memories = [one["memory"] for one in await search(client, query)]
    return next((memory for memory in memories if words in memory["text"]), None)


async def facts(client: Client, **query: str) -> list[Json]:
    asked = "&".join(f"{name}={value}" for name, value in query.items())
    return list((await client.call("GET", f"/api/v1/memories?{asked}"))["memories"])


async def fact_about(client: Client, words: str) -> Json | None:
    return next((fact for fact in await facts(client) if words in fact["text"]), None)


async def exported(client: Client) -> list[Json]:
    answer = await client.http.get("/api/v1/memories:export", headers=client.headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    records = [json.loads(line) for line in answer.text.splitlines()]
    assert list(records[-1]) == ["end"]
    assert records[-1]["end"] == {
        "message_count": sum("message" in record for record in records),
        "fact_count": sum("fact" in record for record in records),
    }
    return records


async def test_what_was_said_in_one_conversation_answers_in_another(ana: Client) -> None:
    first = await said(ana, "My favourite tea is genmaicha.")
    await until(lambda: found_text(ana, "favourite tea", "genmaicha"))
    later = await said(ana, "What is my favourite tea?")
    assert conversation_of(later) != conversation_of(first)
    assert "genmaicha" in text_of(later)
    given = later[0].data["started"]["memory_ids"]
    assert given
    assert set(saved(later)["memory_ids"]) == set(given)
    memories = [await ana.call("GET", f"/api/v1/memories/{memory_id}") for memory_id in given]
    assert any("genmaicha" in memory["text"] for memory in memories)


async def test_a_fact_is_learned_with_its_source(ana: Client) -> None:
    first = await said(ana, "My sister is called Marta.")
    fact = await until(lambda: fact_about(ana, "Marta"))
    assert (fact["kind"], fact["stamped_by"]) == ("fact", "user")
    (source,) = fact["sources"]
    assert source["conversation_id"] == conversation_of(first)
    message = await ana.call("GET", f"/api/v1/memories/{source['message_id']}")
    assert (message["kind"], message["role"], message["text"]) == ("message", "user", "My sister is called Marta.")


async def test_small_talk_and_what_the_assistant_says_are_no_facts(ana: Client) -> None:
    conversation = conversation_of(await said(ana, "Hello!"))
    await said(ana, "Thanks, that is great.", conversation_id=conversation)
    await said(ana, "My dog is called Rex.")
    await until(lambda: fact_about(ana, "Rex"))
    assert len(await facts(ana)) == 1


async def test_a_contradiction_is_superseded_and_kept_as_history(ana: Client) -> None:
    await said(ana, "I live in Lisbon.")
    old = await until(lambda: fact_about(ana, "Lisbon"))
    await said(ana, "I moved from Lisbon to Porto.")
    now = await until(lambda: fact_about(ana, "Porto"))
    assert now["id"] == old["id"]
    assert not await fact_about(ana, "in Lisbon")
    (before,) = (await ana.call("GET", f"/api/v1/memories/{now['id']}/history"))["memories"]
    assert (before["text"], before["superseded_by"]) == (old["text"], now["id"])
    assert before["record_time"] <= before["invalidate_time"]
    current = [one["memory"] for one in await search(ana, "Where do I live?", kind="fact")]
    assert [memory["text"] for memory in current] == [now["text"]]
    past = [one["memory"] for one in await search(ana, "Where did I live before?", kind="fact")]
    assert old["text"] in [memory["text"] for memory in past]


async def test_what_was_liked_before_is_answered_from_the_history(ana: Client) -> None:
    added = await ana.call(
        "POST", "/api/v1/memories", text="The user's favourite music was opera.", attribute="favourite music"
    )
    path = f"/api/v1/memories/{added['id']}"
    changed = await ana.call("PATCH", path, text="The user's favourite music is jazz.", update_mask="text")
    assert (changed["id"], changed["text"]) == (added["id"], "The user's favourite music is jazz.")
    now = await said(ana, "What is my favourite music?")
    assert text_of(now) == "Your favourite music is jazz."
    given = [await ana.call("GET", f"/api/v1/memories/{each}") for each in saved(now)["memory_ids"]]
    assert "The user's favourite music was opera." not in [memory["text"] for memory in given]
    before = await said(ana, "What music did I like before?")
    given = [await ana.call("GET", f"/api/v1/memories/{each}") for each in saved(before)["memory_ids"]]
    assert "The user's favourite music was opera." in [memory["text"] for memory in given]


@pytest.mark.parametrize("by", ["request", "preference"])
async def test_without_memory_nothing_is_read_or_written(ana: Client, by: str) -> None:
    await ana.call("POST", "/api/v1/memories", text="The user's favourite colour is teal.")
    off: dict[str, Any] = {"memory_enabled": False} if by == "request" else {}
    if by == "preference":
        await ana.call("POST", "/api/v1/users/me/preferences", memory_enabled=False)
    asked = await said(ana, "What is my favourite colour?", **off)
    assert "teal" not in text_of(asked)
    assert asked[0].data["started"]["memory_ids"] == saved(asked)["memory_ids"] == []
    told = await said(ana, "My favourite planet is Saturn. Remember that I own a telescope.", **off)
    assert not of_kind(told, "tool_call_started")
    # Something later, in another conversation and with memory, has arrived: so would have this.
    await said(ana, "My favourite bird is the hoopoe.", memory_enabled=True)
    await until(lambda: fact_about(ana, "hoopoe"))
    everything = json.dumps(await exported(ana))
    for words in ("Saturn", "telescope"):
        assert await found_text(ana, f"favourite planet, {words}", words) is None
        assert words not in everything


async def test_the_model_remembers_recalls_and_forgets_by_tools(ana: Client) -> None:
    told = await said(ana, "Remember that my locker is number 42.")
    (call,) = of_kind(told, "tool_call_finished")
    assert (call["tool"], call["status"]) == ("remember", "succeeded")
    fact = await fact_about(ana, "42")
    assert fact is not None
    assert fact["stamped_by"] == "user"
    assert fact["sources"][0]["conversation_id"] == conversation_of(told)

    recalled = await said(ana, "What do you remember about my locker?")
    assert [call["tool"] for call in of_kind(recalled, "tool_call_finished")] == ["recall"]
    assert "42" in text_of(recalled)

    forgotten = await said(ana, "Please forget that my locker is number 42.")
    assert [(call["tool"], call["status"]) for call in of_kind(forgotten, "tool_call_finished")][-1] == (
        "forget",
        "succeeded",
    )
    assert await fact_about(ana, "42") is None
    assert await ana.refusal("GET", f"/api/v1/memories/{fact['id']}") == (404, "MEMORY_NOT_FOUND")


async def test_after_everything_was_deleted_nothing_comes_back(ana: Client) -> None:
    conversation = conversation_of(await said(ana, "My bank's name is Coppermine."))
    await said(ana, "What is my bank's name?", conversation_id=conversation)
    await until(lambda: fact_about(ana, "Coppermine"))
    await ana.call("POST", "/api/v1/memories", text="The user's safe is behind the painting.")
    deleted = await ana.call("DELETE", "/api/v1/memories")
    assert deleted["deleted_facts"] >= 2
    assert deleted["deleted_messages"] == 4
    for _ in range(2):
        assert await search(ana, "What is the name of my bank? Coppermine") == []
        assert await facts(ana, include_closed="true") == []
        assert await exported(ana) == [{"end": {"message_count": 0, "fact_count": 0}}]
        assert (await ana.call("GET", "/api/v1/memories/summary"))["text"] == ""
        # What was still owed has had its time to come after all.
        await asyncio.sleep(3)
    again = await said(ana, "What is my bank's name?")
    assert "Coppermine" not in text_of(again)
    assert await ana.call("DELETE", "/api/v1/memories?before_time=2020-01-01T00:00:00Z") == {
        "deleted_facts": 0,
        "deleted_messages": 0,
    }


async def test_a_deleted_conversation_takes_what_was_learned_from_it(ana: Client) -> None:
    conversation = conversation_of(await said(ana, "My dentist is called Okafor."))
    await until(lambda: fact_about(ana, "Okafor"))
    await ana.call("DELETE", f"/api/v1/chat/conversations/{conversation}")

    async def is_gone() -> bool:
        return not await search(ana, "What is my dentist called? Okafor") and not await facts(ana)

    await until(is_gone)


async def test_an_export_gives_a_fresh_account_the_same_answers(ana: Client, bert: Client) -> None:
    conversation = conversation_of(await said(ana, "I live in Lisbon and my cat is called Ziggy."))
    await said(ana, "My favourite tea is genmaicha.", conversation_id=conversation)
    await until(lambda: fact_about(ana, "genmaicha"))
    added = await ana.call("POST", "/api/v1/memories", text="The user plays the cello.", importance=8)
    await ana.call("PATCH", f"/api/v1/memories/{added['id']}", text="The user plays the viola.", update_mask="text")
    records = await exported(ana)
    done = await bert.call("POST", "/api/v1/memories:import", records=records)
    assert done == {"imported_facts": records[-1]["end"]["fact_count"], "imported_messages": 4}
    again = await bert.call("POST", "/api/v1/memories:import", records=records)
    assert again == {"imported_facts": 0, "imported_messages": 0}
    # What is owed is embedded in both before they are compared.
    queries = ["Where do I live?", "Ziggy the cat", "tea", "Which instrument do I play?", "What did I play before?"]

    async def answers_alike() -> bool:
        return [await told(ana, query) for query in queries] == [await told(bert, query) for query in queries]

    await until(answers_alike)
    assert all([await told(bert, query) for query in queries])
    assert sorted(map(without_times, await exported(bert))) == sorted(map(without_times, records))


async def told(client: Client, query: str) -> list[tuple[str, str]]:
    """What is found, without what differs between two accounts."""
    found = [one["memory"] for one in await search(client, query)]
    return [(memory["kind"], memory["text"]) for memory in found]


def without_times(record: Json) -> str:
    """A record without when it was recorded, which is here and not there."""
    return json.dumps({kind: {k: v for k, v in body.items() if k != "record_time"} for kind, body in record.items()})


async def test_of_another_user_there_is_nothing(ana: Client, bert: Client) -> None:
    conversation = conversation_of(await said(ana, "My passport number is 12345678."))
    fact = await ana.call("POST", "/api/v1/memories", text="The user's passport is in the drawer.")
    message = await until(lambda: found_text(ana, "passport number", "12345678"))
    for memory_id in (fact["id"], message["id"], SOMEBODY):
        path = f"/api/v1/memories/{memory_id}"
        assert await bert.refusal("GET", path) == (404, "MEMORY_NOT_FOUND")
        assert await bert.refusal("PATCH", path, text="mine") == (404, "MEMORY_NOT_FOUND")
        assert await bert.refusal("DELETE", path) == (404, "MEMORY_NOT_FOUND")
        assert await bert.refusal("GET", f"{path}/history") == (404, "MEMORY_NOT_FOUND")
    assert await search(bert, "passport number 12345678") == []
    assert await search(bert, "passport", conversation_id=conversation) == []
    assert await facts(bert) == []
    assert (await bert.call("GET", f"/api/v1/memories/summary?conversation_id={conversation}"))["text"] == ""
    nothing = {"deleted_facts": 0, "deleted_messages": 0}
    assert await bert.call("DELETE", f"/api/v1/memories?conversation_id={conversation}") == nothing
    assert await bert.call("DELETE", "/api/v1/memories") == nothing
    assert "passport" not in json.dumps(await exported(bert))
    assert "12345678" not in text_of(await said(bert, "What is my passport number?"))
    assert (await ana.call("GET", f"/api/v1/memories/{fact['id']}"))["text"] == fact["text"]


async def test_summaries_are_written_after_a_while(ana: Client) -> None:
    conversation = conversation_of(await said(ana, "I want to plan a trip to Madeira."))
    for message in ("I leave on 3 June.", "I travel with my brother.", "I am afraid of heights."):
        await said(ana, message, conversation_id=conversation)
    path = f"/api/v1/memories/summary?conversation_id={conversation}"

    async def summary() -> Json | None:
        found = await ana.call("GET", path)
        return found if found["text"] else None

    found = await until(summary)
    assert "Madeira" in found["text"]
    assert found["conversation_id"] == conversation
    assert found["last_sequence"] > 0

    await ana.call("POST", "/api/v1/memories", text="The user sails a yawl.")

    async def portrait() -> bool:
        return "yawl" in (await ana.call("GET", "/api/v1/memories/summary"))["text"]

    assert await until(portrait)


async def test_an_export_asked_for_by_a_link_of_the_browser_works(ana: Client) -> None:
    """A cookie is enough for what reads; what changes something also says which page asks."""
    await ana.call("POST", "/api/v1/memories", text="The user owns a canoe.")
    async with httpx2.AsyncClient(base_url=ana.http.base_url, timeout=30) as browser:
        cookie = {"cookie": f"session_token={ana.tokens['access_token']}"}
        answer = await browser.get("/api/v1/memories:export", headers=cookie)
        assert [list(json.loads(line)) for line in answer.text.splitlines()] == [["fact"], ["end"]]
        refused = await browser.request("DELETE", "/api/v1/memories", headers=cookie)
        assert (refused.status_code, reason_of(refused)) == (403, "ORIGIN_NOT_ALLOWED")
