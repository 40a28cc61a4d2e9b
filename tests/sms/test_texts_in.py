"""A text comes in: it is answered once, by chat, for whom it may be answered."""

import asyncio

import grpc

from parley.sms.v1 import sms_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import DeadlineExceeded, InvalidArgument, Unavailable
from services.sms.records import NewText
from tests.chat.service import refusal
from tests.sms.conftest import Start
from tests.sms.peers import ChatStandIn, PeopleStandIn
from tests.sms.service import MESSAGE, SmsProcess, body_of, eventually, new_sid, signed
from tests.sms.twilio_stand_in import ACCOUNT, OWN_NUMBER, TwilioStandIn

ANA = "+14155550101"
BEN = "+14155550102"


async def test_a_text_is_answered_by_the_persons_conversation(
    sms: SmsProcess, people: PeopleStandIn, chat: ChatStandIn, twilio: TwilioStandIn
) -> None:
    ana = sms.user(people.add(ANA))
    await sms.text_in(ANA, "Add milk to my list")
    await sms.settled()
    assert twilio.to(ANA) == ["You said: Add milk to my list"]
    assert (chat.users, len(chat.asked)) == ([ana.id], 1)
    reply, received = (await ana.messages()).messages
    assert (received.direction, received.kind, received.text, received.answer) == (
        "inbound", "text", "Add milk to my list", "answered",
    )  # fmt: skip
    assert (reply.direction, reply.kind, reply.status, reply.in_reply_to) == ("outbound", "reply", "sent", received.id)
    assert reply.conversation_id == next(iter(chat.answers.values())).conversation_id
    [sent] = twilio.taken
    assert sent.sender == OWN_NUMBER
    await sms.report(reply.id, sent.sid, "delivered")
    assert (await ana.message(reply.id)).status == "delivered"


async def test_the_same_webhook_fifty_times_is_one_text_and_one_reply(
    sms: SmsProcess, people: PeopleStandIn, chat: ChatStandIn, twilio: TwilioStandIn
) -> None:
    people.add(ANA)
    sid = new_sid()
    await asyncio.gather(*(sms.text_in(ANA, "Hello?", sid=sid) for _ in range(25)))
    await sms.settled()
    for _ in range(25):
        await sms.text_in(ANA, "Hello?", sid=sid)
    await sms.settled()
    assert await sms.answers_of(ANA) == ["answered"]
    assert twilio.to(ANA) == ["You said: Hello?"]
    assert len(chat.asked) == 1


async def test_a_number_that_is_nobodys_is_kept_and_not_answered(
    sms: SmsProcess, people: PeopleStandIn, twilio: TwilioStandIn
) -> None:
    people.add(ANA)
    await sms.text_in("+14155550102", "Hello?")
    await sms.settled()
    assert await sms.answers_of("+14155550102") == ["unmatched"]
    assert twilio.taken == []


async def test_a_sender_without_a_number_is_nobody(sms: SmsProcess, people: PeopleStandIn) -> None:
    for sender in ("Pizzeria", "40404"):
        await sms.text_in(sender, "Hello?")
        await sms.call_in(new_sid("CA"), "completed", From=sender)
    await sms.settled()
    assert await sms.answers_of("40404") == await sms.answers_of("Pizzeria") == ["unmatched"]
    assert people.asked == 0


async def test_who_does_not_want_replies_gets_none(
    sms: SmsProcess, people: PeopleStandIn, chat: ChatStandIn, twilio: TwilioStandIn
) -> None:
    ana = sms.user(people.add(ANA, auto_reply_enabled=False))
    await sms.text_in(ANA, "Hello?")
    await sms.settled()
    assert [one.answer for one in (await ana.messages()).messages] == ["not_wanted"]
    assert (chat.asked, twilio.taken) == ([], [])


async def test_while_auth_is_away_the_text_waits(sms: SmsProcess, people: PeopleStandIn, twilio: TwilioStandIn) -> None:
    people.add(ANA)
    people.is_away = True
    await sms.text_in(ANA, "Hello?")
    await asyncio.sleep(0.3)
    assert (await sms.answers_of(ANA), twilio.taken) == (["pending"], [])
    people.is_away = False
    await sms.settled()
    assert twilio.to(ANA) == ["You said: Hello?"]


async def test_a_chat_that_fails_is_asked_again_under_the_same_id(
    sms: SmsProcess, people: PeopleStandIn, chat: ChatStandIn, twilio: TwilioStandIn
) -> None:
    people.add(ANA)
    chat.error = Unavailable("Not now.", reasons.ERROR_REASON_MODEL_UNAVAILABLE)
    await sms.text_in(ANA, "Hello?")
    await eventually(lambda: bool(chat.asked))
    chat.error = None
    await sms.settled()
    assert twilio.to(ANA) == ["You said: Hello?"]
    assert len(chat.asked) >= 2
    assert len({one.request_id for one in chat.asked}) == 1


async def test_a_text_that_failed_is_answered_before_the_next_one_of_the_person(
    start_sms: Start, people: PeopleStandIn, chat: ChatStandIn, twilio: TwilioStandIn
) -> None:
    """Once the next one has begun a turn, chat does not try the failed one again."""
    async with start_sms(reply_within_seconds=30) as sms:
        people.add(ANA)
        people.add(BEN)
        chat.error = Unavailable("Not now.", reasons.ERROR_REASON_MODEL_UNAVAILABLE)
        await sms.text_in(ANA, "First")
        await eventually(lambda: bool(chat.asked))
        chat.error = None
        await sms.text_in(ANA, "Second")
        await sms.text_in(BEN, "Me too")
        await eventually(lambda: bool(twilio.to(BEN)))
        await sms.settled()
        assert twilio.to(ANA) == ["You said: First", "You said: Second"]
        assert await sms.answers_of(ANA) == ["answered", "answered"]
        assert len(chat.answers) == 3


async def test_texts_of_a_person_are_answered_one_after_the_other_and_without_a_pause(
    sms: SmsProcess, people: PeopleStandIn, chat: ChatStandIn, twilio: TwilioStandIn
) -> None:
    people.add(ANA)
    chat.hold = asyncio.Event()
    for text in ("One", "Two", "Three"):
        await sms.text_in(ANA, text)
    await eventually(lambda: bool(chat.asked))
    await asyncio.sleep(0.3)
    assert [one.text for one in chat.asked] == ["One"]
    chat.hold.set()
    await eventually(lambda: len(twilio.to(ANA)) == 3)
    assert list(twilio.to(ANA)) == ["You said: One", "You said: Two", "You said: Three"]


async def test_a_text_that_always_fails_does_not_cost_the_next_one_its_reply(
    start_sms: Start, people: PeopleStandIn, chat: ChatStandIn, twilio: TwilioStandIn
) -> None:
    # Tried again after about 1, 3, 7 and 15 seconds: the one at 7 is behind the half of the time, and well before its end.
    async with start_sms(reply_within_seconds=10) as sms:
        people.add(ANA)
        chat.error_of["First"] = DeadlineExceeded("It takes too long.", reasons.ERROR_REASON_MODEL_TIMED_OUT)
        await sms.text_in(ANA, "First")
        await eventually(lambda: bool(chat.asked))
        await sms.text_in(ANA, "Second")
        await sms.settled(within_seconds=30)
        assert await sms.answers_of(ANA) == ["too_late", "answered"]
        assert twilio.to(ANA) == ["You said: Second"]


async def test_what_chat_refuses_for_good_is_not_asked_again(
    sms: SmsProcess, people: PeopleStandIn, chat: ChatStandIn, twilio: TwilioStandIn
) -> None:
    people.add(ANA)
    chat.error = InvalidArgument("No.", reasons.ERROR_REASON_MODEL_REFUSED_REQUEST)
    await sms.text_in(ANA, "Hello?")
    await sms.settled()
    assert (await sms.answers_of(ANA), len(chat.asked), twilio.taken) == (["failed"], 1, [])


async def test_a_text_that_is_too_old_is_not_answered(
    start_sms: Start, people: PeopleStandIn, twilio: TwilioStandIn
) -> None:
    async with start_sms(reply_within_seconds=1) as sms:
        people.add(ANA)
        people.is_away = True
        await sms.text_in(ANA, "Hello?")
        await asyncio.sleep(1.2)
        people.is_away = False
        await sms.settled()
        assert (await sms.answers_of(ANA), twilio.taken) == (["too_late"], [])
        # It is theirs all the same.
        found = await sms.user(people.numbers[ANA]).messages()
        assert [(one.text, one.answer) for one in found.messages] == [("Hello?", "too_late")]


async def test_a_text_stays_whose_it_was_when_the_number_becomes_anothers(
    sms: SmsProcess, people: PeopleStandIn, chat: ChatStandIn, twilio: TwilioStandIn
) -> None:
    first = people.add(ANA)
    chat.error = Unavailable("Not now.", reasons.ERROR_REASON_MODEL_UNAVAILABLE)
    await sms.text_in(ANA, "Between us")
    await eventually(lambda: bool(chat.asked))
    people.add(ANA)
    chat.error = None
    await sms.settled()
    assert (set(chat.users), twilio.taken) == ({first}, [])
    assert [one.text for one in (await sms.user(first).messages()).messages] == ["Between us"]


async def test_a_long_reply_is_cut_at_a_word(
    start_sms: Start, people: PeopleStandIn, chat: ChatStandIn, twilio: TwilioStandIn
) -> None:
    async with start_sms(sms_max_segments=2) as sms:
        ana = sms.user(people.add(ANA))
        chat.reply = "word " * 200
        await sms.text_in(ANA, "Tell me everything")
        await sms.settled()
        [sent] = twilio.to(ANA)
        assert sent.endswith("word...")
        assert len(sent) <= 306
        reply = (await ana.messages()).messages[0]
        assert (reply.segments, reply.encoding) == (2, "gsm7")


async def test_a_number_gets_so_many_replies_in_an_hour_and_the_model_is_not_asked_for_more(
    start_sms: Start, people: PeopleStandIn, chat: ChatStandIn, twilio: TwilioStandIn
) -> None:
    async with start_sms(sms_number_texts_per_hour=3) as sms:
        people.add(ANA)
        await sms.text_in(ANA, "Help")
        for number in range(4):
            await sms.text_in(ANA, f"Again {number}")
        await sms.settled()
        await sms.text_in(ANA, "Help")
        await sms.settled()
        answers = await sms.answers_of(ANA)
        assert answers == ["keyword", "answered", "answered", "limited", "limited", "keyword"]
        # By their turns: a text that waited may have two jobs, which ask for the same one.
        assert (len(twilio.taken), len(chat.answers)) == (3, 2)


async def test_what_a_user_is_sent_in_a_day_bounds_replies_before_the_model_is_asked(
    start_sms: Start, people: PeopleStandIn, chat: ChatStandIn, twilio: TwilioStandIn
) -> None:
    async with start_sms(sms_user_texts_per_day=2) as sms:
        ana = sms.user(people.add(ANA))
        await ana.send(BEN, "Hello")
        for number in range(3):
            await sms.text_in(ANA, f"Again {number}")
        await sms.settled()
        assert await sms.answers_of(ANA) == ["answered", "limited", "limited"]
        assert (len(twilio.to(ANA)), len(chat.answers)) == (1, 1)


async def test_what_others_send_to_a_number_takes_nothing_from_what_its_owner_asks_for(
    start_sms: Start, people: PeopleStandIn, twilio: TwilioStandIn
) -> None:
    async with start_sms(sms_number_texts_per_hour=2) as sms:
        ana, other = people.add(ANA), sms.user()
        for _ in range(2):
            await other.send(ANA, "Buy!")
        assert (await refusal(sms.user().send(ANA, "And me"))).reason == "LIMIT_REACHED"
        code = sms_pb2.SendVerificationCodeRequest(
            phone_number=ANA, code="483920", user_id=ana, request_id="0199c3f2-7d41-7a6e-9d0b-3c5e8f1a2b4d"
        )
        await sms.sms.SendVerificationCode(code, metadata=sms.as_auth(), timeout=10)
        await sms.text_in(ANA, "Hello?")
        await sms.text_in(ANA, "Help")
        await sms.settled()
        assert await sms.answers_of(ANA) == ["answered", "keyword"]
        kinds = [kind for kind, _, _ in await sms.texts_to(ANA)]
        assert sorted(kinds) == ["code", "help", "reply", "text", "text"]
        assert len(twilio.to(ANA)) == 5


async def test_pictures_without_words_are_kept_and_not_answered(
    sms: SmsProcess, people: PeopleStandIn, chat: ChatStandIn
) -> None:
    ana = sms.user(people.add(ANA))
    await sms.text_in(ANA, "", NumMedia="1")
    await sms.settled()
    assert [one.answer for one in (await ana.messages()).messages] == ["failed"]
    assert chat.asked == []


async def test_a_reply_that_was_made_meanwhile_is_not_made_twice(
    sms: SmsProcess, people: PeopleStandIn, twilio: TwilioStandIn
) -> None:
    user_id = people.add(ANA)
    await sms.text_in(ANA, "Hello?")
    await sms.settled()
    [(message_id,)] = await sms.rows("select id::text from messages where direction = 'inbound'")
    # As another process would that was stopped after chat had answered, and wakes up now.
    assert sms.parts is not None
    late = NewText(phone_number=ANA, text="Late.", kind="reply", user_id=user_id, in_reply_to=message_id)
    await sms.parts.inbox.reply(message_id, late)
    await sms.settled()
    assert twilio.to(ANA) == ["You said: Hello?"]


async def test_rubbish_in_a_webhook_is_refused_and_named(sms: SmsProcess) -> None:
    form = {"MessageSid": new_sid(), "AccountSid": ACCOUNT, "From": "not a number", "To": OWN_NUMBER, "Body": "x"}
    for wrong, field in (
        ({}, "From"),
        ({"From": ANA, "MessageSid": "../etc"}, "MessageSid"),
    ):
        sent = {**form, **wrong}
        request = sms_pb2.TwilioWebhook(form=body_of(sent))
        refused = await refusal(sms.sms.ReceiveTwilioMessage(request, metadata=signed(MESSAGE, sent), timeout=10))
        assert (refused.code, refused.reason, refused.fields) == (
            grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", [field],
        )  # fmt: skip
    broken = body_of(form)
    broken.data = b"From=%FF%FE"
    request = sms_pb2.TwilioWebhook(form=broken)
    refused = await refusal(sms.sms.ReceiveTwilioMessage(request, metadata=signed(MESSAGE, form), timeout=10))
    assert refused.fields == ["form"]
    assert await sms.rows("select count(*) from messages") == [(0,)]
