"""The whole way with somebody else's Twilio, through a real edge: in, answered, out, delivered; errors; wrong tokens."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from gateway.settings import Address
from parley.sms.v1 import call_pb2, sms_pb2
from tests.gateway.edge import Edge, running_edge
from tests.ports import free_ports
from tests.sms.conftest import Start
from tests.sms.emulator import Emulator, install, node_folder, running_emulator
from tests.sms.peers import ChatStandIn, PeopleStandIn
from tests.sms.service import SmsProcess
from tests.sms.twilio_stand_in import OWN_NUMBER
from tests.work import PATIENCE_SECONDS

ANA, BEN = "+14155550101", "+14155550102"


@pytest.fixture(scope="module")
async def folder() -> AsyncIterator[Path]:
    with node_folder() as found:
        await install(found)
        yield found


@pytest.fixture(scope="module")
async def place() -> AsyncIterator[tuple[Edge, int]]:
    """An edge before a port where sms will be."""
    [port] = free_ports(1)
    nobody = (Address("127.0.0.1", 1),)
    endpoints = {"auth": nobody, "chat": nobody, "memory": nobody, "sms": (Address("127.0.0.1", port),)}
    async with running_edge(endpoints, health_check_interval_seconds=0.2) as edge:
        yield edge, port


@pytest.fixture
async def emulator(folder: Path, place: tuple[Edge, int]) -> AsyncIterator[Emulator]:
    async with running_emulator(folder, public_url=place[0].url) as running:
        yield running


@pytest.fixture
async def sms(start_sms: Start, emulator: Emulator, place: tuple[Edge, int]) -> AsyncIterator[SmsProcess]:
    edge, port = place
    async with start_sms(
        listen_address=f"127.0.0.1:{port}", public_url=edge.url, twilio_base_url=emulator.url, send_timeout_seconds=10
    ) as process:
        # Refused for want of a signature: the edge has found the service.
        await edge_finds(edge)
        yield process


async def edge_finds(edge: Edge) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(200):
            async with session.post(f"{edge.url}/webhooks/twilio/sms", data={"Body": "x"}) as answer:
                if answer.status == 403:
                    assert (await answer.json())["details"][0]["reason"] == "WEBHOOK_SIGNATURE_WRONG"
                    return
            await asyncio.sleep(0.05)
    raise AssertionError("the edge does not find sms")


async def test_a_text_comes_in_and_its_reply_is_delivered(
    sms: SmsProcess, emulator: Emulator, people: PeopleStandIn, chat: ChatStandIn
) -> None:
    ana = sms.user(people.add(ANA))
    received = await emulator.simulate("inbound-message", From=ANA, To=OWN_NUMBER, Body="Add milk to my list: £2 & 3€ 🙂")
    await sms.settled()
    [sent] = await emulator.messages(ANA)
    assert (sent["body"], sent["from"], sent["direction"]) == (
        "You said: Add milk to my list: £2 & 3€ 🙂", OWN_NUMBER, "outbound-api",
    )  # fmt: skip
    reply, said = (await ana.messages()).messages
    assert (said.text, said.answer, reply.status) == (received["body"], "answered", "sent")
    for status, ours in (("sent", "sent"), ("delivered", "delivered"), ("sent", "delivered")):
        await emulator.simulate("message-status", MessageSid=sent["sid"], Status=status)
        assert (await ana.message(reply.id)).status == ours
    assert len(chat.asked) == 1


async def test_a_stop_is_confirmed_and_heeded(sms: SmsProcess, emulator: Emulator, people: PeopleStandIn) -> None:
    people.add(ANA)
    for text in ("Stop", "Hello?"):
        await emulator.simulate("inbound-message", From=ANA, To=OWN_NUMBER, Body=text)
    await sms.settled()
    assert ["no more texts" in one["body"] for one in await emulator.messages(ANA)] == [True]


async def test_what_twilio_refuses_is_told(start_sms: Start, emulator: Emulator, place: tuple[Edge, int]) -> None:
    changes: dict[str, dict[str, object]] = {
        # A number that is not the account's, a messaging service that is none.
        "21606": {"sms_number": "+15005550009"},
        "20404": {"twilio_messaging_service_sid": "MG" + "f" * 32},
    }
    for code, changed in changes.items():
        async with start_sms(public_url=place[0].url, twilio_base_url=emulator.url, **changed) as sms:
            ana = sms.user()
            sent = await ana.send(BEN, "Hello")
            await sms.settled()
            found = await ana.message(sent.id)
            assert (found.status, found.error_code) == ("failed", code)


async def test_a_wrong_token_sends_nothing_and_takes_nothing(
    start_sms: Start, emulator: Emulator, people: PeopleStandIn, place: tuple[Edge, int]
) -> None:
    edge, port = place
    people.add(ANA)
    async with start_sms(
        listen_address=f"127.0.0.1:{port}", public_url=edge.url, twilio_base_url=emulator.url,
        twilio_auth_token="another", send_tries=1,
    ) as sms:  # fmt: skip
        await edge_finds(edge)
        await emulator.simulate("inbound-message", From=ANA, To=OWN_NUMBER, Body="Hello?")
        assert await sms.answers_of(ANA) == []
        ana = sms.user()
        sent = await ana.send(BEN, "Hello")
        await sms.settled()
        assert (await ana.message(sent.id)).status == "failed"
        assert await emulator.messages(BEN) == []


async def test_calls_are_told_of(sms: SmsProcess, emulator: Emulator, people: PeopleStandIn) -> None:
    ana = sms.user(people.add(ANA))
    call = await emulator.simulate("inbound-call", From=ANA, To=OWN_NUMBER)
    await emulator.simulate("call-status", CallSid=call["sid"], Status="completed")

    async def calls() -> list[call_pb2.Call]:
        return list((await ana.list_calls()).calls)

    # The emulator answers before it has told us.
    async with asyncio.timeout(PATIENCE_SECONDS):
        while [one.status for one in await calls()] != ["completed"]:  # noqa: ASYNC110 - it tells nobody else
            await asyncio.sleep(0.05)
    [found] = await calls()
    assert (found.direction, found.status, found.phone_number) == ("inbound", "completed", ANA)


async def test_a_purge_deletes_the_texts_there(sms: SmsProcess, emulator: Emulator, people: PeopleStandIn) -> None:
    ana = sms.user(people.add(ANA))
    await emulator.simulate("inbound-message", From=ANA, To=OWN_NUMBER, Body="Hello?")
    await sms.settled()
    assert len(await emulator.messages(ANA)) == 1
    request = sms_pb2.PurgeUserRequest(user_id=ana.id)
    await sms.sms.PurgeUser(request, metadata=sms.as_auth(), timeout=10)
    await sms.settled()
    assert await emulator.messages(ANA) == await emulator.messages(OWN_NUMBER) == []
