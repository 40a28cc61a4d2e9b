"""From records to the contract's messages: events, messages, conversations.

Owns the conversion and nothing else. Every event is made once, whoever reads it.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Final

from google.protobuf import duration_pb2, timestamp_pb2

from parley.chat.v1 import chat_pb2, conversation_pb2
from services.chat.records import Conversation, Failure, Generation, Message, Timings, Turn, Usage

Event = chat_pb2.CompletionEvent

HEARTBEAT: Final = Event(heartbeat=chat_pb2.Heartbeat())


def started_event(turn: Turn, degraded: Sequence[str]) -> Event:
    """The first event of a generation."""
    generation = turn.generation
    return Event(
        sequence=1,
        started=chat_pb2.Started(
            generation_id=generation.id,
            conversation_id=generation.conversation_id,
            user_message_id=generation.user_message_id,
            message_id=generation.reply_message_id,
            model=generation.model,
            degraded=degraded,
        ),
    )


def text_event(sequence: int, text: str) -> Event:
    """More text."""
    return Event(sequence=sequence, text_delta=chat_pb2.TextDelta(text=text))


def usage_event(sequence: int, usage: Usage) -> Event:
    """What the reply cost."""
    return Event(sequence=sequence, usage=to_usage(usage))


def completed_event(sequence: int, reply: Message) -> Event:
    """The good end."""
    return Event(sequence=sequence, completed=chat_pb2.Completed(message=to_message(reply)))


def failed_event(sequence: int, failure: Failure, reply: Message | None) -> Event:
    """The bad end; without a reply when it could not be saved."""
    failed = chat_pb2.Failed(reason=failure.reason, message=failure.message)
    if failure.retry_delay_seconds is not None:
        failed.retry_delay.CopyFrom(_duration(failure.retry_delay_seconds))
    if reply is not None:
        failed.partial_message.CopyFrom(to_message(reply))
    return Event(sequence=sequence, failed=failed)


def cancelled_event(sequence: int, reply: Message | None) -> Event:
    """The end by a deletion (no reply any more) or a cancellation."""
    cancelled = chat_pb2.Cancelled()
    if reply is not None:
        cancelled.partial_message.CopyFrom(to_message(reply))
    return Event(sequence=sequence, cancelled=cancelled)


def replayed_events(turn: Turn) -> list[Event]:
    """The events of an ended generation, from what was saved of it: its text in one piece."""
    generation, reply = turn.generation, turn.reply
    events = [started_event(turn, generation.degraded)]
    if reply.text:
        events.append(text_event(len(events) + 1, reply.text))
    if reply.usage is not None:
        events.append(usage_event(len(events) + 1, reply.usage))
    last = len(events) + 1
    if generation.failure is not None:
        events.append(failed_event(last, generation.failure, reply))
    elif generation.status == "cancelled":
        events.append(cancelled_event(last, reply))
    else:
        events.append(completed_event(last, reply))
    return events


def deleted_events(turn: Turn) -> list[Event]:
    """The events of a generation whose conversation was deleted before they were read."""
    return [started_event(turn, turn.generation.degraded), cancelled_event(2, None)]


def to_completion(generation: Generation, user_message: Message, reply: Message) -> chat_pb2.Completion:
    """The answer of the unary call."""
    return chat_pb2.Completion(
        conversation_id=generation.conversation_id,
        message=to_message(reply),
        usage=None if reply.usage is None else to_usage(reply.usage),
        model=generation.model,
        processing_time_ms=0 if reply.timings is None else reply.timings.processing_time_ms,
        create_time=_time(reply.create_time),
        generation_id=generation.id,
        user_message=to_message(user_message),
    )


def to_message(message: Message) -> conversation_pb2.Message:
    """A message as the contract has it."""
    return conversation_pb2.Message(
        id=message.id,
        conversation_id=message.conversation_id,
        sequence=message.sequence,
        role=message.role,
        text=message.text,
        status=message.status,
        incomplete_reason=message.incomplete_reason or "",
        model=message.model or "",
        usage=None if message.usage is None else to_usage(message.usage),
        timings=None if message.timings is None else _timings(message.timings),
        generation_id=message.generation_id or "",
        metadata=message.metadata,
        create_time=_time(message.create_time),
    )


def to_conversation(conversation: Conversation) -> conversation_pb2.Conversation:
    """A conversation as the contract has it."""
    last = conversation.last_message_time
    return conversation_pb2.Conversation(
        id=conversation.id,
        title=conversation.title,
        message_count=conversation.message_count,
        last_message_time=None if last is None else _time(last),
        create_time=_time(conversation.create_time),
        update_time=_time(conversation.update_time),
    )


def to_usage(usage: Usage) -> conversation_pb2.Usage:
    """Tokens as the contract has them."""
    return conversation_pb2.Usage(
        input_tokens=usage.input_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def _timings(timings: Timings) -> conversation_pb2.Timings:
    return conversation_pb2.Timings(
        time_to_first_token_ms=timings.time_to_first_token_ms, processing_time_ms=timings.processing_time_ms
    )


def _time(value: dt.datetime) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(value)
    return stamp


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
