"""From records to the contract's messages: conversion and nothing else."""

import datetime as dt

from google.protobuf import timestamp_pb2

from parley.sms.v1 import call_pb2, history_pb2, sms_pb2
from services.sms.conversations import Turn
from services.sms.history import Entry
from services.sms.records import Call, Consent, Decision, TextMessage

_HIDDEN_ANSWERS = {"unmatched": "failed", "limited": "failed", "no_text": "failed"}


def to_time(time: dt.datetime) -> timestamp_pb2.Timestamp:
    """A moment."""
    made = timestamp_pb2.Timestamp()
    made.FromDatetime(time)
    return made


def to_message(message: TextMessage) -> sms_pb2.TextMessage:
    """A text message. Why there is no reply is told in the words of the contract."""
    answer = message.answer or ""
    return sms_pb2.TextMessage(
        id=message.id,
        direction=message.direction,
        kind=message.kind,
        phone_number=message.phone_number,
        text=message.text,
        status=message.status,
        error_code=message.error_code,
        segments=message.segments,
        encoding=message.encoding,
        answer=_HIDDEN_ANSWERS.get(answer, answer),
        in_reply_to=message.in_reply_to or "",
        conversation_id=message.conversation_id or "",
        create_time=to_time(message.create_time),
        update_time=to_time(message.update_time),
    )


def to_decision(decision: Decision) -> sms_pb2.Decision:
    """A decision."""
    verdict = decision.verdict
    return sms_pb2.Decision(
        id=decision.id,
        input_text=decision.input_text,
        decision="yes" if verdict.is_yes else "no",
        reply=verdict.reply,
        reason=verdict.reason,
        confidence=verdict.confidence,
        model=decision.model,
        create_time=to_time(decision.create_time),
    )


def to_consent(consent: Consent) -> sms_pb2.Consent:
    """The consent of a number."""
    made = sms_pb2.Consent(phone_number=consent.phone_number, opted_out=consent.is_opted_out)
    if consent.change_time is not None:
        made.update_time.FromDatetime(consent.change_time)
    return made


def to_opt_out(consent: Consent) -> sms_pb2.OptOut:
    """A number that wants no texts."""
    made = sms_pb2.OptOut(phone_number=consent.phone_number, source=consent.source or "")
    if consent.change_time is not None:
        made.create_time.FromDatetime(consent.change_time)
    return made


def to_call(call: Call) -> call_pb2.Call:
    """A call."""
    return call_pb2.Call(
        id=call.id,
        direction=call.direction,
        phone_number=call.phone_number,
        status=call.status,
        start_time=to_time(call.start_time),
        duration_seconds=call.duration_seconds,
        summary=call.summary,
        source=call.source,
        create_time=to_time(call.create_time),
    )


def to_entry(entry: Entry) -> history_pb2.HistoryEntry:
    """An entry of the history."""
    made = history_pb2.HistoryEntry(id=entry.id, kind=entry.kind, time=to_time(entry.time))
    match entry.what:
        case Turn():
            made.turn.CopyFrom(_turn(entry.what))
        case Call():
            made.call.CopyFrom(to_call(entry.what))
        case TextMessage():
            made.message.CopyFrom(to_message(entry.what))
        case Decision():
            made.decision.CopyFrom(to_decision(entry.what))
    return made


def _turn(turn: Turn) -> history_pb2.ConversationTurn:
    return history_pb2.ConversationTurn(
        conversation_id=turn.conversation_id,
        conversation_kind=turn.conversation_kind,
        input_text=turn.input_text,
        reply=turn.reply,
        reply_id=turn.reply_id,
        status=turn.status,
        model=turn.model,
        input_tokens=turn.input_tokens,
        cached_tokens=turn.cached_tokens,
        output_tokens=turn.output_tokens,
        reasoning_tokens=turn.reasoning_tokens,
    )
