"""SmsService: text messages over gRPC.

Owns the conversion at the door and nothing else: each method checks, calls, converts. A webhook is read, and by that its
signature checked, before anything else is done.
"""

from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog
from google.api import httpbody_pb2

from parley.sms.v1 import sms_pb2, sms_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.calls import current_caller, current_metadata, current_user_id
from services.runtime.errors import FieldViolation, PermissionDenied, invalid_request
from services.runtime.paging import cut_page, page_size
from services.runtime.request_ids import digest_of, request_id_of
from services.sms.codes import CodeRequest, Codes
from services.sms.consent_store import ConsentStore
from services.sms.decisions import Decisions
from services.sms.erasure_store import ErasureStore
from services.sms.inbox_store import InboxStore
from services.sms.message_store import MessageStore
from services.sms.outbox_store import OutboxStore
from services.sms.own_number import OwnNumber
from services.sms.page_keys import key_of, number_place_in, place_in
from services.sms.people import People
from services.sms.phone_numbers import check_number
from services.sms.records import NewText
from services.sms.responses import to_consent, to_decision, to_message, to_opt_out
from services.sms.segments import size_of
from services.sms.twilio_webhook import (
    MESSAGE_PATH,
    STATUS_PATH,
    TwilioWebhooks,
    empty_twiml,
    read_report,
    read_text,
)

log = structlog.get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
_MESSAGES: Final = "texts"
_OPT_OUTS: Final = "opt_outs"


@dataclass(frozen=True)
class SmsParts:
    """What the servicer needs."""

    messages: MessageStore
    inbox: InboxStore
    outbox: OutboxStore
    consents: ConsentStore
    erasure: ErasureStore
    decisions: Decisions
    codes: Codes
    people: People
    own_number: OwnNumber
    webhooks: TwilioWebhooks
    most_segments: int


class SmsServicer(sms_pb2_grpc.SmsServiceServicer):
    """parley.sms.v1.SmsService."""

    def __init__(self, parts: SmsParts) -> None:
        self._parts = parts

    async def DecideReply(self, request: sms_pb2.DecideReplyRequest, context: Context) -> sms_pb2.Decision:
        user_id = current_user_id()
        decision = await self._parts.decisions.decide(
            request.text,
            language=await self._parts.people.language_of(user_id),
            user_id=user_id,
            request_id=request_id_of(request, current_metadata()),
            request_digest=digest_of(request, ("request_id",)),
        )
        return to_decision(decision)

    async def SendMessage(self, request: sms_pb2.SendMessageRequest, context: Context) -> sms_pb2.TextMessage:
        user_id = current_user_id()
        new = NewText(
            phone_number=check_number(request.phone_number, field="phone_number"),
            text=self._checked_text(request.text),
            kind="text",
            user_id=user_id,
        )
        message = await self._parts.messages.create(
            new,
            user_id=user_id,
            request_id=_own_request_id(request_id_of(request, current_metadata())),
            request_digest=digest_of(request, ("request_id",)),
        )
        return to_message(message)

    def _checked_text(self, text: str) -> str:
        most = self._parts.most_segments
        if not text.strip():
            raise invalid_request([FieldViolation("text", "says nothing")])
        size = size_of(text)
        if size.segments > most:
            said = f"takes {size.segments} segments in {size.encoding}, of which {most} are allowed: shorten it"
            raise invalid_request([FieldViolation("text", said)])
        return text

    async def ListMessages(self, request: sms_pb2.ListMessagesRequest, context: Context) -> sms_pb2.ListMessagesResponse:
        size = page_size(request.page_size)
        found = await self._parts.messages.list_messages(
            user_id=current_user_id(), limit=size + 1, after=place_in(_MESSAGES, request.page_token)
        )
        page, token = cut_page(found, size, list_name=_MESSAGES, key=lambda one: key_of(one.create_time, one.id))
        return sms_pb2.ListMessagesResponse(messages=map(to_message, page), next_page_token=token)

    async def GetMessage(self, request: sms_pb2.GetMessageRequest, context: Context) -> sms_pb2.TextMessage:
        return to_message(await self._parts.messages.read(request.message_id.lower(), user_id=current_user_id()))

    async def ReceiveTwilioMessage(self, request: sms_pb2.TwilioWebhook, context: Context) -> httpbody_pb2.HttpBody:
        form = self._parts.webhooks.read(request.form, MESSAGE_PATH, current_metadata())
        is_new = await self._parts.inbox.receive(read_text(form))
        log.info("sms.received", is_new=is_new)
        return empty_twiml()

    async def ReceiveTwilioStatus(self, request: sms_pb2.TwilioWebhook, context: Context) -> httpbody_pb2.HttpBody:
        return await self._reported(request.form, STATUS_PATH)

    async def ReceiveTwilioMessageStatus(
        self, request: sms_pb2.TwilioMessageStatusWebhook, context: Context
    ) -> httpbody_pb2.HttpBody:
        path = f"{STATUS_PATH}/{request.message_id}"
        return await self._reported(request.form, path, message_id=request.message_id)

    async def _reported(self, body: httpbody_pb2.HttpBody, path: str, *, message_id: str = "") -> httpbody_pb2.HttpBody:
        form = self._parts.webhooks.read(body, path, current_metadata())
        report = read_report(form, message_id)
        if report is not None:
            is_ours = await self._parts.outbox.report(report)
            log.info("sms.reported", status=report.status, message_id=report.message_id, is_ours=is_ours)
        return empty_twiml()

    async def ListOptOuts(self, request: sms_pb2.ListOptOutsRequest, context: Context) -> sms_pb2.ListOptOutsResponse:
        size = page_size(request.page_size)
        found = await self._parts.consents.list_opt_outs(
            limit=size + 1, after=number_place_in(_OPT_OUTS, request.page_token)
        )
        # Those that are listed have changed.
        timed = [(one, one.change_time) for one in found if one.change_time is not None]
        page, token = cut_page(timed, size, list_name=_OPT_OUTS, key=lambda one: key_of(one[1], one[0].phone_number))
        return sms_pb2.ListOptOutsResponse(opt_outs=[to_opt_out(one) for one, _ in page], next_page_token=token)

    async def SetConsent(self, request: sms_pb2.SetConsentRequest, context: Context) -> sms_pb2.Consent:
        number = await self._parts.own_number.of(current_user_id())
        return to_consent(await self._parts.consents.set_consent(number, is_opted_out=request.opted_out))

    async def SendVerificationCode(
        self, request: sms_pb2.SendVerificationCodeRequest, context: Context
    ) -> sms_pb2.SendVerificationCodeResponse:
        _refuse_on_behalf()
        await self._parts.codes.send(
            CodeRequest(
                user_id=request.user_id.lower(),
                phone_number=check_number(request.phone_number, field="phone_number"),
                code=request.code,
                language=request.language,
                request_id=request.request_id.lower(),
                # Not of the code: a digest of six digits is the code.
                request_digest=digest_of(request, ("request_id", "code", "language")),
            )
        )
        return sms_pb2.SendVerificationCodeResponse()

    async def PurgeUser(self, request: sms_pb2.PurgeUserRequest, context: Context) -> sms_pb2.PurgeUserResponse:
        _refuse_on_behalf()
        await self._parts.erasure.purge_user(request.user_id.lower())
        return sms_pb2.PurgeUserResponse()


def _own_request_id(request_id: str | None) -> str | None:
    """The user's request ids apart from those of codes."""
    return None if request_id is None else f"own:{request_id}"


def _refuse_on_behalf() -> None:
    """Refuses a call that a service makes for a user: what it does is no user's to do."""
    caller = current_caller()
    if caller.user_id is not None or caller.service != "auth":
        raise PermissionDenied("Only auth may call this, for itself.", reasons.ERROR_REASON_ACCESS_DENIED)
