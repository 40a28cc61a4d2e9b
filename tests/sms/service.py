"""A running sms service, called as users, other services and Twilio call it."""

import asyncio
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import grpc
import psycopg
from google.api import httpbody_pb2
from sqlalchemy import event

from parley.sms.v1 import call_pb2, call_pb2_grpc, history_pb2, history_pb2_grpc, sms_pb2, sms_pb2_grpc
from services.runtime.channels import open_channel
from services.runtime.database import open_database
from services.runtime.duties import beside
from services.runtime.peers import ServiceTokens
from services.runtime.server import GrpcServer
from services.sms.__main__ import Sms, open_sms
from services.sms.settings import SmsSettings
from suite.databases import ServiceDatabase
from tests.issuer import Issuer, Metadata
from tests.sms.peers import CREDENTIAL
from tests.sms.twilio_stand_in import ACCOUNT, OWN_NUMBER, signature

PUBLIC_URL = "https://parley.example.com"
MESSAGE, STATUS, VOICE = "/webhooks/twilio/sms", "/webhooks/twilio/sms-status", "/webhooks/twilio/voice-status"
FORM = "application/x-www-form-urlencoded"


def new_sid(prefix: str = "SM") -> str:
    return prefix + secrets.token_hex(16)


def body_of(form: Mapping[str, str]) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(content_type=FORM, data=urlencode(form).encode())


def signed(path: str, form: Mapping[str, str]) -> Metadata:
    return (("x-twilio-signature", signature(PUBLIC_URL + path, form)),)


class SmsProcess:
    """One running sms."""

    def __init__(self, issuer: Issuer, channel: grpc.aio.Channel, sms: Sms | None, database: ServiceDatabase) -> None:
        self.issuer = issuer
        self.channel = channel
        self.parts = sms
        self.database = database
        self.statements: list[str] = []
        self.sms = sms_pb2_grpc.SmsServiceStub(channel)
        self.calls = call_pb2_grpc.CallServiceStub(channel)
        self.history = history_pb2_grpc.HistoryServiceStub(channel)

    def user(self, user_id: str | None = None) -> "User":
        return User(self, user_id or str(uuid.uuid4()))

    def as_auth(self, *, user_id: str | None = None) -> Metadata:
        return self.issuer.as_service("auth", audience="sms", user_id=user_id)

    def as_admin(self) -> Metadata:
        token = self.issuer.user_token(str(uuid.uuid4()), roles=("user", "admin"))
        return (("authorization", f"Bearer {token}"),)

    async def text_in(self, number: str, text: str, *, sid: str | None = None, **fields: str) -> str:
        """A text comes in by Twilio's webhook; its id at Twilio."""
        sid = sid or new_sid()
        form = {"MessageSid": sid, "AccountSid": ACCOUNT, "From": number, "To": OWN_NUMBER, "Body": text, **fields}
        request = sms_pb2.TwilioWebhook(form=body_of(form))
        answer = await self.sms.ReceiveTwilioMessage(request, metadata=signed(MESSAGE, form), timeout=10)
        assert answer.content_type.startswith("text/xml")
        assert answer.data.endswith(b"<Response></Response>")
        return sid

    async def report(self, message_id: str, sid: str, status: str, **fields: str) -> None:
        """Twilio tells of a delivery, at the address that it was given with the text."""
        path = f"{STATUS}/{message_id}" if message_id else STATUS
        form = {"MessageSid": sid, "AccountSid": ACCOUNT, "MessageStatus": status, **fields}
        metadata = signed(path, form)
        if message_id:
            named = sms_pb2.TwilioMessageStatusWebhook(form=body_of(form), message_id=message_id)
            await self.sms.ReceiveTwilioMessageStatus(named, metadata=metadata, timeout=10)
        else:
            await self.sms.ReceiveTwilioStatus(sms_pb2.TwilioWebhook(form=body_of(form)), metadata=metadata, timeout=10)

    async def call_in(self, sid: str, status: str, **fields: str) -> None:
        form = {
            "CallSid": sid,
            "AccountSid": ACCOUNT,
            "CallStatus": status,
            "Direction": "inbound",
            "To": OWN_NUMBER,
            **fields,
        }
        request = sms_pb2.TwilioWebhook(form=body_of(form))
        await self.calls.ReceiveTwilioVoiceStatus(request, metadata=signed(VOICE, form), timeout=10)

    async def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """As the owner of the tables, for the service."""
        url = self.database.migration_url
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute("select set_config('parley.scope', 'service', false)")
            cursor = await connection.execute(statement.encode(), values)
            return await cursor.fetchall() if cursor.description else []

    async def texts_to(self, number: str) -> list[tuple[str, str, str]]:
        """Kind, status and text of what goes, or went, to a number."""
        return await self.rows(
            "select kind, status, text from messages where direction = 'outbound' and phone_number = %s order by id", number
        )

    async def answers_of(self, number: str) -> list[str]:
        found = await self.rows(
            "select answer from messages where direction = 'inbound' and phone_number = %s order by id", number
        )
        return [answer for (answer,) in found]

    async def settled(self, *, within_seconds: float = 15) -> None:
        """Waits until no job is left to do now, and nothing is being sent."""
        left = "select count(*) from procrastinate_jobs where status in ('todo', 'doing')"
        sending = "select count(*) from messages where status in ('queued', 'sending')"
        end = time.monotonic() + within_seconds
        while True:
            found = await self.rows(f"select ({left}), ({sending})")
            if found == [(0, 0)]:
                return
            assert time.monotonic() < end, f"jobs and sends left: {found}"
            await asyncio.sleep(0.03)


class User:
    """A signed-in user of an sms process."""

    def __init__(self, process: SmsProcess, user_id: str) -> None:
        self.id = user_id
        self.process = process
        self.metadata = process.issuer.as_user(user_id)

    async def send(self, number: str, text: str, **fields: Any) -> sms_pb2.TextMessage:
        request = sms_pb2.SendMessageRequest(phone_number=number, text=text, **fields)
        return await self.process.sms.SendMessage(request, metadata=self.metadata, timeout=10)

    async def message(self, message_id: str) -> sms_pb2.TextMessage:
        request = sms_pb2.GetMessageRequest(message_id=message_id)
        return await self.process.sms.GetMessage(request, metadata=self.metadata, timeout=10)

    async def messages(self, **fields: Any) -> sms_pb2.ListMessagesResponse:
        request = sms_pb2.ListMessagesRequest(**fields)
        return await self.process.sms.ListMessages(request, metadata=self.metadata, timeout=10)

    async def decide(self, text: str, **fields: Any) -> sms_pb2.Decision:
        request = sms_pb2.DecideReplyRequest(text=text, **fields)
        return await self.process.sms.DecideReply(request, metadata=self.metadata, timeout=30)

    async def set_consent(self, *, opted_out: bool, metadata: Metadata | None = None) -> sms_pb2.Consent:
        request = sms_pb2.SetConsentRequest(opted_out=opted_out)
        return await self.process.sms.SetConsent(request, metadata=metadata or self.metadata, timeout=10)

    async def record_call(self, number: str = "+14155550199", **fields: Any) -> call_pb2.Call:
        request = call_pb2.RecordCallRequest(**{"direction": "outbound", "phone_number": number, **fields})
        return await self.process.calls.RecordCall(request, metadata=self.metadata, timeout=10)

    async def list_calls(self, **fields: Any) -> call_pb2.ListCallsResponse:
        request = call_pb2.ListCallsRequest(**fields)
        return await self.process.calls.ListCalls(request, metadata=self.metadata, timeout=10)

    async def read_history(self, kind: str = "", **fields: Any) -> history_pb2.ListHistoryResponse:
        method = getattr(self.process.history, f"List{kind}History")
        request = history_pb2.ListHistoryRequest(**{"user_id": "me", **fields})
        answer: history_pb2.ListHistoryResponse = await method(request, metadata=self.metadata, timeout=10)
        return answer


@asynccontextmanager
async def running_sms(settings: SmsSettings, issuer: Issuer, database: ServiceDatabase) -> AsyncIterator[SmsProcess]:
    async with AsyncExitStack() as parts:
        opened = open_database(settings.database_url.get_secret_value(), pool_size=settings.database_pool_size)
        parts.push_async_callback(opened.close)
        auth = open_channel(settings.auth_target, audience="auth", tokens=None, timeout_seconds=5)
        parts.push_async_callback(auth.close)
        tokens = ServiceTokens(auth, workload="sms", credential=CREDENTIAL)
        sms = await open_sms(settings, parts, database=opened, tokens=tokens)
        await parts.enter_async_context(beside(*sms.duties))
        server = GrpcServer(address=settings.listen_address, mounts=sms.mounts, verifier=issuer.verifier("sms"))
        port = await server.start()
        parts.push_async_callback(server.stop, wait_seconds=0, drain_seconds=0.2)
        channel = await parts.enter_async_context(grpc.aio.insecure_channel(f"ipv4:127.0.0.1:{port}"))
        process = SmsProcess(issuer, channel, sms, database)
        event.listen(
            opened.engine.sync_engine,
            "before_cursor_execute",
            lambda _connection, _cursor, statement, *_rest: process.statements.append(statement),
        )
        yield process


async def eventually(condition: Callable[[], bool], *, within_seconds: float = 10) -> None:
    end = time.monotonic() + within_seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.02)
