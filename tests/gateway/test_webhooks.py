"""A provider's webhooks through a real edge: without identity, as they came, with the provider's signature."""

from urllib.parse import urlencode

import httpx2
import pytest
from google.api import httpbody_pb2

from parley.sms.v1 import sms_pb2
from tests.gateway.backend import Script

TWIML = b"<Response></Response>"
FORM = {"content-type": "application/x-www-form-urlencoded; charset=UTF-8", "x-twilio-signature": "sig+/="}
BODY = urlencode({"Body": "Sí, + & = 🙂", "From": "+14155550101"}).encode()
FACES = [
    ("ReceiveTwilioMessage", "/webhooks/twilio/sms"),
    ("ReceiveTwilioStatus", "/webhooks/twilio/sms-status"),
    ("ReceiveTwilioVoiceStatus", "/webhooks/twilio/voice-status"),
    ("ReceiveTwilioMessageStatus", "/webhooks/twilio/sms-status/0199c3f2-7d41-7a6e-9d0b-3c5e8f1a2b4d"),
]


@pytest.fixture(autouse=True)
def answers(script: Script) -> None:
    for name, _ in FACES:
        script.answers(name, httpbody_pb2.HttpBody(content_type="text/xml; charset=utf-8", data=TWIML))


@pytest.mark.parametrize(("rpc", "path"), FACES)
async def test_a_form_passes_as_it_came_and_xml_comes_back(
    client: httpx2.AsyncClient, script: Script, rpc: str, path: str
) -> None:
    response = await client.post(path, content=BODY, headers=FORM)
    assert (response.status_code, response.content) == (200, TWIML)
    assert response.headers["content-type"] == "text/xml; charset=utf-8"
    call = script.only_call(rpc)
    assert (call.request.form.data, call.request.form.content_type) == (BODY, FORM["content-type"])
    assert call.metadata["x-twilio-signature"] == "sig+/="


async def test_a_status_names_its_message_in_the_path(client: httpx2.AsyncClient, script: Script) -> None:
    message_id = "0199c3f2-7d41-7a6e-9d0b-3c5e8f1a2b4d"
    response = await client.post(f"/webhooks/twilio/sms-status/{message_id}", content=BODY, headers=FORM)
    assert response.status_code == 200
    expected = sms_pb2.TwilioMessageStatusWebhook(
        form=httpbody_pb2.HttpBody(content_type=FORM["content-type"], data=BODY), message_id=message_id
    )
    assert script.only_call("ReceiveTwilioMessageStatus").request == expected


async def test_no_token_is_looked_at(client: httpx2.AsyncClient) -> None:
    headers = {**FORM, "authorization": "Bearer rubbish"}
    assert (await client.post("/webhooks/twilio/sms", content=BODY, headers=headers)).status_code == 200


async def test_other_methods_and_large_bodies_are_refused(client: httpx2.AsyncClient, script: Script) -> None:
    refused = await client.get("/webhooks/twilio/sms")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    large = await client.post("/webhooks/twilio/sms", content=b"a=" + b"b" * 3_000_000, headers=FORM)
    assert large.status_code == 413
    assert "ReceiveTwilioMessage" not in script.calls


async def test_the_document_says_form_in_and_xml_out(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/webhooks/twilio/sms"]["post"]
    assert (operation["x-access"], operation["security"]) == ("provider", [])
    assert list(operation["requestBody"]["content"]) == ["application/x-www-form-urlencoded"]
    assert list(operation["responses"]["200"]["content"]) == ["text/xml"]
    assert "403" in operation["responses"]
