"""Sms killed at every step of answering a text: one reply; or `unknown`, where the kill fell into the call of Twilio."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from suite.databases import ServiceDatabase
from tests.faults.sms_stand import SmsStand, sms_stand
from tests.issuer import Issuer
from tests.sms.service import eventually, new_sid

ANA = "+14155550101"
Kill = Callable[[SmsStand, str], Awaitable[None]]


@asynccontextmanager
async def _locked(stand: SmsStand, statement: str) -> AsyncIterator[None]:
    """Holds rows: whoever wants to change them waits."""
    async with stand.owner() as connection, connection.transaction():
        await connection.execute(statement.encode())
        yield


async def _received(stand: SmsStand, sid: str) -> None:
    assert stand.sms is not None
    await stand.sms.text_in(ANA, "Hello?", sid=sid)


async def at_the_webhook(stand: SmsStand, sid: str) -> None:
    await _received(stand, sid)
    await stand.kill()


async def while_the_sender_is_looked_for(stand: SmsStand, sid: str) -> None:
    stand.people.hold = asyncio.Event()
    await _received(stand, sid)
    await eventually(lambda: stand.people.asked > 0)
    await stand.kill()
    stand.people.hold.set()


async def while_the_text_becomes_theirs(stand: SmsStand, sid: str) -> None:
    stand.people.hold = asyncio.Event()
    await _received(stand, sid)
    async with _locked(stand, "select from messages for update"):
        stand.people.hold.set()
        await stand.waiting_for_a_lock()
        await stand.kill_process()
    await stand.kill()


async def while_chat_answers(stand: SmsStand, sid: str) -> None:
    stand.chat.hold = asyncio.Event()
    await _received(stand, sid)
    await eventually(lambda: bool(stand.chat.asked))
    await stand.kill()
    stand.chat.hold.set()


async def while_the_reply_is_stored(stand: SmsStand, sid: str) -> None:
    stand.chat.hold = asyncio.Event()
    await _received(stand, sid)
    await eventually(lambda: bool(stand.chat.asked))
    async with _locked(stand, "select from messages for update"):
        stand.chat.hold.set()
        await stand.waiting_for_a_lock()
        await stand.kill_process()
    await stand.kill()


async def while_the_send_is_claimed(stand: SmsStand, sid: str) -> None:
    stand.chat.hold = asyncio.Event()
    await _received(stand, sid)
    await eventually(lambda: bool(stand.chat.asked))
    async with _locked(stand, "select from consents for update"):
        stand.chat.hold.set()
        await stand.waiting_for_a_lock()
        await stand.kill_process()
    await stand.kill()


async def before_the_provider_has_taken_it(stand: SmsStand, sid: str) -> None:
    dead = asyncio.Event()

    async def arrive() -> None:
        await dead.wait()
        raise ConnectionResetError

    stand.twilio.on_arrival = arrive
    await _received(stand, sid)
    await eventually(stand.twilio.arrived.is_set)
    await stand.kill()
    stand.twilio.on_arrival = None
    dead.set()


async def after_the_provider_has_taken_it(stand: SmsStand, sid: str) -> None:
    dead = asyncio.Event()

    async def take(_taken: object) -> None:
        await dead.wait()

    stand.twilio.on_taken = take
    await _received(stand, sid)
    await eventually(lambda: bool(stand.twilio.taken))
    await stand.kill()
    dead.set()


async def after_it_was_taken_and_is_not_listed(stand: SmsStand, sid: str) -> None:
    stand.twilio.lists_nothing = True
    await after_the_provider_has_taken_it(stand, sid)


async def while_that_is_written_down(stand: SmsStand, sid: str) -> None:
    holding = asyncio.Event()
    locks: list[asyncio.Task[None]] = []

    async def hold_row() -> None:
        async with _locked(stand, "select from messages for update"):
            holding.set()
            await stand.waiting_for_a_lock()
            await stand.kill_process()

    async def take(_taken: object) -> None:
        locks.append(asyncio.create_task(hold_row()))
        await holding.wait()

    stand.twilio.on_taken = take
    await _received(stand, sid)
    await eventually(lambda: bool(locks))
    await locks[0]
    await stand.kill()


STEPS: dict[Kill, set[tuple[str, int]]] = {
    at_the_webhook: {("sent", 1)},
    while_the_sender_is_looked_for: {("sent", 1)},
    while_the_text_becomes_theirs: {("sent", 1)},
    while_chat_answers: {("sent", 1)},
    while_the_reply_is_stored: {("sent", 1)},
    while_the_send_is_claimed: {("sent", 1)},
    before_the_provider_has_taken_it: {("unknown", 0)},
    after_the_provider_has_taken_it: {("sent", 1)},
    after_it_was_taken_and_is_not_listed: {("unknown", 1)},
    while_that_is_written_down: {("sent", 1)},
}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
async def test_one_reply_or_unknown_and_never_two(
    sms_database: ServiceDatabase, issuer: Issuer, tmp_path: Path, step: Kill
) -> None:
    async with sms_stand(issuer, sms_database, tmp_path) as stand:
        stand.people.add(ANA)
        await stand.start()
        sid = new_sid()
        await step(stand, sid)
        sms = await stand.start()
        # Twilio has had no answer, and says it again.
        await sms.text_in(ANA, "Hello?", sid=sid)
        await sms.settled(within_seconds=30)
        [(kind, status, _)] = await sms.texts_to(ANA)
        assert kind == "reply"
        assert (status, len(stand.twilio.to(ANA))) in STEPS[step]
        assert await sms.answers_of(ANA) == ["answered"]
        assert len({one.request_id for one in stand.chat.asked}) == 1
