"""Calls: recorded by clients, told of by the provider, listed for whose they are."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.chat.service import refusal
from tests.sms.conftest import Start
from tests.sms.peers import PeopleStandIn
from tests.sms.service import SmsProcess, User, new_sid
from tests.sms.twilio_stand_in import OWN_NUMBER

ANA = "+14155550101"


@pytest.fixture
def ana(sms: SmsProcess) -> User:
    return sms.user()


def _time(hours_ago: float) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(datetime.now(UTC) - timedelta(hours=hours_ago))
    return made


async def test_a_call_is_recorded_once_a_request_id(ana: User, sms: SmsProcess) -> None:
    fields = {"start_time": _time(1), "duration_seconds": 90, "summary": "About dinner", "request_id": "one"}
    first = await ana.record_call(ANA, direction="inbound", **fields)
    assert (first.direction, first.phone_number, first.status, first.duration_seconds, first.summary, first.source) == (
        "inbound", ANA, "completed", 90, "About dinner", "client",
    )  # fmt: skip
    again = await asyncio.gather(*(ana.record_call(ANA, direction="inbound", **fields) for _ in range(5)))
    assert {one.id for one in again} == {first.id}
    assert (await refusal(ana.record_call(ANA, request_id="one"))).reason == "REQUEST_ID_REUSED"
    assert [one.id for one in (await ana.list_calls()).calls] == [first.id]
    assert list((await sms.user().list_calls()).calls) == []


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"direction": ""}, "direction"),
        ({"direction": "sideways"}, "direction"),
        ({"phone_number": "+99912345678"}, "phone_number"),
        ({"status": "ringing"}, "status"),
        ({"duration_seconds": -1}, "duration_seconds"),
        ({"start_time": Timestamp(seconds=1)}, "start_time"),
        ({"start_time": _time(-2)}, "start_time"),
        ({"summary": "x" * 4001}, "summary"),
    ],
)
async def test_calls_that_cannot_be_are_refused(ana: User, fields: dict[str, Any], named: str) -> None:
    assert (await refusal(ana.record_call(**fields))).fields == [named]


async def test_calls_are_bounded(start_sms: Start) -> None:
    async with start_sms(calls_limit=2) as sms:
        ana = sms.user()
        tried = await asyncio.gather(*(ana.record_call() for _ in range(4)), return_exceptions=True)
        assert sum(isinstance(one, grpc.aio.AioRpcError) for one in tried) == 2
        assert (await refusal(ana.record_call())).reason == "LIMIT_REACHED"


async def test_what_the_provider_tells_comes_to_the_same_in_any_order(sms: SmsProcess, people: PeopleStandIn) -> None:
    ana = sms.user(people.add(ANA))
    states = ("queued", "ringing", "in-progress", "completed")
    for order in itertools.permutations(states):
        sid = new_sid("CA")
        for status in (*order, order[0]):
            duration = {"CallDuration": "42"} if status == "completed" else {}
            await sms.call_in(sid, status, From=ANA, **duration)
    await sms.settled()
    calls = (await ana.list_calls()).calls
    assert len(calls) == 24
    assert {(one.status, one.duration_seconds, one.source, one.phone_number) for one in calls} == {
        ("completed", 42, "provider", ANA)
    }


async def test_an_outbound_call_is_of_whom_was_called(sms: SmsProcess, people: PeopleStandIn) -> None:
    ana = sms.user(people.add(ANA))
    await sms.call_in(new_sid("CA"), "no-answer", From=OWN_NUMBER, To=ANA, Direction="outbound-api")
    await sms.call_in(new_sid("CA"), "busy", From="+14155550177")
    await sms.call_in(new_sid("CA"), "a status of tomorrow", From=ANA)
    await sms.settled()
    [call] = (await ana.list_calls()).calls
    assert (call.direction, call.phone_number, call.status) == ("outbound", ANA, "no_answer")
    assert await sms.rows("select count(*) from calls where user_id is null") == [(1,)]


async def test_while_auth_is_away_a_call_waits(sms: SmsProcess, people: PeopleStandIn) -> None:
    ana = sms.user(people.add(ANA))
    people.is_away = True
    await sms.call_in(new_sid("CA"), "completed", From=ANA)
    await asyncio.sleep(0.2)
    people.is_away = False
    await sms.settled()
    assert len((await ana.list_calls()).calls) == 1


async def test_the_list_has_pages(ana: User) -> None:
    recorded = [(await ana.record_call(start_time=_time(hours))).id for hours in range(5)]
    listed: list[str] = []
    token = ""
    while True:
        page = await ana.list_calls(page_size=2, page_token=token)
        listed += [one.id for one in page.calls]
        token = page.next_page_token
        if not token:
            break
    assert listed == recorded
    assert (await refusal(ana.list_calls(page_token="rubbish"))).reason == "INVALID_PAGE_TOKEN"
