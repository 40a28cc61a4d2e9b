"""A person by text message, through the whole suite: a number is verified, answered, silenced, and gone with its account."""

import asyncio
import re
import uuid
from urllib.parse import urlencode

from tests.e2e.conftest import TWILIO_TOKEN
from tests.e2e.harness import Client, Suite
from tests.e2e.test_sms import texts_to
from tests.sms.twilio_stand_in import signature

OWN_NUMBER = "+15005550006"
WEBHOOK = "/webhooks/twilio/sms"
OPTED_OUT = (400, "RECIPIENT_OPTED_OUT")


def a_number() -> str:
    return f"+1415555{uuid.uuid4().int % 10_000:04}"


async def verified(client: Client, suite: Suite, number: str) -> None:
    await client.call("POST", "/api/v1/auth/phone", phone_number=number)
    [told] = await texts_to(suite, number, 1)
    code = re.search(r"\b[0-9]{6}\b", told)
    assert code is not None
    user = await client.call("POST", "/api/v1/auth/phone:verify", code=code[0])
    assert user["phone_number"] == number


async def text_in(client: Client, suite: Suite, number: str, body: str, *, sid: str = "") -> None:
    """What Twilio would send, signed."""
    form = {"MessageSid": sid or f"SM{uuid.uuid4().hex}", "From": number, "To": OWN_NUMBER, "Body": body}
    headers = {
        "content-type": "application/x-www-form-urlencoded",
        "x-twilio-signature": signature(suite.url + WEBHOOK, form, TWILIO_TOKEN),
    }
    answer = await client.http.post(WEBHOOK, content=urlencode(form), headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/xml; charset=utf-8")


async def concluded(client: Client, answer: str) -> None:
    """Waits until this came of the latest text: it is decided by a job, with the preferences as they then are."""
    for _ in range(100):
        history = await client.call("GET", "/api/v1/history/me/sms")
        found = [one["message"]["answer"] for one in history["entries"] if one["message"]["direction"] == "inbound"]
        if found[:1] not in ([], ["pending"]):
            break
        await asyncio.sleep(0.05)
    assert found[0] == answer


async def test_a_text_from_a_verified_number_is_answered_once_and_acts(client: Client, suite: Suite) -> None:
    number, sid = a_number(), f"SM{uuid.uuid4().hex}"
    await verified(client, suite, number)
    await text_in(client, suite, number, "Add milk to my list")
    await concluded(client, "not_wanted")
    await client.call("PATCH", "/api/v1/users/me/preferences", auto_reply_enabled=True)
    for _ in range(5):
        await text_in(client, suite, number, "Add milk to my list", sid=sid)
    replies = await texts_to(suite, number, 2)
    tasks = await client.call("GET", "/api/v1/tasks")
    assert [one["title"].lower() for one in tasks["tasks"]] == ["milk"]
    # The code and the one reply: what came before the preference was kept and not answered.
    await asyncio.sleep(1)
    assert await texts_to(suite, number, 2) == replies
    history = await client.call("GET", "/api/v1/history/me/sms")
    assert sum(one["message"]["direction"] == "inbound" for one in history["entries"] if "message" in one) == 2


async def test_stop_is_confirmed_once_and_then_there_is_silence(client: Client, suite: Suite) -> None:
    number = a_number()
    await verified(client, suite, number)
    await client.call("PATCH", "/api/v1/users/me/preferences", auto_reply_enabled=True)
    await text_in(client, suite, number, " stop ")
    await text_in(client, suite, number, "STOP")
    await text_in(client, suite, number, "What is on my list?")
    told = await texts_to(suite, number, 2)
    assert await client.refusal("POST", "/api/v1/sms/messages", phone_number=number, text="Hi") == (
        400,
        "RECIPIENT_OPTED_OUT",
    )
    await asyncio.sleep(1)
    assert await texts_to(suite, number, 2) == told
    assert (await client.call("PUT", "/api/v1/sms/consent", opted_out=False))["opted_out"] is False
    await client.call("POST", "/api/v1/sms/messages", phone_number=number, text="Welcome back")
    assert (await texts_to(suite, number, 3))[-1] == "Welcome back"


async def test_said_in_a_conversation_it_holds_for_texts(client: Client, suite: Suite) -> None:
    number = a_number()
    await verified(client, suite, number)
    events = await client.streamed("Please don't text me any more")
    [finished] = [one.data["tool_call_finished"] for one in events if one.kind == "tool_call_finished"]
    assert (finished["tool"], finished["status"]) == ("set_text_messages", "succeeded")
    assert await client.refusal("POST", "/api/v1/sms/messages", phone_number=number, text="Hi") == (
        400,
        "RECIPIENT_OPTED_OUT",
    )


async def test_a_deleted_user_is_nobodys_number(client: Client, stranger: Client, suite: Suite) -> None:
    number = a_number()
    await verified(client, suite, number)
    await client.call("PATCH", "/api/v1/users/me/preferences", auto_reply_enabled=True)
    await client.call("DELETE", "/api/v1/users/me")
    await text_in(stranger, suite, number, "Are you there?")
    await asyncio.sleep(1)
    assert len(await texts_to(suite, number, 1)) == 1
    # The number is free again.
    await stranger.call("POST", "/api/v1/auth/phone", phone_number=number)
