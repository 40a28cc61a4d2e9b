"""A user goes: nothing of them stays but that a number wants no texts, which names nobody."""

import asyncio

import grpc
from structlog.testing import capture_logs

from parley.sms.v1 import sms_pb2
from tests.chat.service import refusal
from tests.sms.peers import ChatStandIn, PeopleStandIn
from tests.sms.service import SmsProcess, User, eventually, new_sid
from tests.sms.twilio_stand_in import TwilioStandIn

ANA, BEN = "+14155550101", "+14155550102"


async def _purge(sms: SmsProcess, user_id: str) -> None:
    await sms.sms.PurgeUser(sms_pb2.PurgeUserRequest(user_id=user_id), metadata=sms.as_auth(), timeout=10)


async def _holdings(sms: SmsProcess, user: User) -> str:
    tables = ("messages", "calls", "decisions", "seen_numbers", "consents", "consent_events", "procrastinate_jobs")
    rows = [await sms.rows(f"select t::text from {table} t") for table in tables]  # noqa: S608
    return str([row for found in rows for row in found if user.id in str(row)])


async def _live(user: User, number: str, sms: SmsProcess) -> None:
    await sms.text_in(number, "Hello?")
    await sms.text_in(number, "Help")
    await user.send("+14155550190", "Hello")
    await user.decide("Are you coming?")
    await user.record_call()
    await sms.call_in(new_sid("CA"), "completed", From=number)
    await sms.settled()
    await sms.text_in(number, "STOP")
    await sms.settled()


async def test_everything_goes_and_what_others_have_stays(
    sms: SmsProcess, people: PeopleStandIn, chat: ChatStandIn, twilio: TwilioStandIn
) -> None:
    ana, ben = sms.user(people.add(ANA)), sms.user(people.add(BEN))
    # From before the number was anybody's.
    people.is_away = True
    await sms.rows(
        "insert into messages (direction, kind, phone_number, text, status, answer, provider_message_id)"
        " values ('inbound', 'text', %s, 'Early words', 'received', 'unmatched', 'SM-early')", ANA,
    )  # fmt: skip
    people.is_away = False
    for user, number in ((ana, ANA), (ben, BEN)):
        await _live(user, number, sms)
    before = (await ben.read_history()).entries
    assert len(before) > 4
    own = await sms.rows("select provider_message_id from messages where user_id = %s or text = 'Early words'", ana.id)
    await _purge(sms, ana.id.upper())
    await _purge(sms, ana.id)
    await sms.settled()
    # The provider has deleted what it had of them, and what it did not know is no error.
    assert sorted(twilio.deleted) == sorted(sid for (sid,) in own if sid)
    assert await _holdings(sms, ana) == "[]"
    assert await sms.rows("select count(*) from messages where phone_number = %s", ANA) == [(0,)]
    assert (await ben.read_history()).entries == before
    # The number's owner has said stop, and that holds, whoever asks.
    assert await sms.rows("select is_opted_out from consents where phone_number = %s", ANA) == [(True,)]
    assert (await refusal(ben.send(ANA, "Hello"))).reason == "RECIPIENT_OPTED_OUT"
    assert chat.asked


async def test_what_comes_later_is_not_taken(sms: SmsProcess, people: PeopleStandIn) -> None:
    ana = sms.user(people.add(ANA))
    await _purge(sms, ana.id)
    for call in (ana.send(BEN, "Hello"), ana.decide("Are you coming?"), ana.record_call()):
        refused = await refusal(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "USER_NOT_FOUND")
    # Auth goes on saying that the number is theirs, for a moment.
    await sms.text_in(ANA, "Hello?")
    await sms.call_in(new_sid("CA"), "completed", From=ANA)
    await sms.settled()
    assert await sms.answers_of(ANA) == ["unmatched"]
    assert await _holdings(sms, ana) == "[]"


async def test_a_reply_that_is_being_written_is_not_sent(
    sms: SmsProcess, people: PeopleStandIn, chat: ChatStandIn, twilio: TwilioStandIn
) -> None:
    ana = sms.user(people.add(ANA))
    chat.hold = asyncio.Event()
    await sms.text_in(ANA, "Hello?")
    await eventually(lambda: bool(chat.asked))
    await _purge(sms, ana.id)
    chat.hold.set()
    await sms.settled()
    assert twilio.taken == []
    assert await _holdings(sms, ana) == "[]"


async def test_a_text_that_is_under_way_is_deleted_at_the_provider_too(sms: SmsProcess, twilio: TwilioStandIn) -> None:
    ana = sms.user()

    async def purge(_: object) -> None:
        await _purge(sms, ana.id)

    twilio.on_taken = purge
    await ana.send(BEN, "Hello")
    await sms.settled()
    assert twilio.deleted == [one.sid for one in twilio.taken]
    assert len(twilio.taken) == 1
    assert await _holdings(sms, ana) == "[]"


async def test_a_text_whose_answer_was_lost_is_deleted_at_the_provider_once_a_report_names_it(
    sms: SmsProcess, twilio: TwilioStandIn
) -> None:
    ana, ben = sms.user(), sms.user()
    twilio.faults.append("garbage")
    twilio.lists_nothing = True
    lost = await ana.send(BEN, "Hello")
    await eventually(lambda: len(twilio.taken) == 1)
    kept = await ben.send(BEN, "Hello from me")
    await eventually(lambda: len(twilio.taken) == 2)
    await _purge(sms, ana.id)
    await sms.report(lost.id, twilio.taken[0].sid, "delivered")
    # One of a text that is here is no reason, whatever id it has for it.
    await sms.report(kept.id, twilio.taken[1].sid, "delivered")
    await sms.report(kept.id, new_sid(), "delivered")
    await sms.settled()
    assert twilio.deleted == [twilio.taken[0].sid]
    assert await _holdings(sms, ana) == "[]"
    assert (await ben.message(kept.id)).status == "delivered"


async def test_the_provider_is_asked_to_delete_until_it_has(sms: SmsProcess, twilio: TwilioStandIn) -> None:
    ana = sms.user()
    await ana.send(BEN, "Hello")
    await sms.settled()
    twilio.keeps = True
    with capture_logs() as logs:
        await _purge(sms, ana.id)
        await _failed(sms, times=1)
        # As after months.
        await sms.rows("update procrastinate_jobs set scheduled_at = now(), attempts = 100000")
        await _failed(sms, times=100_001)
        twilio.keeps = False
        await sms.rows("update procrastinate_jobs set scheduled_at = now()")
        await eventually(lambda: bool(twilio.deleted))
    [sid] = [one.sid for one in twilio.taken]
    assert twilio.deleted == [sid]
    # Whoever looks after the service can tell which texts are still there.
    told = [entry["provider_message_id"] for entry in logs if entry["event"] == "sms.not_forgotten"]
    assert set(told) == {sid}


async def _failed(sms: SmsProcess, *, times: int) -> None:
    """Waits until the job that is left has failed so often, and is to be done again."""
    for _ in range(500):
        if await sms.rows("select id from procrastinate_jobs where status = 'todo' and attempts >= %s", times):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the job has not failed, or is gone")


async def test_more_than_goes_at_once(sms: SmsProcess, twilio: TwilioStandIn) -> None:
    """And the texts of nobody at the number are found although the user's own go by batches.

    A reply is deleted at the provider too where its text is the last of a batch, and takes it along.
    """
    ana = sms.user()
    for whose, prefix, count in ((ana.id, "SM-own-", 500), (None, "SM-nobodys-", 300)):
        insert = (
            "insert into messages (user_id, direction, kind, phone_number, text, status, answer, provider_message_id)"
            " select %s, 'inbound', 'text', %s, 'Words', 'received', 'failed', %s || n from generate_series(%s::int, %s) n"
        )
        await sms.rows(insert, whose, ANA, prefix, 1, 200)
        await sms.rows(
            "insert into messages (user_id, direction, kind, phone_number, text, status, in_reply_to, provider_message_id)"
            " select %s, 'outbound', 'help', %s, 'More words', 'delivered', id, %s from messages"
            " where provider_message_id = %s",
            whose, ANA, f"{prefix}reply", f"{prefix}200",
        )  # fmt: skip
        await sms.rows(insert, whose, ANA, prefix, 201, count)
    await _purge(sms, ana.id)
    assert await sms.rows("select count(*) from messages") == [(0,)]
    await sms.settled()
    assert len(set(twilio.deleted)) == 802
    assert {"SM-own-reply", "SM-nobodys-reply"} <= set(twilio.deleted)


async def test_a_number_that_only_called_goes_too(sms: SmsProcess, people: PeopleStandIn) -> None:
    await sms.call_in(new_sid("CA"), "completed", From=ANA)
    await sms.text_in(ANA, "Hello?")
    await sms.settled()
    ana = sms.user(people.add(ANA))
    await sms.call_in(new_sid("CA"), "completed", From=ANA)
    await sms.settled()
    await _purge(sms, ana.id)
    assert await sms.rows("select count(*) from calls") == await sms.rows("select count(*) from messages") == [(0,)]


async def test_many_writers_and_a_purge_leave_nothing(sms: SmsProcess, people: PeopleStandIn) -> None:
    ana = sms.user(people.add(ANA))

    async def write(number: int) -> None:
        await asyncio.sleep(number * 0.002)
        await asyncio.gather(
            ana.send(f"+1415555{number:04d}", "Hello"), ana.record_call(), sms.text_in(ANA, "Hi"), return_exceptions=True
        )

    writing = [asyncio.create_task(write(number)) for number in range(20)]
    await asyncio.sleep(0.03)
    await _purge(sms, ana.id)
    await asyncio.gather(*writing)
    await sms.settled()
    assert await _holdings(sms, ana) == "[]"
