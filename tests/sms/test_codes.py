"""Verification codes: sent once, stored nowhere, for auth alone."""

import asyncio
import uuid
from typing import Any

import grpc
import pytest

from parley.sms.v1 import sms_pb2
from tests.chat.service import refusal
from tests.issuer import Metadata
from tests.sms.conftest import Start
from tests.sms.peers import PeopleStandIn
from tests.sms.service import SmsProcess
from tests.sms.twilio_stand_in import TwilioStandIn

ANA = "+14155550101"
USER = "0199aaaa-0000-7000-8000-000000000001"


async def _send(sms: SmsProcess, *, metadata: Metadata | None = None, **fields: Any) -> None:
    asked = {"phone_number": ANA, "code": "483920", "user_id": USER, "request_id": str(uuid.uuid4()), **fields}
    request = sms_pb2.SendVerificationCodeRequest(**asked)
    await sms.sms.SendVerificationCode(request, metadata=metadata or sms.as_auth(), timeout=10)


async def test_a_code_is_sent_once_and_stored_nowhere(
    sms: SmsProcess, twilio: TwilioStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    request_id = str(uuid.uuid4())
    await asyncio.gather(*(_send(sms, request_id=request_id) for _ in range(5)))
    assert twilio.to(ANA) == ["Parley: your code is 483920. Tell it to nobody."]
    for table in ("messages", "procrastinate_jobs", "procrastinate_events", "seen_numbers"):
        assert "483920" not in str(await sms.rows(f"select t::text from {table} t"))  # noqa: S608
    assert "483920" not in capsys.readouterr().out
    # It is no text of the user's: nobody knows yet whose the number is.
    assert list((await sms.user(USER).messages()).messages) == []
    await _send(sms, language="de-CH")
    assert twilio.to(ANA)[-1].startswith("Parley: Ihr Code ist 483920.")


async def test_where_it_was_surely_not_sent_a_repeat_sends_it(sms: SmsProcess, twilio: TwilioStandIn) -> None:
    request_id = str(uuid.uuid4())
    twilio.faults.append("limit")
    refused = await refusal(_send(sms, request_id=request_id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SMS_UNAVAILABLE")
    await _send(sms, request_id=request_id)
    assert len(twilio.to(ANA)) == 1


async def test_where_that_is_not_known_it_is_not_sent_again(sms: SmsProcess, twilio: TwilioStandIn) -> None:
    request_id = str(uuid.uuid4())
    twilio.faults.append("cut_after")
    await _send(sms, request_id=request_id)
    await _send(sms, request_id=request_id)
    assert (twilio.attempts, len(twilio.to(ANA))) == (1, 1)


async def test_who_wants_no_texts_gets_no_code(sms: SmsProcess, twilio: TwilioStandIn) -> None:
    await sms.text_in(ANA, "STOP")
    await sms.settled()
    assert (await refusal(_send(sms))).reason == "RECIPIENT_OPTED_OUT"
    twilio.faults.append(21610)
    assert (await refusal(_send(sms, phone_number="+14155550103"))).reason == "RECIPIENT_OPTED_OUT"


async def test_codes_to_a_number_are_bounded(start_sms: Start) -> None:
    async with start_sms(sms_number_codes_per_hour=2) as sms:
        for _ in range(2):
            await _send(sms)
        refused = await refusal(_send(sms, user_id=str(uuid.uuid4())))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED")


async def test_only_auth_sends_codes_and_purges(sms: SmsProcess) -> None:
    others: tuple[Metadata, ...] = (
        sms.user(USER).metadata,
        sms.as_admin(),
        sms.as_auth(user_id=USER),
        sms.issuer.as_service("chat", audience="sms"),
    )
    for metadata in others:
        assert (await refusal(_send(sms, metadata=metadata))).reason == "ACCESS_DENIED"
        purge = sms.sms.PurgeUser(sms_pb2.PurgeUserRequest(user_id=USER), metadata=metadata, timeout=10)
        assert (await refusal(purge)).reason == "ACCESS_DENIED"


async def test_a_number_with_a_code_is_ones_own_once_auth_says_so(sms: SmsProcess, people: PeopleStandIn) -> None:
    user = sms.user(USER)
    await _send(sms)
    assert (await refusal(user.set_consent(opted_out=True))).reason == "PHONE_NOT_VERIFIED"
    people.add(ANA, USER)
    assert (await user.set_consent(opted_out=True)).phone_number == ANA


async def test_codes_asked_for_in_vain_do_not_hide_the_number_that_is_verified(
    sms: SmsProcess, people: PeopleStandIn
) -> None:
    user = sms.user(people.add(ANA, USER))
    await _send(sms)
    for number in range(6):
        await _send(sms, phone_number=f"+1415555018{number}")
    assert (await user.set_consent(opted_out=True)).phone_number == ANA


@pytest.mark.parametrize(
    "fields",
    [{"code": "12345"}, {"code": "abcdef"}, {"phone_number": "+99912345678"}, {"request_id": "x"}, {"user_id": ""}],
)
async def test_what_is_no_code_is_refused(sms: SmsProcess, fields: dict[str, Any]) -> None:
    assert (await refusal(_send(sms, **fields))).fields == list(fields)
