"""From rows to records: the one place that knows which columns make which value."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import RowMapping
from sqlalchemy.dialects.postgresql import aggregate_order_by

from services.chat.records import (
    Citation,
    CodeRun,
    Conversation,
    Failure,
    Generation,
    Message,
    MessageImage,
    Part,
    Reasoning,
    TextLength,
    Timings,
    ToolCall,
    Turn,
    Usage,
)
from services.chat.schema import conversations, generations, message_images, messages

_user, _reply = messages.alias("said"), messages.alias("reply")


def _images(table: sa.FromClause) -> sa.ColumnElement[Any]:
    """The images of each message as JSON, without their data; null where there are none."""
    one = message_images.c
    shown = sa.func.jsonb_build_object(
        "url", one.url, "media_type", one.media_type, "size_bytes", sa.func.coalesce(sa.func.octet_length(one.data), 0)
    )
    images = (
        sa.select(sa.func.jsonb_agg(aggregate_order_by(shown, one.position)))
        .where(one.message_id == table.c.id)
        .correlate(table)
        .scalar_subquery()
    )
    return sa.case((table.c.role == "user", images)).label("images")


def message_columns(table: sa.FromClause = messages) -> list[sa.ColumnElement[Any]]:
    """What `message_of` reads of messages: no words for the search, but the images."""
    return [*(column for column in table.c if column.name != "words"), _images(table)]


CONVERSATION_COLUMNS = tuple(
    conversations.c[name]
    for name in ("id", "title", "message_count", "last_message_time", "create_time", "update_time", "latest_time")
)
# Large, and of use to few.
_READ_APART: Final = ("items", "event_lengths", "other_events", "superseded_text")
TURN = (
    sa.select(
        *(column.label(f"generation_{column.name}") for column in generations.c if column.name not in _READ_APART),
        (generations.c.lease_expire_time < sa.func.now()).label("generation_is_expired"),
        *(column.label(f"said_{column.name}") for column in message_columns(_user)),
        *(column.label(f"reply_{column.name}") for column in message_columns(_reply)),
    )
    .join(_user, _user.c.id == generations.c.user_message_id)
    .join(_reply, _reply.c.id == generations.c.reply_message_id)
)
"""Generations with their two messages, for `turn_of`."""


def conversation_of(row: RowMapping) -> Conversation:
    """A row of CONVERSATION_COLUMNS."""
    return Conversation(**{column.name: row[column.name] for column in CONVERSATION_COLUMNS})


def message_of(row: RowMapping, prefix: str = "") -> Message:
    """A row of `message_columns`, labelled with the prefix; without images where a statement reads none."""
    usage = None
    if row[f"{prefix}input_tokens"] is not None:
        usage = Usage(
            *(row[f"{prefix}{name}_tokens"] for name in ("input", "cached", "output", "reasoning")),
        )
    timings = None
    if row[f"{prefix}processing_time_ms"] is not None:
        timings = Timings(row[f"{prefix}time_to_first_token_ms"], row[f"{prefix}processing_time_ms"])
    plain = ("id", "conversation_id", "sequence", "role", "text", "status", "incomplete_reason", "model")
    rest = ("generation_id", "revision", "metadata", "create_time", "version", "supersede_time")
    return Message(
        **{name: row[prefix + name] for name in (*plain, *rest)},
        usage=usage,
        timings=timings,
        parts=[_part(stored) for stored in row[f"{prefix}parts"]],
        citations=[Citation(**stored) for stored in row[f"{prefix}citations"]],
        images=[MessageImage(**stored) for stored in row.get(f"{prefix}images") or ()],
        memory_ids=row[f"{prefix}memory_ids"],
    )


def message_values(message: Message, user_id: str) -> dict[str, Any]:
    """A message that has just begun, as a row to insert."""
    names = ("id", "conversation_id", "sequence", "role", "text", "status", "model", "generation_id", "metadata")
    rest = ("revision", "version", "create_time")
    return {name: getattr(message, name) for name in (*names, *rest)} | {"user_id": user_id}


_PARTS: Final[Mapping[str, Any]] = {"text": TextLength, "reasoning": Reasoning, "tool_call": ToolCall, "code": CodeRun}
_PART_NAMES: Final = {kind: name for name, kind in _PARTS.items()}


def _part(stored: Mapping[str, Any]) -> Part:
    values = dict(stored)
    part: Part = _PARTS[values.pop("type")](**values)
    return part


def stored_parts(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Parts as the column holds them."""
    return [{"type": _PART_NAMES[type(part)], **asdict(part)} for part in parts]


def stored_citations(citations: Sequence[Citation]) -> list[dict[str, Any]]:
    """Citations as the column holds them."""
    return [asdict(citation) for citation in citations]


def turn_of(row: RowMapping) -> Turn:
    """A row of TURN."""
    return Turn(_generation(row), message_of(row, "said_"), message_of(row, "reply_"))


def _generation(row: RowMapping) -> Generation:
    of = {name.removeprefix("generation_"): value for name, value in row.items() if name.startswith("generation_")}
    failure = None
    if of["reason"] is not None:
        failure = Failure(of["reason"], of["error"], of["error_metadata"], of["retry_delay_seconds"])
    plain = ("id", "user_id", "conversation_id", "user_message_id", "reply_message_id", "request_id", "request_digest")
    rest = ("attempt", "status", "is_expired", "model", "degraded", "create_time", "epoch", "options", "sealed_secrets")
    last = ("last_sequence", "end_time")
    return Generation(**{name: of[name] for name in (*plain, *rest, *last)}, failure=failure)
