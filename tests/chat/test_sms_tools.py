# ruff: noqa: ARG002 - the signatures are the contract's
"""What a user says of text messages in a conversation: a tool of the model tells sms, on behalf of the user."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import pytest

from parley.sms.v1 import sms_pb2, sms_pb2_grpc
from services.runtime.calls import current_caller
from services.runtime.errors import ServiceError
from services.runtime.interceptors import CallInterceptor
from services.runtime.server import access_rule
from services.sms.refusals import phone_not_verified
from simulator.server import Running
from tests.chat.conftest import Start
from tests.chat.service import text_of
from tests.issuer import Issuer
from tests.sms.peers import NeverCalled

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class SmsStandIn(NeverCalled):
    """Takes consent, by the user who said it."""

    told: list[tuple[str | None, bool]] = field(default_factory=list)
    error: ServiceError | None = None

    async def SetConsent(self, request: sms_pb2.SetConsentRequest, context: Context) -> sms_pb2.Consent:
        if self.error is not None:
            raise self.error
        assert current_caller().service == "chat"
        self.told.append((current_caller().user_id, request.opted_out))
        return sms_pb2.Consent(phone_number="+14155550101", opted_out=request.opted_out)


@asynccontextmanager
async def running_sms(sms: SmsStandIn, issuer: Issuer) -> AsyncIterator[str]:
    service = sms_pb2.DESCRIPTOR.services_by_name["SmsService"]
    access = {f"/{service.full_name}/{method.name}": access_rule(method) for method in service.methods}
    interceptor = CallInterceptor(issuer.verifier("sms"), access, slow_call_seconds=60)
    server = grpc.aio.server(interceptors=[interceptor], options=(("grpc.so_reuseport", 0),))
    sms_pb2_grpc.add_SmsServiceServicer_to_server(cast(Any, sms), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"ipv4:127.0.0.1:{port}"
    await server.stop(0)


@pytest.fixture
async def sms() -> SmsStandIn:
    return SmsStandIn()


@pytest.fixture
async def sms_target(sms: SmsStandIn, issuer: Issuer) -> AsyncIterator[str]:
    async with running_sms(sms, issuer) as target:
        yield target


async def test_who_says_so_gets_no_texts_any_more(start_chat: Start, sms: SmsStandIn, sms_target: str) -> None:
    async with start_chat(sms_target=sms_target) as chat:
        user = chat.user()
        assert "no more text messages" in text_of(await user.stream("Please don't text me any more"))
        assert "again" in text_of(await user.stream("You may text me again"))
        assert sms.told == [(user.id, True), (user.id, False)]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (None, "Text messages cannot be set now"),
        (phone_not_verified(), "no verified phone number"),
    ],
)
async def test_what_fails_costs_the_turn_that_call_and_nothing_else(
    start_chat: Start, sms: SmsStandIn, sms_target: str, error: ServiceError | None, told: str
) -> None:
    sms.error = error
    target = sms_target if error is not None else "ipv4:127.0.0.1:1"
    async with start_chat(sms_target=target, peer_timeout_seconds=1) as chat:
        events = await chat.user().stream("Don't text me!")
        assert events[-1].WhichOneof("event") == "completed"
        [finished] = [one.tool_call_finished for one in events if one.HasField("tool_call_finished")]
        assert (finished.tool, finished.status) == ("set_text_messages", "failed")
        assert told in finished.error
        assert text_of(await chat.user().stream("Hello"))


async def test_without_sms_the_model_has_no_such_tool(start_chat: Start, simulator: Running) -> None:
    async with start_chat() as chat:
        await chat.user().stream("Don't text me!")
        [asked] = await simulator.control.requests("responses")
        assert "set_text_messages" not in str(asked.body.get("tools"))
