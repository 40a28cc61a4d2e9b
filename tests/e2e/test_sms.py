"""Texts through the whole suite: out by the console, one history with turns, decisions, refused webhooks."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.e2e.harness import Client, Suite

BEN = "+14155550102"


@pytest.fixture
async def texter(suite: Suite) -> AsyncIterator[Client]:
    opened = await Client(suite.url).register()
    yield opened
    await opened.close()


async def texts_to(suite: Suite, number: str, count: int) -> list[str]:
    """What the console has written down for a number, once it is so many."""
    file = suite.data / "texts.jsonl"
    for _ in range(200):
        lines = file.read_text().splitlines() if file.exists() else []
        found = [one["text"] for one in map(json.loads, lines) if one["phone_number"] == number]
        if len(found) >= count:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"{len(found)} texts")


async def _delivered(client: Client, message_id: str) -> dict[str, Any]:
    for _ in range(100):
        message = await client.call("GET", f"/api/v1/sms/messages/{message_id}")
        if message["status"] == "delivered":
            return message
        await asyncio.sleep(0.05)
    raise AssertionError(message)


async def test_a_text_goes_out_and_stands_in_the_history_between_turns(texter: Client, suite: Suite) -> None:
    await texter.streamed("hello before")
    sent = await texter.call("POST", "/api/v1/sms/messages", phone_number=BEN, text="Dinner at 7? 🙂", request_id="one")
    again = await texter.call("POST", "/api/v1/sms/messages", phone_number=BEN, text="Dinner at 7? 🙂", request_id="one")
    assert again["id"] == sent["id"]
    decision = await texter.call("POST", "/api/v1/sms/decision", text="Are you coming tonight?")
    assert (decision["decision"], bool(decision["reply"])) == ("yes", True)
    await texter.call("POST", "/api/v1/calls", direction="outbound", phone_number=BEN, duration_seconds=60)
    await texter.streamed("hello after")
    message = await _delivered(texter, sent["id"])
    assert (message["encoding"], message["segments"]) == ("ucs2", 1)
    assert await texts_to(suite, BEN, 1) == ["Dinner at 7? 🙂"]
    page = await texter.call("GET", "/api/v1/history/me?page_size=50")
    assert [one["kind"] for one in page["entries"]] == ["turn", "call", "decision", "message", "turn"]
    turn = page["entries"][0]["turn"]
    assert (turn["input_text"], turn["conversation_kind"], turn["status"]) == ("hello after", "written", "complete")
    assert turn["output_tokens"] > 0
    for name, count in (("conversations", 2), ("calls", 1), ("sms", 2)):
        path = f"/api/v1/history/{texter.user['id']}/{name}"
        assert len((await texter.call("GET", path))["entries"]) == count


async def test_what_is_not_allowed_is_refused_in_the_one_shape(texter: Client) -> None:
    form = {"content-type": "application/x-www-form-urlencoded", "x-twilio-signature": "rubbish"}
    content = b"From=%2B14155550101&To=%2B15005550006&Body=Hi&MessageSid=SM1"
    refused = await texter.refusal("POST", "/webhooks/twilio/sms", headers=form, content=content)
    assert refused == (403, "WEBHOOK_SIGNATURE_WRONG")
    assert await texter.refusal("PUT", "/api/v1/sms/consent", opted_out=True) == (400, "PHONE_NOT_VERIFIED")
    wrong = await texter.refusal("POST", "/api/v1/sms/messages", phone_number="+99912345678", text="Hello")
    assert wrong == (400, "INVALID_REQUEST")
    assert await texter.refusal("GET", "/api/v1/sms/opt-outs") == (403, "ACCESS_DENIED")
    assert await texter.refusal("GET", "/api/v1/history/0199aaaa-0000-7000-8000-000000000001") == (403, "ACCESS_DENIED")


async def test_who_wants_no_texts_says_so_in_any_conversation(texter: Client) -> None:
    events = await texter.streamed("Please don't text me any more")
    [finished] = [one.data["tool_call_finished"] for one in events if one.kind == "tool_call_finished"]
    # Nobody has verified a number here.
    assert (finished["tool"], finished["status"]) == ("set_text_messages", "failed")
    assert events[-1].kind == "completed"
