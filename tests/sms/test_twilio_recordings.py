"""What somebody else's Twilio has sent and answered (tests/recordings/twilio.json), taken without Node.

`.venv/bin/python -m tests.sms.record_twilio` records it anew.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from google.api import httpbody_pb2

from parley.sms.v1 import sms_pb2
from tests.chat.service import refusal
from tests.sms.conftest import Start
from tests.sms.peers import PeopleStandIn
from tests.sms.service import SmsProcess
from tests.sms.twilio_stand_in import ACCOUNT, TwilioStandIn

RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "recordings" / "twilio.json").read_text())
ANA, BEN = "+14155550101", "+14155550102"


async def _replay(sms: SmsProcess, webhook: dict[str, Any], *, body: str | None = None) -> httpbody_pb2.HttpBody:
    headers, path = webhook["headers"], webhook["path"]
    form = httpbody_pb2.HttpBody(content_type=headers["content-type"], data=(body or webhook["body"]).encode())
    metadata = (("x-twilio-signature", headers["x-twilio-signature"]),)
    request = sms_pb2.TwilioWebhook(form=form)
    if path.startswith("/webhooks/twilio/sms-status/"):
        named = sms_pb2.TwilioMessageStatusWebhook(form=form, message_id=path.rpartition("/")[2])
        return await sms.sms.ReceiveTwilioMessageStatus(named, metadata=metadata, timeout=10)
    if path == "/webhooks/twilio/voice-status":
        return await sms.calls.ReceiveTwilioVoiceStatus(request, metadata=metadata, timeout=10)
    return await sms.sms.ReceiveTwilioMessage(request, metadata=metadata, timeout=10)


async def test_recorded_webhooks_are_understood_and_changed_ones_refused(
    start_sms: Start, people: PeopleStandIn, twilio: TwilioStandIn
) -> None:
    async with start_sms(public_url=RECORDED["public_url"]) as sms:
        ana = sms.user(people.add(ANA))
        kinds = [webhook["path"].split("/")[3] for webhook in RECORDED["webhooks"]]
        assert kinds == ["sms", *["sms-status"] * 3, *["voice-status"] * 2]
        for webhook in RECORDED["webhooks"]:
            changed = webhook["body"].replace("Body=", "Body=x").replace("Direction=inbound", "Direction=outbound")
            assert (await refusal(_replay(sms, webhook, body=changed))).reason == "WEBHOOK_SIGNATURE_WRONG"
            for _ in range(2):
                assert (await _replay(sms, webhook)).data.endswith(b"<Response></Response>")
        await sms.settled()
        assert twilio.to(ANA) == ["You said: Milk & 3€ for you? 🙂"]
        [call] = (await ana.list_calls()).calls
        assert (call.direction, call.status) == ("inbound", "completed")


@asynccontextmanager
async def _answering(exchange: dict[str, Any]) -> AsyncIterator[str]:
    """A Twilio that gives one recorded answer."""

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response(exchange["body"], status=exchange["status"])

    app = web.Application()
    app.router.add_post(f"/2010-04-01/Accounts/{ACCOUNT}/Messages.json", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.parametrize(
    ("name", "status", "error_code"),
    [("taken", "sent", ""), ("another's number", "failed", "21606"), ("no such service", "failed", "20404")],
)
async def test_recorded_answers_are_understood(start_sms: Start, name: str, status: str, error_code: str) -> None:
    async with _answering(RECORDED["exchanges"][name]) as url, start_sms(twilio_base_url=url) as sms:
        ana = sms.user()
        sent = await ana.send(BEN, "Hello")
        await sms.settled()
        found = await ana.message(sent.id)
        assert (found.status, found.error_code) == (status, error_code)
