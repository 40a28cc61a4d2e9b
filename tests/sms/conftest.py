"""Sms on real parts: migrated Postgres, the simulator and stand-ins for Twilio, auth and chat on sockets."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from services.sms.settings import SmsSettings
from simulator.server import Running, running
from suite.databases import ServiceDatabase
from tests.conftest import truncate
from tests.issuer import Issuer
from tests.sms.peers import ChatStandIn, PeopleStandIn, running_auth, running_chat
from tests.sms.service import PUBLIC_URL, SmsProcess, running_sms
from tests.sms.twilio_stand_in import ACCOUNT, OWN_NUMBER, TOKEN, TwilioStandIn, running_twilio

Start = Callable[..., AbstractAsyncContextManager[SmsProcess]]


@pytest.fixture(scope="session")
async def session_people() -> PeopleStandIn:
    return PeopleStandIn()


@pytest.fixture(scope="session")
async def auth_target(session_people: PeopleStandIn, issuer: Issuer) -> AsyncIterator[str]:
    async with running_auth(issuer, session_people) as target:
        yield target


@pytest.fixture
def people(session_people: PeopleStandIn) -> PeopleStandIn:
    """Whose numbers are whose, as auth says; nobody's yet."""
    session_people.clear()
    return session_people


@pytest.fixture(scope="session")
async def session_chat() -> ChatStandIn:
    return ChatStandIn()


@pytest.fixture(scope="session")
async def chat_target(session_chat: ChatStandIn, issuer: Issuer) -> AsyncIterator[str]:
    async with running_chat(issuer, session_chat) as target:
        yield target


@pytest.fixture
def chat(session_chat: ChatStandIn) -> ChatStandIn:
    session_chat.clear()
    return session_chat


@pytest.fixture(scope="session")
async def session_twilio() -> AsyncIterator[TwilioStandIn]:
    async with running_twilio(TwilioStandIn()) as twilio:
        yield twilio


@pytest.fixture
def twilio(session_twilio: TwilioStandIn) -> TwilioStandIn:
    session_twilio.clear()
    return session_twilio


@pytest.fixture(scope="session")
async def session_simulator() -> AsyncIterator[Running]:
    async with running() as simulator:
        yield simulator


@pytest.fixture
async def simulator(session_simulator: Running) -> AsyncIterator[Running]:
    """The model's provider, without a past; whatever a test scripts must be used."""
    await session_simulator.control.reset()
    yield session_simulator
    await session_simulator.control.release()
    await session_simulator.control.verify_consumed()


@pytest.fixture
async def database(sms_database: ServiceDatabase) -> ServiceDatabase:
    await truncate(sms_database)
    return sms_database


@pytest.fixture
def start_sms(  # noqa: PLR0913, PLR0917 - its peers
    database: ServiceDatabase,
    simulator: Running,
    people: PeopleStandIn,
    chat: ChatStandIn,
    twilio: TwilioStandIn,
    auth_target: str,
    chat_target: str,
    issuer: Issuer,
) -> Start:
    """Starts sms with the settings that it is called with; several at once are several processes' worth."""
    assert (people.numbers, chat.answers, twilio.taken) == ({}, {}, [])

    def start(**changed: object) -> AbstractAsyncContextManager[SmsProcess]:
        defaults: dict[str, object] = {
            "listen_address": "127.0.0.1:0",
            "metrics_address": "127.0.0.1:0",
            "database_url": database.url,
            "auth_target": auth_target,
            "chat_target": chat_target,
            "workload_credential_file": "unused",
            "openai_api_key": "any",
            "openai_base_url": simulator.base_url,
            "openai_max_retries": 0,
            "public_url": PUBLIC_URL,
            "sms_provider": "twilio",
            "sms_number": OWN_NUMBER,
            "twilio_account_sid": ACCOUNT,
            "twilio_auth_token": TOKEN,
            "twilio_base_url": twilio.url,
            "send_timeout_seconds": 1,
            "reconcile_seconds": 0.2,
        }
        return running_sms(SmsSettings.model_validate({**defaults, **changed}), issuer, database)

    return start


@pytest.fixture
async def sms(start_sms: Start) -> AsyncIterator[SmsProcess]:
    async with start_sms() as process:
        yield process
