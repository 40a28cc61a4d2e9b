"""An earlier system is loaded beside a running suite: its user signs in at the edge and goes on."""

import datetime as dt
import uuid
from pathlib import Path

from tests.e2e.harness import Client, Suite
from tests.earlier import systems
from tests.suite_process import ROOT, outcome, start_command


async def test_a_user_of_an_earlier_system_goes_on(remembering: Suite, tmp_path: Path) -> None:
    name = f"ana{uuid.uuid4().hex[:12]}"
    path = systems.memory_chatbot(tmp_path / "old.db", name)
    arguments = ("import", str(path), "--system", "memory-chatbot", "--source", name, "--memory-pace", "100000")
    process = await start_command(remembering.environment, ROOT, "-m", "suite.command", *arguments)
    code, said, errors = await outcome(process)
    assert (code, errors) == (0, ""), said
    client = Client(remembering.url)
    client.tokens = (await client.call("POST", "/api/v1/auth/login", username=name, password=systems.PASSWORD))["tokens"]
    [talk] = (await client.call("GET", "/api/v1/chat/conversations"))["conversations"]
    assert (talk["title"], talk["message_count"], talk["last_message_time"]) == ("Genmaicha", 4, "2024-05-02T07:04:02Z")
    found = await remembered(client, "genmaicha")
    assert {one["memory"]["valid_from_time"][:10] for one in found if one["memory"]["kind"] == "message"} == {"2024-05-02"}
    events = await client.streamed("Which tea is my favourite?", conversation_id=talk["id"])
    assert events[-1].kind == "completed"
    messages = (await client.call("GET", f"/api/v1/chat/conversations/{talk['id']}/messages"))["messages"]
    assert [one["sequence"] for one in messages] == [1, 2, 3, 4, 5, 6]
    assert messages[0]["create_time"] == "2024-05-02T07:00:01Z"
    await client.close()


async def remembered(client: Client, words: str) -> list[dict[str, dict[str, str]]]:
    """What memory has been told of within a while."""
    end = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=30)
    found: list[dict[str, dict[str, str]]] = []
    while not found:
        assert dt.datetime.now(dt.UTC) < end, "memory was not told"
        found = (await client.call("POST", "/api/v1/memories/search", query=words)).get("memories", [])
    return found
