"""The events of a generation as bytes: made once, whoever logs, stores or reads them.

Owns their form and their making again from what was saved. Invariant: the events of an ended generation are, byte for byte,
those that were told while it ran, with the same sequences.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from google.protobuf import duration_pb2

from parley.chat.v1 import chat_pb2
from services.chat.records import Citation, CodeRun, Failure, Message, ToolCall, Turn, Usage
from services.chat.responses import to_citation, to_code_run, to_message, to_tool_call, to_usage

Event = chat_pb2.CompletionEvent

HEARTBEAT: Final = Event(heartbeat=chat_pb2.Heartbeat()).SerializeToString()
MOST_SEQUENCE: Final = 2**31 - 1
"""Nothing can follow it: the number of the end of a reply of which nobody knows how much was told."""


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >> 7:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_LAST: Final = b"\x08" + _varint(MOST_SEQUENCE)
_VARINTS: Final = tuple(_varint(value) for value in range(4096))
# Up to here every length within a text event takes one byte.
_SHORT_BYTES: Final = 125


def text_event(sequence: int, text: str) -> bytes:
    """More text. Encoded by hand: a seventh of what the message objects cost, for the event that most events are."""
    data = text.encode()
    size = len(data)
    if size <= _SHORT_BYTES and sequence < 4096:  # noqa: PLR2004 - the size of the table
        return b"\x08%b\x1a%c\x0a%c%b" % (_VARINTS[sequence], size + 2, size, data)
    delta = b"\x0a" + _varint(size) + data
    return b"\x08" + _varint(sequence) + b"\x1a" + _varint(len(delta)) + delta


def _event(sequence: int, **kind: Any) -> bytes:
    return Event(sequence=sequence, **kind).SerializeToString(deterministic=True)


def started_event(turn: Turn, degraded: Sequence[str], *, is_resumable: bool, memory_ids: Sequence[str] = ()) -> bytes:
    """The first event of a generation."""
    generation = turn.generation
    started = chat_pb2.Started(
        generation_id=generation.id,
        conversation_id=generation.conversation_id,
        user_message_id=generation.user_message_id,
        message_id=generation.reply_message_id,
        model=generation.model,
        degraded=degraded,
        resumable=is_resumable,
        memory_ids=memory_ids,
    )
    return _event(1, started=started)


def reasoning_event(sequence: int, text: str) -> bytes:
    """More of what the model thinks."""
    return _event(sequence, reasoning_delta=chat_pb2.ReasoningDelta(text=text))


def citation_event(sequence: int, citation: Citation) -> bytes:
    """The reply cites something."""
    return _event(sequence, citation=to_citation(citation))


def call_started_event(sequence: int, call: ToolCall) -> bytes:
    """A tool was called."""
    return _event(sequence, tool_call_started=to_tool_call(call))


def call_finished_event(sequence: int, call: ToolCall) -> bytes:
    """The call has ended."""
    return _event(sequence, tool_call_finished=to_tool_call(call))


def code_event(sequence: int, run: CodeRun) -> bytes:
    """Code was run."""
    return _event(sequence, code_interpreter=to_code_run(run))


def degraded_event(sequence: int, parts: Sequence[str], *, is_resumable: bool) -> bytes:
    """From here on the reply does without something."""
    return _event(sequence, degraded=chat_pb2.Degraded(parts=parts, resumable=is_resumable))


def usage_event(sequence: int, usage: Usage) -> bytes:
    """What the reply cost."""
    return _event(sequence, usage=to_usage(usage))


def terminal_event(sequence: int, *, status: str, reply: Message | None, failure: Failure | None) -> bytes:
    """The end: of a generation that completed, failed or was cancelled. Without a reply when that could not be kept."""
    # An event says what was, whatever took the message's place since.
    message = None if reply is None else to_message(replace(reply, supersede_time=None))
    if failure is not None:
        failed = chat_pb2.Failed(reason=failure.reason, message=failure.message, partial_message=message)
        if failure.retry_delay_seconds is not None:
            failed.retry_delay.CopyFrom(_duration(failure.retry_delay_seconds))
        return _event(sequence, failed=failed)
    if status == "cancelled" or message is None:
        return _event(sequence, cancelled=chat_pb2.Cancelled(partial_message=message))
    return _event(sequence, completed=chat_pb2.Completed(message=message))


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration


@dataclass(frozen=True, slots=True)
class SavedEvents:
    """What was saved of the events of an ended generation; see the columns of the same names."""

    event_lengths: Sequence[int] | None
    other_events: Sequence[bytes] | None
    superseded_text: str | None


def saved_events(turn: Turn, saved: SavedEvents) -> list[bytes]:
    """Every event of an ended generation. Of one that was closed without its log: what its text makes."""
    generation = turn.generation
    if saved.event_lengths is None or saved.other_events is None:
        events = plain_events(turn, saved.superseded_text)
    else:
        text = turn.reply.text if saved.superseded_text is None else saved.superseded_text
        events = list(_told(saved.event_lengths, list(saved.other_events), text))
    if saved.superseded_text is not None and saved.other_events:
        return [*events, saved.other_events[-1]]
    is_last = generation.last_sequence == MOST_SEQUENCE
    return [*events, end_of(turn, MOST_SEQUENCE if is_last else len(events) + 1, generation.failure)]


def end_of(turn: Turn, sequence: int, failure: Failure | None) -> bytes:
    """The terminal event of an ended generation."""
    return terminal_event(sequence, status=turn.generation.status, reply=turn.reply, failure=failure)


def _told(lengths: Sequence[int], others: Sequence[bytes], text: str) -> Iterable[bytes]:
    place, rest = 0, iter(others)
    for sequence, length in enumerate(lengths, start=1):
        yield text_event(sequence, text[place : place + length]) if length else next(rest)
        place += length


def plain_events(turn: Turn, text: str | None = None) -> list[bytes]:
    """`started` and the text in one piece, for a reply of whose events nothing else is known."""
    memory_ids = turn.reply.memory_ids if text is None else ()
    events = [started_event(turn, turn.generation.degraded, is_resumable=False, memory_ids=memory_ids)]
    if written := turn.reply.text if text is None else text:
        events.append(text_event(len(events) + 1, written))
    if text is None and turn.reply.usage is not None:
        events.append(usage_event(len(events) + 1, turn.reply.usage))
    return events


def is_last_of_unknown(event: bytes) -> bool:
    """Whether this is the end of a reply of which nobody knows how much was told."""
    return event.startswith(_LAST)


def deleted_event(sequence: int) -> bytes:
    """The end of a generation whose conversation was deleted."""
    return terminal_event(sequence, status="cancelled", reply=None, failure=None)


Value = Any
"""The message in an event."""


def parsed(told: Iterable[bytes]) -> list[tuple[str, Value]]:
    """The kind and the value of each event."""
    messages = [Event.FromString(event) for event in told]
    kinds = [str(message.WhichOneof("event")) for message in messages]
    return [(kind, getattr(message, kind)) for kind, message in zip(kinds, messages, strict=True)]


def call_of(value: Value) -> ToolCall:
    """The call in an event."""
    return ToolCall(value.id, value.tool, value.server_label, value.arguments, value.status, value.result, value.error)


def code_of(value: Value) -> CodeRun:
    """The code that was run, in an event."""
    return CodeRun(value.id, value.code, value.output, value.status)
