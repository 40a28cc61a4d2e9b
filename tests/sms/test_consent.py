"""Who wants no texts gets none: keywords, the ledger, the provider's word, and what users say elsewhere."""

import asyncio

import grpc
import psycopg
import pytest

from parley.sms.v1 import sms_pb2
from services.sms.keywords import read_keyword
from services.sms.segments import size_of
from services.sms.wording import LANGUAGES, code_text, confirmation
from tests.chat.service import refusal
from tests.sms.conftest import Start
from tests.sms.peers import ChatStandIn, PeopleStandIn
from tests.sms.service import SmsProcess, new_sid
from tests.sms.twilio_stand_in import TwilioStandIn

ANA, BEN = "+14155550101", "+14155550102"
TWILIO_STOPS = ("STOP", "STOPALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT", "OPTOUT", "REVOKE")
TWILIO_STARTS = ("START", "YES", "UNSTOP")
TWILIO_HELPS = ("HELP", "INFO")


@pytest.mark.parametrize(
    "word", [*TWILIO_STOPS, "stop", "Stop.", " stop! ", "\u201cStop\u201d", "STOP ALL", "opt-out", "Opt out"]
)
def test_stop_words(word: str) -> None:
    said = read_keyword(word, is_opted_out=False)
    assert said is not None
    assert said.keyword == "stop"


OTHER_STOPS = (
    ("ARR\u00caT", "fr"),
    ("arret", "fr"),
    ("Stopp", "de"),
    ("alto", "es"),
    ("BAJA", "es"),
    ("sair", "pt"),
    ("\u505c\u6b62", "ja"),
    ("\u0421\u0442\u043e\u043f", "ru"),
    ("\u062a\u0648\u0642\u0641", "ar"),
    ("\uc911\uc9c0", "ko"),
    ("\u9000\u8ba2", "zh"),
    ("\u0930\u094b\u0915\u0947\u0902", "hi"),
    # In the wide letters of Japanese keyboards.
    ("\uff33\uff34\uff2f\uff30", "en"),
)


@pytest.mark.parametrize(("word", "language"), OTHER_STOPS)
def test_stop_words_of_other_languages_and_forms(word: str, language: str) -> None:
    said = read_keyword(word, is_opted_out=False)
    assert said is not None
    assert (said.keyword, said.language) == ("stop", language)


def test_start_and_help_words() -> None:
    for word in TWILIO_STARTS:
        said = read_keyword(word, is_opted_out=True)
        assert said is not None
        assert said.keyword == "start"
    for word in (*TWILIO_HELPS, "Hilfe", "aide?", "AYUDA"):
        said = read_keyword(word, is_opted_out=False)
        assert said is not None
        assert said.keyword == "help"


@pytest.mark.parametrize(
    "text",
    ["Please stop by the shop", "Don't stop", "stop it", "yes", "Yes!", "when does it end?", "", "  ", "...", "STOP " * 20],
)
def test_no_keyword(text: str) -> None:
    assert read_keyword(text, is_opted_out=False) is None


def test_what_the_service_says_by_itself_fits_one_segment() -> None:
    for language in (*LANGUAGES, "xx", "pt-BR"):
        for keyword in ("stop", "start", "help"):
            size = size_of(confirmation(keyword, language=language, name="N" * 20))
            assert (size.encoding, size.segments) == ("gsm7", 1), (language, keyword)
        assert size_of(code_text("123456", language=language, name="N" * 20)).segments == 1


async def test_a_stop_is_confirmed_once_and_nothing_follows(
    sms: SmsProcess, people: PeopleStandIn, chat: ChatStandIn, twilio: TwilioStandIn
) -> None:
    ana = sms.user(people.add(ANA))
    for text in ("STOP", "stop", "Are you there?", "HELP"):
        await sms.text_in(ANA, text)
    await sms.settled()
    assert [(kind, status) for kind, status, _ in await sms.texts_to(ANA)] == [("confirmation", "sent")]
    assert len(twilio.to(ANA)) == 1
    assert chat.asked == []
    assert sorted(await sms.answers_of(ANA)) == ["keyword", "keyword", "keyword", "opted_out"]
    refused = await refusal(ana.send(ANA, "Hello"))
    assert (refused.code, refused.reason, refused.metadata) == (
        grpc.StatusCode.FAILED_PRECONDITION, "RECIPIENT_OPTED_OUT", {},
    )  # fmt: skip
    await sms.text_in(ANA, "yes")
    await sms.text_in(ANA, "Are you there?")
    await sms.settled()
    assert len(twilio.to(ANA)) == 3
    assert twilio.to(ANA)[-1] == "You said: Are you there?"
    changes = await sms.rows("select change, source, epoch from consent_events order by id")
    assert changes == [
        ("stop", "keyword", 1), ("stop", "keyword", 1), ("help", "keyword", 1), ("start", "keyword", 2),
    ]  # fmt: skip


async def test_the_confirmation_is_in_the_language_of_the_word(sms: SmsProcess, twilio: TwilioStandIn) -> None:
    await sms.text_in(ANA, "Arr\u00eat")
    await sms.settled()
    assert "vous ne recevrez plus" in twilio.to(ANA)[0]


async def test_help_is_answered_without_the_model(
    sms: SmsProcess, people: PeopleStandIn, chat: ChatStandIn, twilio: TwilioStandIn
) -> None:
    people.add(ANA)
    await sms.text_in(ANA, "Help")
    await sms.settled()
    assert len(twilio.to(ANA)) == 1
    assert "STOP" in twilio.to(ANA)[0]
    assert chat.asked == []


async def test_what_the_provider_has_confirmed_is_not_confirmed_again(sms: SmsProcess, twilio: TwilioStandIn) -> None:
    await sms.text_in(ANA, "Stop", OptOutType="STOP")
    await sms.settled()
    assert twilio.taken == []
    assert await sms.rows("select is_opted_out from consents") == [(True,)]


async def test_a_word_that_only_the_provider_knows_counts_too(
    sms: SmsProcess, people: PeopleStandIn, chat: ChatStandIn, twilio: TwilioStandIn
) -> None:
    people.add(ANA)
    await sms.text_in(ANA, "Basta", OptOutType="STOP")
    await sms.settled()
    assert await sms.rows("select is_opted_out, source from consents where phone_number = %s", ANA) == [(True, "keyword")]
    await sms.text_in(ANA, "Encore", OptOutType="START")
    await sms.text_in(ANA, "Que?", OptOutType="HELP")
    await sms.settled()
    assert await sms.rows("select is_opted_out from consents where phone_number = %s", ANA) == [(False,)]
    assert (await sms.answers_of(ANA), chat.asked, twilio.taken) == (["keyword"] * 3, [], [])
    # To somebody who wanted none and to nobody else.
    await sms.text_in(ANA, "Yes", OptOutType="START")
    await sms.settled()
    assert [one.text for one in chat.asked] == ["Yes"]


async def test_what_was_queued_before_a_stop_is_blocked_after_it(
    sms: SmsProcess, people: PeopleStandIn, twilio: TwilioStandIn
) -> None:
    ana = sms.user(people.add(ANA))
    twilio.faults.append("limit")
    sent = await ana.send(BEN, "Hello")
    for _ in range(200):
        if twilio.attempts:
            break
        await asyncio.sleep(0.02)
    await sms.text_in(BEN, "STOP")
    await sms.settled()
    assert (await ana.message(sent.id)).status == "blocked"
    assert ["you will get no more texts" in one for one in twilio.to(BEN)] == [True]


async def test_a_claim_waits_for_a_stop_that_has_not_committed_and_heeds_it(sms: SmsProcess, twilio: TwilioStandIn) -> None:
    ana = sms.user()
    await sms.text_in(BEN, "Hi")
    await sms.settled()
    async with await psycopg.AsyncConnection.connect(sms.database.migration_url) as stopping:
        await stopping.execute("select set_config('parley.scope', 'service', true)")
        await stopping.execute(
            "update consents set is_opted_out = true, epoch = epoch + 1, source = 'keyword', change_time = now()"
            " where phone_number = %s", [BEN],
        )  # fmt: skip
        sent = await ana.send(BEN, "Hello")
        for _ in range(400):
            if await sms.rows("select 1 from pg_locks where not granted"):
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError("the claim does not wait")
        assert twilio.attempts == 0
        await stopping.commit()
    await sms.settled()
    assert ((await ana.message(sent.id)).status, twilio.attempts) == ("blocked", 0)


async def test_the_database_refuses_a_claim_whoever_makes_it(sms: SmsProcess) -> None:
    await sms.text_in(ANA, "STOP")
    await sms.settled()
    insert = (
        "insert into messages (direction, kind, phone_number, text, status, claim_time)"
        " values ('outbound', 'text', %s, 'x', %s, now())"
    )
    with pytest.raises(psycopg.errors.CheckViolation, match="only what is queued"):
        await sms.rows(insert, ANA, "sending")
    await sms.rows(insert, ANA, "queued")
    await sms.rows(insert, BEN, "queued")
    with pytest.raises(psycopg.errors.CheckViolation, match="wants no text messages"):
        await sms.rows("update messages set status = 'sending' where phone_number = %s and text = 'x'", ANA)
    # Nor by way of another's number.
    with pytest.raises(psycopg.errors.CheckViolation, match="never changes"):
        await sms.rows("update messages set phone_number = %s where phone_number = %s", ANA, BEN)
    with pytest.raises(psycopg.errors.CheckViolation, match="never changes"):
        await sms.rows("update messages set kind = 'confirmation', consent_epoch = 1 where text = 'x'")
    with pytest.raises(psycopg.errors.CheckViolation, match="ledger"):
        await sms.rows("delete from consent_events")


async def test_a_number_that_the_provider_will_not_write_to_is_opted_out(
    sms: SmsProcess, people: PeopleStandIn, twilio: TwilioStandIn
) -> None:
    ana = sms.user(people.add(ANA))
    twilio.faults.append(21610)
    sent = await ana.send(BEN, "Hello")
    await sms.settled()
    assert ((await ana.message(sent.id)).status, (await ana.message(sent.id)).error_code) == ("blocked", "21610")
    assert (await refusal(ana.send(BEN, "Hello again"))).reason == "RECIPIENT_OPTED_OUT"
    assert await sms.rows("select source, epoch from consents where is_opted_out") == [("provider", 1)]
    # Nothing is confirmed: there is nobody who may be written to.
    assert len(await sms.texts_to(BEN)) == 1


async def test_the_providers_word_may_come_with_a_report(
    sms: SmsProcess, people: PeopleStandIn, twilio: TwilioStandIn
) -> None:
    ana = sms.user(people.add(ANA))
    sent = await ana.send(BEN, "Hello")
    await sms.settled()
    await sms.report(sent.id, twilio.taken[0].sid, "failed", ErrorCode="21610")
    assert (await refusal(ana.send(BEN, "Hello again"))).reason == "RECIPIENT_OPTED_OUT"


async def test_the_user_says_elsewhere_that_they_want_none(
    sms: SmsProcess, people: PeopleStandIn, twilio: TwilioStandIn
) -> None:
    ana = sms.user(people.add(ANA))
    assert (await refusal(ana.set_consent(opted_out=True))).reason == "PHONE_NOT_VERIFIED"
    await sms.text_in(ANA, "Hello?")
    await sms.settled()
    consent = await ana.set_consent(opted_out=True)
    assert (consent.phone_number, consent.opted_out) == (ANA, True)
    assert await ana.set_consent(opted_out=True) == consent
    await sms.text_in(ANA, "Hello?")
    await sms.settled()
    assert len(twilio.to(ANA)) == 1
    # Chat may say it for the user, and nobody may for another.
    chat = sms.issuer.as_service("chat", audience="sms", user_id=ana.id)
    assert not (await ana.set_consent(opted_out=False, metadata=chat)).opted_out
    other = sms.user()
    assert (await refusal(other.set_consent(opted_out=True))).reason == "PHONE_NOT_VERIFIED"
    # A number that became another's is not one's own any more.
    people.add(ANA)
    assert (await refusal(ana.set_consent(opted_out=True))).reason == "PHONE_NOT_VERIFIED"


async def test_what_is_said_again_leaves_no_line_in_the_ledger(sms: SmsProcess, people: PeopleStandIn) -> None:
    ana = sms.user(people.add(ANA))
    await sms.text_in(ANA, "Hello?")
    await sms.settled()
    first = await ana.set_consent(opted_out=False)
    assert first.HasField("update_time")
    assert await ana.set_consent(opted_out=False) == first
    assert await sms.rows("select change, source, epoch from consent_events") == [("start", "user", 0)]


async def test_administrators_list_those_who_want_none(sms: SmsProcess, people: PeopleStandIn) -> None:
    for number in range(5):
        await sms.text_in(f"+1415555020{number}", "stop")
    await sms.text_in("+14155550200", "start")
    listed: list[str] = []
    token = ""
    while True:
        request = sms_pb2.ListOptOutsRequest(page_size=2, page_token=token)
        page = await sms.sms.ListOptOuts(request, metadata=sms.as_admin(), timeout=10)
        listed += [one.phone_number for one in page.opt_outs]
        assert {one.source for one in page.opt_outs} == {"keyword"}
        token = page.next_page_token
        if not token:
            break
    assert listed == [f"+1415555020{number}" for number in (4, 3, 2, 1)]
    user = sms.user(people.add(ANA))
    refused = await refusal(sms.sms.ListOptOuts(sms_pb2.ListOptOutsRequest(), metadata=user.metadata, timeout=10))
    assert refused.code is grpc.StatusCode.PERMISSION_DENIED
    request = sms_pb2.ListOptOutsRequest(page_token="rubbish")
    assert (await refusal(sms.sms.ListOptOuts(request, metadata=sms.as_admin(), timeout=10))).reason == "INVALID_PAGE_TOKEN"


async def test_two_stops_at_once_are_confirmed_once(start_sms: Start, twilio: TwilioStandIn) -> None:
    async with start_sms() as one, start_sms() as other:
        both = [process.text_in(ANA, "STOP", sid=new_sid()) for process in (one, other) for _ in range(5)]
        await asyncio.gather(*both)
        await one.settled()
        assert len(twilio.to(ANA)) == 1
        assert await one.rows("select count(*) from consent_events") == [(10,)]
