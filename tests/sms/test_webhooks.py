"""Signatures of webhooks: of the configured URL, whatever a request says of itself."""

import hashlib

import grpc
import pytest
from google.api import httpbody_pb2

from parley.sms.v1 import sms_pb2
from tests.chat.service import refusal
from tests.issuer import Metadata
from tests.sms.conftest import Start
from tests.sms.service import FORM, MESSAGE, PUBLIC_URL, STATUS, SmsProcess, body_of, new_sid, signed
from tests.sms.twilio_stand_in import ACCOUNT, OWN_NUMBER, signature

ANA = "+14155550101"


def _form(**fields: str) -> dict[str, str]:
    return {"MessageSid": new_sid(), "AccountSid": ACCOUNT, "From": ANA, "To": OWN_NUMBER, "Body": "Hi", **fields}


async def _send(sms: SmsProcess, form: dict[str, str], metadata: Metadata) -> httpbody_pb2.HttpBody:
    return await _post(sms, body_of(form), metadata)


async def _post(sms: SmsProcess, body: httpbody_pb2.HttpBody, metadata: Metadata) -> httpbody_pb2.HttpBody:
    return await sms.sms.ReceiveTwilioMessage(sms_pb2.TwilioWebhook(form=body), metadata=metadata, timeout=10)


async def test_wrong_signatures_are_refused_and_store_nothing(sms: SmsProcess) -> None:
    form = _form()
    wrong: dict[str, Metadata] = {
        "none": (),
        "empty": (("x-twilio-signature", ""),),
        "another token": (("x-twilio-signature", signature(PUBLIC_URL + MESSAGE, form, "another")),),
        "another url": (("x-twilio-signature", signature("https://evil.example.com" + MESSAGE, form)),),
        "another path": signed(STATUS, form),
        "another form": signed(MESSAGE, {**form, "Body": "Hi!"}),
        "an unknown algorithm": (*signed(MESSAGE, form), ("x-twilio-webhooks-signature-settings", "algorithm=NONE")),
    }
    for name, metadata in wrong.items():
        refused = await refusal(_send(sms, form, metadata))
        assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "WEBHOOK_SIGNATURE_WRONG"), name
        assert ANA not in refused.message
    assert await sms.rows("select count(*) from messages") == [(0,)]
    await _send(sms, form, signed(MESSAGE, form))
    assert await sms.rows("select count(*) from messages") == [(1,)]


async def test_the_other_webhooks_check_too(sms: SmsProcess) -> None:
    form = _form(MessageStatus="delivered", CallSid=new_sid("CA"), CallStatus="completed")
    status = sms.sms.ReceiveTwilioStatus(sms_pb2.TwilioWebhook(form=body_of(form)), timeout=10)
    assert (await refusal(status)).reason == "WEBHOOK_SIGNATURE_WRONG"
    voice = sms.calls.ReceiveTwilioVoiceStatus(
        sms_pb2.TwilioWebhook(form=body_of(form)), metadata=signed(STATUS, form), timeout=10
    )
    assert (await refusal(voice)).reason == "WEBHOOK_SIGNATURE_WRONG"
    assert (await sms.rows("select count(*) from calls")) == [(0,)]
    # The signature of a status is of the message in its path too.
    request = sms_pb2.TwilioMessageStatusWebhook(form=body_of(form), message_id="0199c3f2-7d41-7a6e-9d0b-3c5e8f1a2b4d")
    moved = sms.sms.ReceiveTwilioMessageStatus(request, metadata=signed(STATUS, form), timeout=10)
    assert (await refusal(moved)).reason == "WEBHOOK_SIGNATURE_WRONG"


async def test_a_field_that_comes_twice_and_signs_of_ports_are_understood(start_sms: Start) -> None:
    async with start_sms(public_url="https://parley.example.com:443/") as sms:
        pairs = [
            ("MessageSid", new_sid()),
            ("AccountSid", ACCOUNT),
            ("From", ANA),
            ("To", OWN_NUMBER),
            ("Body", "a"),
            ("Body", "b"),
        ]
        data = "&".join(f"{name}={value.replace('+', '%2B')}" for name, value in pairs).encode()
        for url in ("https://parley.example.com:443", "https://parley.example.com"):
            body = httpbody_pb2.HttpBody(content_type="application/x-www-form-urlencoded", data=data)
            metadata = (("x-twilio-signature", signature(url + MESSAGE, pairs)),)
            await sms.sms.ReceiveTwilioMessage(sms_pb2.TwilioWebhook(form=body), metadata=metadata, timeout=10)
        assert await sms.rows("select text from messages") == [("a",)]


async def test_a_messaging_services_text_is_taken_like_any_other(sms: SmsProcess) -> None:
    form = _form(MessagingServiceSid="MG" + "0" * 32, NumSegments="1", ApiVersion="2010-04-01", SomethingNew="x")
    await _send(sms, form, signed(MESSAGE, form))
    assert await sms.rows("select text from messages") == [("Hi",)]


async def test_a_token_that_comes_along_is_not_looked_at(sms: SmsProcess) -> None:
    form = _form()
    await _send(sms, form, (*signed(MESSAGE, form), ("authorization", "Bearer rubbish")))
    assert await sms.rows("select count(*) from messages") == [(1,)]


async def test_another_account_is_refused_though_it_signs(sms: SmsProcess) -> None:
    form = _form(AccountSid="AC" + "1" * 32)
    assert (await refusal(_send(sms, form, signed(MESSAGE, form)))).reason == "WEBHOOK_SIGNATURE_WRONG"


async def test_in_shadow_a_wrong_signature_is_logged_and_taken(start_sms: Start, capsys: pytest.CaptureFixture[str]) -> None:
    async with start_sms(webhook_signatures="shadow") as sms:
        await _send(sms, _form(), ())
        assert await sms.rows("select count(*) from messages") == [(1,)]
    assert "webhook.signature_wrong" in capsys.readouterr().out


async def test_without_a_token_every_webhook_is_refused(start_sms: Start) -> None:
    async with start_sms(sms_provider="console", twilio_auth_token="") as sms:
        form = _form()
        metadata = (("x-twilio-signature", signature(PUBLIC_URL + MESSAGE, form, "")),)
        assert (await refusal(_send(sms, form, metadata))).reason == "WEBHOOK_SIGNATURE_WRONG"


async def test_forms_that_are_none_are_refused(sms: SmsProcess) -> None:
    for content_type, data in (
        ("application/json", b"{}"),
        (FORM, b"a=%FF"),
        (FORM, b"&".join(b"a%d=b" % number for number in range(300))),
        (FORM, hashlib.sha256(b"x").digest()),
    ):
        body = httpbody_pb2.HttpBody(content_type=content_type, data=data)
        refused = await refusal(_post(sms, body, signed(MESSAGE, {})))
        assert refused.code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED}, data[:20]


async def test_a_form_whose_signature_can_be_none_of_twilios_is_not_even_read(
    sms: SmsProcess, start_sms: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its fields are no form at all, which is not what it is refused for."""
    body = httpbody_pb2.HttpBody(content_type=FORM, data=b"a=%FF")
    for wrong in ("", "rubbish", "A" * 28, "A" * 43, "=" * 44, "A" * 1_000):
        refused = await refusal(_post(sms, body, (("x-twilio-signature", wrong),)))
        assert refused.reason == "WEBHOOK_SIGNATURE_WRONG", wrong
    assert (await refusal(_post(sms, body, ()))).reason == "WEBHOOK_SIGNATURE_WRONG"
    # What can be one is looked at: of SHA-1, of SHA-256.
    for possible in ("A" * 27 + "=", "A" * 43 + "="):
        assert (await refusal(_post(sms, body, (("x-twilio-signature", possible),)))).fields == ["form"]
    async with start_sms(sms_provider="console", twilio_auth_token="") as without_token:
        assert (await refusal(_post(without_token, body, signed(MESSAGE, {})))).reason == "WEBHOOK_SIGNATURE_WRONG"
    capsys.readouterr()
    async with start_sms(webhook_signatures="shadow") as shadow:
        assert (await refusal(_post(shadow, body, ()))).fields == ["form"]
    assert capsys.readouterr().out.count("webhook.signature_wrong") == 1


async def test_a_form_beyond_every_text_is_refused_before_it_is_read(sms: SmsProcess) -> None:
    # The longest that Twilio sends, with as many pictures as it takes.
    pictures = {f"MediaUrl{n}": "https://api.twilio.com/2010-04-01/Accounts/" + "x" * 150 for n in range(10)}
    types = {f"MediaContentType{n}": "image/jpeg" for n in range(10)}
    await sms.text_in(ANA, "\N{GRINNING FACE}" * 1_600, NumMedia="10", **pictures, **types)
    assert await sms.rows("select length(text) from messages") == [(1_600,)]
    body = httpbody_pb2.HttpBody(content_type=FORM, data=b"Body=" + b"%41" * 11_000)
    refused = await refusal(_post(sms, body, signed(MESSAGE, {"Body": "A" * 11_000})))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["form"])
