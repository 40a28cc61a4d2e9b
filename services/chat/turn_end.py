"""The statement that ends a turn, and what it is given.

Owns one statement for all that the end of a turn writes: the conversation, the generation, the reply, what memory is owed
and what the reply cost. Invariant: it returns no row when the generation is not its owner's in its latest epoch any more;
the transaction must then be rolled back.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.record_store import OWED, owed_values
from services.chat.records import Failure, Message, Timings, Told, Turn, Usage
from services.chat.rows import stored_citations, stored_parts
from services.chat.usage.settlement import SETTLED, settlement_values
from services.runtime.errors import reason_name

_CANCELLED: Final = reason_name(reasons.ERROR_REASON_GENERATION_CANCELLED)
# `started`; the terminal event is not among them.
_SILENT_EVENTS: Final = 1

# The conversation first, as a deletion locks it first: no deadlock between the two. Each waits for the one before.
_FINISH: Final = (
    "with touched as (update conversations set last_message_time = now(), update_time = now(),"  # noqa: S608 - constants
    "  is_title_asked = is_title_asked or :asks_title"
    "  where id = cast(:conversation_id as uuid) and user_id = cast(:user_id as uuid)"
    "  returning id, user_id, :asks_title and not old.is_title_asked and not is_titled_by_user as needs_title),"
    " ended as (update generations set status = :status, end_time = now(), reason = :reason, error = :error,"
    "  error_metadata = cast(:error_metadata as jsonb), retry_delay_seconds = :retry_delay_seconds,"
    "  items = case when :keeps_items then items else '[]' end, degraded = cast(:degraded as text[]),"
    "  event_lengths = cast(:event_lengths as int[]), other_events = cast(:other_events as bytea[]),"
    "  last_sequence = :last_sequence, sealed_secrets = null"
    "  where id = cast(:generation_id as uuid) and user_id = cast(:user_id as uuid) and status = 'running'"
    "  and owner = :owner and epoch = :epoch and exists (select from touched) returning id), "
    + OWED
    + ", "
    + SETTLED
    + " update messages set text = :text, parts = cast(:parts as jsonb), citations = cast(:citations as jsonb),"
    "  memory_ids = cast(:memory_ids as uuid[]),"
    "  status = :reply_status, incomplete_reason = :incomplete_reason,"
    "  input_tokens = :reply_input_tokens, cached_tokens = :reply_cached_tokens,"
    "  output_tokens = :reply_output_tokens, reasoning_tokens = :reply_reasoning_tokens,"
    "  time_to_first_token_ms = :time_to_first_token_ms, processing_time_ms = :processing_time_ms"
    " where id = cast(:reply_id as uuid) and user_id = cast(:user_id as uuid)"
    " and generation_id = cast(:generation_id as uuid) and exists (select from ended)"
    " returning (select needs_title from touched), revision, version, supersede_time"
)


def as_driver_text(statement: str) -> bytes:
    """A statement with `:name` for its values in the form that the driver takes."""
    return re.sub(r"(?<!:):(\w+)", r"%(\1)s", statement).encode()


FINISH: Final = as_driver_text(_FINISH)
"""Returns whether a title is needed, and what `reply_of` takes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a generation ended: with a failure, cancelled, or well; and what was told of it until then."""

    text: str
    incomplete_reason: str | None
    usage: Usage | None
    timings: Timings
    degraded: Sequence[str]
    told: Told
    memory_ids: Sequence[str] = ()
    response_ids: Collection[str] = ()
    """Responses that the provider keeps for us."""
    failure: Failure | None = None
    is_cancelled: bool = False

    @property
    def has_succeeded(self) -> bool:
        """Whether there is a reply that is worth a title."""
        return self.failure is None and not self.is_cancelled and bool(self.text)

    @property
    def reply_reason(self) -> str | None:
        """Why the reply is incomplete; None where it is complete."""
        if self.is_cancelled:
            return _CANCELLED
        return self.failure.reason if self.failure else self.incomplete_reason


def finish_values(turn: Turn, outcome: Outcome, *, owner: str, asks_title: bool) -> dict[str, Any]:
    """What FINISH takes."""
    generation, has_output = turn.generation, len(outcome.told.event_lengths) > _SILENT_EVENTS
    return {
        "generation_id": generation.id,
        "user_id": generation.user_id,
        "conversation_id": generation.conversation_id,
        "reply_id": turn.reply.id,
        "model": generation.model,
        "owner": owner,
        "epoch": generation.epoch,
        "asks_title": asks_title,
        **_ended(outcome),
        **_told(outcome),
        **_written(outcome),
        **owed_values(turn.user_message.sequence),
        **settlement_values(outcome.usage, has_output=has_output),
    }


def reply_of(turn: Turn, outcome: Outcome, saved: Sequence[Any]) -> Message:
    """The reply as it was saved: `saved` are its revision, version and supersede time."""
    reason = outcome.reply_reason
    revision, version, supersede_time = saved
    return replace(
        turn.reply,
        text=outcome.text,
        parts=list(outcome.told.parts),
        citations=list(outcome.told.citations),
        memory_ids=list(outcome.memory_ids),
        status="incomplete" if reason else "complete",
        incomplete_reason=reason,
        usage=outcome.usage,
        timings=outcome.timings,
        revision=revision,
        version=version,
        supersede_time=supersede_time,
    )


def _ended(outcome: Outcome) -> dict[str, Any]:
    failure = outcome.failure
    status = "failed" if failure else "cancelled" if outcome.is_cancelled else "completed"
    return {
        "status": status,
        # Of a failed reply they stay: the next attempt goes on after them.
        "keeps_items": failure is not None,
        "reason": failure and failure.reason,
        "error": failure and failure.message,
        "error_metadata": _json(dict(failure.metadata)) if failure else "{}",
        "retry_delay_seconds": failure and failure.retry_delay_seconds,
    }


def _told(outcome: Outcome) -> dict[str, Any]:
    told = outcome.told
    return {
        "degraded": list(outcome.degraded),
        "event_lengths": list(told.event_lengths),
        "other_events": list(told.other_events),
        "last_sequence": told.last_sequence,
    }


def _written(outcome: Outcome) -> dict[str, Any]:
    reason, usage = outcome.reply_reason, outcome.usage
    return {
        "text": outcome.text,
        "parts": _json(stored_parts(outcome.told.parts)),
        "citations": _json(stored_citations(outcome.told.citations)),
        "memory_ids": list(outcome.memory_ids),
        "reply_status": "incomplete" if reason else "complete",
        "incomplete_reason": reason,
        "reply_input_tokens": usage and usage.input_tokens,
        "reply_cached_tokens": usage and usage.cached_tokens,
        "reply_output_tokens": usage and usage.output_tokens,
        "reply_reasoning_tokens": usage and usage.reasoning_tokens,
        "time_to_first_token_ms": outcome.timings.time_to_first_token_ms,
        "processing_time_ms": outcome.timings.processing_time_ms,
    }


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
