"""CallService: calls over gRPC. Each method checks, calls, converts."""

import datetime as dt
from typing import Any, Final

import grpc
from google.api import httpbody_pb2

from parley.sms.v1 import call_pb2, call_pb2_grpc, sms_pb2
from services.runtime.calls import current_metadata, current_user_id
from services.runtime.errors import FieldViolation, invalid_request
from services.runtime.paging import cut_page, page_size
from services.runtime.request_ids import digest_of, request_id_of
from services.sms.call_store import CallStore
from services.sms.page_keys import key_of, place_in
from services.sms.phone_numbers import check_number
from services.sms.records import NewCall
from services.sms.responses import to_call
from services.sms.twilio_webhook import VOICE_PATH, TwilioWebhooks, empty_twiml, read_call

Context = grpc.aio.ServicerContext[Any, Any]
_CALLS: Final = "calls"
# A client's clock may be ahead of ours.
_AHEAD: Final = dt.timedelta(minutes=5)
_FIRST: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)


class CallServicer(call_pb2_grpc.CallServiceServicer):
    """parley.sms.v1.CallService."""

    def __init__(self, calls: CallStore, webhooks: TwilioWebhooks) -> None:
        self._calls = calls
        self._webhooks = webhooks

    async def RecordCall(self, request: call_pb2.RecordCallRequest, context: Context) -> call_pb2.Call:
        new = NewCall(
            direction=request.direction,
            phone_number=check_number(request.phone_number, field="phone_number"),
            status=request.status or "completed",
            start_time=_start_time(request),
            duration_seconds=request.duration_seconds,
            summary=request.summary,
        )
        call = await self._calls.record(
            new,
            user_id=current_user_id(),
            request_id=request_id_of(request, current_metadata()),
            request_digest=digest_of(request, ("request_id",)),
        )
        return to_call(call)

    async def ListCalls(self, request: call_pb2.ListCallsRequest, context: Context) -> call_pb2.ListCallsResponse:
        size = page_size(request.page_size)
        found = await self._calls.list_calls(
            user_id=current_user_id(), limit=size + 1, after=place_in(_CALLS, request.page_token)
        )
        page, token = cut_page(found, size, list_name=_CALLS, key=lambda one: key_of(one.start_time, one.id))
        return call_pb2.ListCallsResponse(calls=map(to_call, page), next_page_token=token)

    async def ReceiveTwilioVoiceStatus(self, request: sms_pb2.TwilioWebhook, context: Context) -> httpbody_pb2.HttpBody:
        report = read_call(self._webhooks.read(request.form, VOICE_PATH, current_metadata()))
        if report is not None:
            await self._calls.report(report)
        return empty_twiml()


def _start_time(request: call_pb2.RecordCallRequest) -> dt.datetime | None:
    if not request.HasField("start_time"):
        return None
    start_time = request.start_time.ToDatetime(dt.UTC)
    if not _FIRST <= start_time <= dt.datetime.now(dt.UTC) + _AHEAD:
        raise invalid_request([FieldViolation("start_time", "must be of this century, and not later than now")])
    return start_time
