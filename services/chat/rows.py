"""From rows to records: the one place that knows which columns make which value."""

import sqlalchemy as sa
from sqlalchemy import RowMapping

from services.chat.records import Conversation, Failure, Generation, Message, Timings, Turn, Usage
from services.chat.schema import conversations, generations, messages

_user, _reply = messages.alias("said"), messages.alias("reply")

CONVERSATION_COLUMNS = tuple(
    conversations.c[name]
    for name in ("id", "title", "message_count", "last_message_time", "create_time", "update_time", "latest_time")
)
TURN = (
    sa.select(
        *(column.label(f"generation_{column.name}") for column in generations.c),
        (generations.c.lease_expire_time < sa.func.now()).label("generation_is_expired"),
        *(column.label(f"said_{column.name}") for column in _user.c),
        *(column.label(f"reply_{column.name}") for column in _reply.c),
    )
    .join(_user, _user.c.id == generations.c.user_message_id)
    .join(_reply, _reply.c.id == generations.c.reply_message_id)
)
"""Generations with their two messages, for `turn_of`."""


def conversation_of(row: RowMapping) -> Conversation:
    """A row of CONVERSATION_COLUMNS."""
    return Conversation(**{column.name: row[column.name] for column in CONVERSATION_COLUMNS})


def message_of(row: RowMapping, prefix: str = "") -> Message:
    """A row of every column of messages, labelled with the prefix."""
    usage = None
    if row[f"{prefix}input_tokens"] is not None:
        usage = Usage(
            *(row[f"{prefix}{name}_tokens"] for name in ("input", "cached", "output", "reasoning")),
        )
    timings = None
    if row[f"{prefix}processing_time_ms"] is not None:
        timings = Timings(row[f"{prefix}time_to_first_token_ms"], row[f"{prefix}processing_time_ms"])
    plain = ("id", "conversation_id", "sequence", "role", "text", "status", "incomplete_reason", "model")
    rest = ("generation_id", "revision", "metadata", "create_time")
    return Message(**{name: row[prefix + name] for name in (*plain, *rest)}, usage=usage, timings=timings)


def turn_of(row: RowMapping) -> Turn:
    """A row of TURN."""
    return Turn(_generation(row), message_of(row, "said_"), message_of(row, "reply_"))


def _generation(row: RowMapping) -> Generation:
    of = {name.removeprefix("generation_"): value for name, value in row.items() if name.startswith("generation_")}
    failure = None
    if of["reason"] is not None:
        failure = Failure(of["reason"], of["error"], of["error_metadata"], of["retry_delay_seconds"])
    plain = ("id", "user_id", "conversation_id", "user_message_id", "reply_message_id", "request_id", "request_digest")
    rest = ("attempt", "status", "is_expired", "model", "degraded", "create_time")
    return Generation(**{name: of[name] for name in (*plain, *rest)}, failure=failure)
