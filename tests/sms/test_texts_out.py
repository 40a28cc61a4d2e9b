"""A text goes out: once, to a number that can exist, within limits; and what becomes of it is known, or `unknown`."""

import asyncio
import itertools
import random
from pathlib import Path

import grpc
import pytest

from parley.sms.v1 import sms_pb2
from tests.chat.service import refusal
from tests.sms.conftest import Start
from tests.sms.service import SmsProcess, User, new_sid
from tests.sms.twilio_stand_in import Fault, TwilioStandIn

BEN = "+14155550102"


@pytest.fixture
def ana(sms: SmsProcess) -> User:
    return sms.user()


async def test_a_text_is_sent_once_however_often_it_is_asked_for(ana: User, sms: SmsProcess, twilio: TwilioStandIn) -> None:
    first = await ana.send(BEN, "Dinner at 7?", request_id="one")
    assert (first.status, first.kind, first.direction, first.segments) == ("queued", "text", "outbound", 1)
    again = await asyncio.gather(*(ana.send(BEN, "Dinner at 7?", request_id="one") for _ in range(10)))
    assert {one.id for one in again} == {first.id}
    await sms.settled()
    assert twilio.to(BEN) == ["Dinner at 7?"]
    assert (await ana.message(first.id)).status == "sent"
    reused = await refusal(ana.send(BEN, "Lunch at 1?", request_id="one"))
    assert (reused.code, reused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    # Another user's id names another text.
    assert (await sms.user().send(BEN, "Dinner at 7?", request_id="one")).id != first.id


@pytest.mark.parametrize(
    "number", ["+99912345678", "+1415555012", "+141555501022", "+4900", "14155550102", "+0123456789", ""]
)
async def test_a_number_that_cannot_exist_is_refused(ana: User, number: str) -> None:
    refused = await refusal(ana.send(number, "Hello"))
    assert (refused.reason, refused.fields) == ("INVALID_REQUEST", ["phone_number"])
    assert number not in refused.message or not number


@pytest.mark.parametrize("text", ["", "  \n ", "a" * 1601, "ж" * 500, "nul\x00"])
async def test_a_text_that_is_none_or_too_long_is_refused(ana: User, text: str) -> None:
    refused = await refusal(ana.send(BEN, text))
    assert (refused.reason, refused.fields) == ("INVALID_REQUEST", ["text"])


async def test_limits_of_a_user_and_of_a_number_hold_for_many_at_once(start_sms: Start) -> None:
    async with start_sms(sms_user_texts_per_day=6, sms_number_texts_per_hour=4) as sms:
        ana, other = sms.user(), sms.user()
        tried = await asyncio.gather(*(_sent(ana, BEN, f"{number}") for number in range(10)))
        assert sum(tried) == 4
        refused = await refusal(other.send(BEN, "and me"))
        assert (refused.code, refused.reason, refused.metadata["limit"]) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED", "4",
        )  # fmt: skip
        assert refused.retry_seconds
        elsewhere = await asyncio.gather(*(_sent(ana, f"+1415555030{number}", "x") for number in range(5)))
        assert sum(elsewhere) == 2


async def _sent(user: User, number: str, text: str) -> bool:
    try:
        await user.send(number, text)
    except grpc.aio.AioRpcError:
        return False
    return True


@pytest.mark.parametrize("fault", ["limit", "denied"])
async def test_what_was_surely_not_taken_is_tried_again(
    ana: User, sms: SmsProcess, twilio: TwilioStandIn, fault: Fault
) -> None:
    twilio.faults += [fault]
    sent = await ana.send(BEN, "Hello")
    await sms.settled()
    assert (twilio.to(BEN), twilio.attempts) == (["Hello"], 2)
    assert (await ana.message(sent.id)).status == "sent"


async def test_a_provider_that_is_not_there_is_tried_so_often_and_then_given_up(start_sms: Start) -> None:
    async with start_sms(twilio_base_url="http://127.0.0.1:1", send_tries=2) as sms:
        ana = sms.user()
        sent = await ana.send(BEN, "Hello")
        await sms.settled()
        assert ((await ana.message(sent.id)).status, (await ana.message(sent.id)).error_code) == ("failed", "not_taken")


async def test_an_answer_that_comes_in_pieces_is_an_answer(ana: User, sms: SmsProcess, twilio: TwilioStandIn) -> None:
    twilio.faults.append("in_pieces")
    sent = await ana.send(BEN, "Hello")
    await sms.settled(within_seconds=5)
    assert ((await ana.message(sent.id)).status, twilio.attempts) == ("sent", 1)


async def test_what_the_provider_refuses_is_not_tried_again(ana: User, sms: SmsProcess, twilio: TwilioStandIn) -> None:
    twilio.faults.append(21211)
    sent = await ana.send(BEN, "Hello")
    await sms.settled()
    found = await ana.message(sent.id)
    assert (found.status, found.error_code, twilio.attempts) == ("failed", "21211", 1)


@pytest.mark.parametrize("fault", ["cut_after", "garbage", "slow"])
async def test_an_answer_that_was_lost_is_looked_for_and_the_text_not_sent_again(
    start_sms: Start, twilio: TwilioStandIn, fault: Fault
) -> None:
    async with start_sms() as sms:
        ana = sms.user()
        twilio.faults.append(fault)
        sent = await ana.send(BEN, "Hello")
        await _claimed(sms, age_seconds=60)
        await sms.settled()
        assert (twilio.to(BEN), twilio.attempts) == (["Hello"], 1)
        assert (await ana.message(sent.id)).status == "sent"
        # The report finds it under the id that the list told.
        await sms.report("", twilio.taken[0].sid, "delivered")
        assert (await ana.message(sent.id)).status == "delivered"


@pytest.mark.parametrize("fault", ["fault", "cut_before", "cut_after"])
async def test_what_is_not_found_becomes_unknown_and_a_report_may_still_tell(
    start_sms: Start, twilio: TwilioStandIn, fault: Fault
) -> None:
    async with start_sms(unknown_after_seconds=1) as sms:
        ana = sms.user()
        twilio.lists_nothing = True
        twilio.faults.append(fault)
        sent = await ana.send(BEN, "Hello")
        await _claimed(sms, age_seconds=60)
        await sms.settled()
        assert ((await ana.message(sent.id)).status, twilio.attempts) == ("unknown", 1)
        await sms.report(sent.id, new_sid(), "delivered")
        assert (await ana.message(sent.id)).status == "delivered"


async def _claimed(sms: SmsProcess, *, age_seconds: int) -> None:
    """Waits until the provider was asked and has not answered, and lets so much time pass."""
    for _ in range(400):
        if await sms.rows("select 1 from messages where status = 'sending'") and not await sms.rows(
            "select 1 from procrastinate_jobs where status in ('todo', 'doing')"
        ):
            break
        await asyncio.sleep(0.02)
    await sms.rows("update messages set claim_time = now() - make_interval(secs => %s)", age_seconds)


async def test_two_of_the_same_text_are_two_and_each_is_found(start_sms: Start, twilio: TwilioStandIn) -> None:
    async with start_sms() as sms:
        ana = sms.user()
        twilio.faults += ["cut_after", "cut_after"]
        both = [await ana.send(BEN, "Hello"), await ana.send(BEN, "Hello")]
        for _ in range(400):
            if len(twilio.taken) == 2 and not await sms.rows("select 1 from procrastinate_jobs"):
                break
            await asyncio.sleep(0.02)
        await _claimed(sms, age_seconds=60)
        await sms.settled()
        assert [(await ana.message(one.id)).status for one in both] == ["sent", "sent"]
        assert len(twilio.taken) == 2


async def test_reports_come_to_the_same_in_any_order_and_however_often(sms: SmsProcess, twilio: TwilioStandIn) -> None:
    ana, chance = sms.user(), random.Random(6)  # noqa: S311
    told = ("queued", "sent", "sending", "delivered")
    orders = list(itertools.permutations(told))
    sent = [await ana.send(f"+1415555{number:04d}", "Hello") for number in range(len(orders))]
    await sms.settled()
    sids = {taken.to: taken.sid for taken in twilio.taken}
    for message, order in zip(sent, orders, strict=True):
        for status in (*order, chance.choice(told)):
            await sms.report(message.id, sids[message.phone_number], status)
        assert (await ana.message(message.id)).status == "delivered", order
    lost = await ana.send("+14155559999", "Hello")
    await sms.settled()
    for status in ("undelivered", "sent", "queued"):
        await sms.report(lost.id, twilio.taken[-1].sid, status, ErrorCode="30003")
    found = await ana.message(lost.id)
    assert (found.status, found.error_code) == ("undelivered", "30003")


async def test_a_report_of_a_text_of_nobodys_changes_nothing(sms: SmsProcess, twilio: TwilioStandIn) -> None:
    ana = sms.user()
    sent = await ana.send(BEN, "Hello")
    await sms.settled()
    before = await sms.rows("select status, provider_message_id from messages")
    await sms.report("0199c3f2-7d41-7a6e-9d0b-3c5e8f1a2b4d", new_sid(), "delivered")
    await sms.report("", new_sid(), "delivered")
    # One that names our text and another of the provider's is not about it.
    await sms.report(sent.id, new_sid(), "failed")
    await sms.report(sent.id, twilio.taken[0].sid, "a status of tomorrow")
    assert await sms.rows("select status, provider_message_id from messages") == before


async def test_another_users_texts_are_not_there(ana: User, sms: SmsProcess) -> None:
    sent = await ana.send(BEN, "Hello")
    other = sms.user()
    refused = await refusal(other.message(sent.id))
    assert (refused.code, refused.reason, refused.metadata) == (
        grpc.StatusCode.NOT_FOUND, "MESSAGE_NOT_FOUND", {"message_id": sent.id},
    )  # fmt: skip
    assert list((await other.messages()).messages) == []
    nobody = sms.sms.ListMessages(sms_pb2.ListMessagesRequest(), timeout=10)
    assert (await refusal(nobody)).reason == "IDENTITY_MISSING"


async def test_the_list_has_pages_and_costs_one_statement(start_sms: Start) -> None:
    async with start_sms() as sms:
        ana = sms.user()
        sent = [(await ana.send(f"+1415555{number:04d}", "Hello")).id for number in range(7)]
        await sms.settled()
        listed: list[str] = []
        token = ""
        while True:
            sms.statements.clear()
            page = await ana.messages(page_size=3, page_token=token)
            # Without those of the standing duty that looks after claims.
            asked = [one for one in sms.statements if "FROM messages" in one and "claim_time" not in one]
            assert len(asked) == 1
            listed += [one.id for one in page.messages]
            token = page.next_page_token
            if not token:
                break
        assert listed == sent[::-1]
        assert (await refusal(ana.messages(page_token="x" * 20))).reason == "INVALID_PAGE_TOKEN"
        assert (await refusal(ana.messages(page_size=-1))).fields == ["page_size"]


async def test_the_console_writes_texts_down_and_nothing_of_them_into_the_log(
    start_sms: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.jsonl"
    async with start_sms(sms_provider="console", sms_console_file=file) as sms:
        ana = sms.user()
        sent = await ana.send(BEN, "Only for your eyes")
        await sms.settled()
        assert (await ana.message(sent.id)).status == "delivered"
    assert '"Only for your eyes"' in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    said = "".join(capsys.readouterr())
    assert "Only for your eyes" not in said
    assert BEN not in said
