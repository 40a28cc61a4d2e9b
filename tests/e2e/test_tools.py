"""What the assistant does besides talking: each step is an event of the stream and a part of the saved reply."""

import asyncio
import base64
import json
from typing import Any

from simulator.control import Control, ScriptedAnswer, ScriptedCitation
from tests.e2e.harness import Client, Event, check_sequence, kinds_of, of_kind, saved, text_of

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


def check_whole(events: list[Event]) -> None:
    """The saved parts say what the events said, in the same order."""
    check_sequence(events)
    message = saved(events)
    assert message["text"] == text_of(events)
    # A reply of text alone has no parts.
    parts = message["parts"] or [{"text": {"text": message["text"]}}]
    assert "".join(part["text"]["text"] for part in parts if "text" in part) == message["text"]
    thought = "".join(part["reasoning"]["text"] for part in parts if "reasoning" in part)
    assert thought == "".join(delta["text"] for delta in of_kind(events, "reasoning_delta"))
    assert [part["tool_call"] for part in parts if "tool_call" in part] == of_kind(events, "tool_call_finished")
    assert [part["code_interpreter"] for part in parts if "code_interpreter" in part] == of_kind(events, "code_interpreter")
    assert message["citations"] == of_kind(events, "citation")


async def said(client: Client, message: str, **body: Any) -> list[Event]:
    events = await client.streamed(message, **body)
    check_whole(events)
    full = await client.call("GET", f"/api/v1/chat/conversations/{events[0].data['started']['conversation_id']}/full")
    assert full["messages"][-1] == saved(events)
    return events


def calls_of(events: list[Event]) -> list[tuple[str, str]]:
    started = [call["id"] for call in of_kind(events, "tool_call_started")]
    finished = of_kind(events, "tool_call_finished")
    assert [call["id"] for call in finished] == started
    return [(call["tool"], call["status"]) for call in finished]


async def test_tasks_by_natural_language(client: Client) -> None:
    added = await said(client, "add a task to buy groceries", use_tasks=True)
    assert calls_of(added) == [("add_task", "succeeded")]
    assert json.loads(of_kind(added, "tool_call_started")[0]["arguments"])["title"] == "buy groceries"
    (task,) = (await client.call("GET", "/api/v1/tasks"))["tasks"]
    assert (task["title"], task["completed"]) == ("buy groceries", False)

    conversation = added[0].data["started"]["conversation_id"]
    listed = await said(client, "what is on my list", use_tasks=True, conversation_id=conversation)
    assert calls_of(listed) == [("list_tasks", "succeeded")]
    assert "buy groceries" in text_of(listed)

    done = await said(client, "done with groceries", use_tasks=True, conversation_id=conversation)
    assert ("complete_task", "succeeded") in calls_of(done)
    (task,) = (await client.call("GET", "/api/v1/tasks"))["tasks"]
    assert task["completed"] is True

    gone = await said(client, "delete the task groceries", use_tasks=True, conversation_id=conversation)
    assert ("delete_task", "succeeded") in calls_of(gone)
    assert (await client.call("GET", "/api/v1/tasks"))["tasks"] == []


async def test_without_the_option_there_are_no_task_tools(client: Client, control: Control) -> None:
    events = await said(client, "add a task to buy groceries")
    assert calls_of(events) == []
    offered = (await control.requests("responses"))[0].body["tools"]
    assert [tool["name"] for tool in offered] == ["remember", "recall", "forget", "set_text_messages"]


async def test_a_repeated_turn_adds_its_task_once(client: Client) -> None:
    body = {"use_tasks": True, "request_id": "the-same"}
    first, again = [await client.streamed("add a task to buy milk", **body) for _ in range(2)]
    assert first == again
    assert len((await client.call("GET", "/api/v1/tasks"))["tasks"]) == 1


async def test_tasks_over_rest_under_both_paths(client: Client, stranger: Client) -> None:
    created = await client.call("POST", "/api/v1/users/me/tasks", title="water plants", due_time="2027-01-01T08:00:00Z")
    own = f"/api/v1/users/{client.user['id']}/tasks/{created['id']}"
    assert await client.call("GET", own) == created == await client.call("GET", f"/api/v1/tasks/{created['id']}")
    assert (await client.call("PATCH", own, title="water the plants"))["title"] == "water the plants"
    assert (await client.call("POST", f"{own}:complete"))["completed"] is True
    assert [task["id"] for task in (await client.call("GET", "/api/v1/tasks?completed=true"))["tasks"]] == [created["id"]]
    assert (await client.call("GET", "/api/v1/tasks?completed=false"))["tasks"] == []
    assert (await stranger.call("GET", "/api/v1/tasks"))["tasks"] == []
    await client.call("DELETE", own)
    assert await client.refusal("GET", own) == (404, "TASK_NOT_FOUND")


async def test_tasks_are_watched_across_processes_and_resumed(client: Client) -> None:
    seen: list[Event] = []
    async with client.events("GET", "/api/v1/tasks:watch") as events:
        seen.append(await anext(events))
        assert seen[0].kind == "started"
        task = await client.call("POST", "/api/v1/tasks", title="call mum")
        await client.streamed("done with call mum", use_tasks=True)
        async with asyncio.timeout(10):
            seen += [await anext(events), await anext(events)]
    assert [event.kind for event in seen] == ["started", "created", "updated"]
    assert seen[1].data["created"]["id"] == seen[2].data["updated"]["id"] == task["id"]
    assert seen[2].data["updated"]["completed"] is True
    await client.call("DELETE", f"/api/v1/tasks/{task['id']}")
    place = {"last-event-id": str(seen[1].id)}
    async with client.events("GET", "/api/v1/tasks:watch", headers={**client.headers, **place}) as events:
        async with asyncio.timeout(10):
            rest = [await anext(events) for _ in range(3)]
    assert rest[0].data["started"]["reset"] is False
    assert rest[1] == seen[2]
    assert rest[2].data["deleted_task_id"] == task["id"]
    assert seen[1].id is not None
    assert rest[1].id is not None
    assert rest[2].id is not None
    assert seen[1].id < rest[1].id < rest[2].id


async def test_web_search_with_citations(client: Client) -> None:
    events = await said(client, "search the web for otters", use_web_search=True)
    assert calls_of(events) == [("web_search", "succeeded")]
    cited = saved(events)["citations"]
    assert len(cited) == 2
    for citation in cited:
        assert text_of(events)[citation["start"] : citation["end"]] == citation["url"]
        assert citation["title"]


async def test_citation_markers_never_reach_the_person(client: Client, control: Control) -> None:
    text = "Otters swim — 🦦 — and play. They sleep."
    citation = ScriptedCitation(url="https://otters.example", title="Otters", start=0, end=text.index("."))
    await control.script(ScriptedAnswer(text=text, citations=[citation], citation_markers=True))
    events = await said(client, "search the web for otters", use_web_search=True)
    assert text_of(events) == text
    (cited,) = saved(events)["citations"]
    assert text[cited["start"] : cited["end"]] == text[: text.index(".")]
    assert not {"\ue200", "\ue201", "\ue202"} & set(json.dumps([event.data for event in events], ensure_ascii=False))


async def test_code_interpreter(client: Client) -> None:
    events = await said(client, "calculate 6 * 7", use_code_interpreter=True)
    (run,) = of_kind(events, "code_interpreter")
    assert (run["code"], run["output"].strip(), run["status"]) == ("print(6 * 7)", "42", "succeeded")
    assert "42" in text_of(events)


async def test_reasoning(client: Client, control: Control) -> None:
    events = await said(client, "think hard", reasoning_effort="high")
    assert kinds_of(events)[:3] == ["started", "reasoning_delta", "text_delta"]
    assert saved(events)["usage"]["reasoning_tokens"] > 0
    assert (await control.requests("responses"))[0].body["reasoning"]["effort"] == "high"


async def test_images_reach_the_model_and_are_kept_without_their_data(client: Client) -> None:
    images = [{"data": base64.b64encode(PIXEL).decode()}, {"url": "https://example.com/cat.png"}]
    events = await said(client, "look", images=images)
    assert f"an image of {len(PIXEL)} bytes (image/png) and an image at https://example.com/cat.png" in text_of(events)
    conversation = events[0].data["started"]["conversation_id"]
    user = (await client.call("GET", f"/api/v1/chat/conversations/{conversation}/messages"))["messages"][0]
    assert user["images"] == [
        {"url": "", "media_type": "image/png", "size_bytes": len(PIXEL)},
        {"url": "https://example.com/cat.png", "media_type": "", "size_bytes": 0},
    ]


async def test_structured_output(client: Client) -> None:
    schema = {
        "type": "object",
        "properties": {"decision": {"type": "string", "enum": ["yes", "no"]}},
        "required": ["decision"],
        "additionalProperties": False,
    }
    events = await said(client, "Are you free at five?", response_schema=schema)
    assert json.loads(text_of(events)) == {"decision": "yes"}


async def test_a_unary_reply_carries_its_calls_and_citations(client: Client) -> None:
    body = {"use_tasks": True, "use_web_search": True}
    added = await client.call("POST", "/api/v1/chat/completions", message="add a task to buy bread", **body)
    assert [call["tool"] for call in added["tool_calls"]] == ["add_task"]
    found = await client.call("POST", "/api/v1/chat/completions", message="search the web for bread", **body)
    assert found["citations"] == found["message"]["citations"] != []


async def test_every_tool_in_one_conversation_and_its_replay(client: Client) -> None:
    """What the model said and did before is told to it again in every later turn, in a form that it takes."""
    options = {"use_tasks": True, "use_web_search": True, "use_code_interpreter": True, "reasoning_effort": "low"}
    conversation = ""
    for message in ("add a task to buy tea", "search the web for tea", "calculate 2 + 2", "what did I just say?"):
        started = {"conversation_id": conversation} if conversation else {}
        events = await said(client, message, **options, **started)
        conversation = events[0].data["started"]["conversation_id"]
    assert "calculate 2 + 2" in text_of(events)
