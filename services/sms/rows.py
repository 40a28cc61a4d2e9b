"""From rows of messages to records, and what transactions of several stores have in common."""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import violated_constraint
from services.sms.records import NewText, TextMessage
from services.sms.refusals import user_gone
from services.sms.schema import PURGE_GUARD, messages
from services.sms.segments import size_of

_NAMES: Final = (
    "id", "user_id", "direction", "kind", "phone_number", "text", "status", "error_code", "segments", "encoding",
    "answer", "in_reply_to", "conversation_id", "create_time", "update_time",
)  # fmt: skip
MESSAGE_COLUMNS: Final = tuple(messages.c[name] for name in _NAMES)
SEND_JOB: Final = "send_text"
"""Takes the `message_id` of an outbound message that is queued."""
FORGET_JOB: Final = "forget_text"
"""Takes the `provider_message_id` of a text of somebody who is gone."""


def message_of(row: sa.RowMapping) -> TextMessage:
    """The message in a row that holds MESSAGE_COLUMNS."""
    return TextMessage(**{name: row[name] for name in _NAMES})


def outbound_values(new: NewText) -> dict[str, Any]:
    """The columns of a message to be sent."""
    size = size_of(new.text)
    return {
        "user_id": new.user_id, "direction": "outbound", "kind": new.kind, "phone_number": new.phone_number,
        # A verification code stands only where it is being sent.
        "text": "" if new.kind == "code" else new.text, "segments": size.segments, "encoding": size.encoding,
        "status": "queued", "in_reply_to": new.in_reply_to, "conversation_id": new.conversation_id,
        "consent_epoch": new.consent_epoch,
    }  # fmt: skip


_LOCK: Final = sa.text("select pg_advisory_xact_lock(hashtextextended(:name, 0))")


async def lock(connection: AsyncConnection, *names: str) -> None:
    """Holds these names until the transaction ends, in this order."""
    for name in names:
        await connection.execute(_LOCK, {"name": name})


_SHARE_USER: Final = sa.text("select pg_advisory_xact_lock_shared(hashtextextended(:name, 0))")


async def share_user(connection: AsyncConnection, user_id: str) -> None:
    """Takes a user's lock, as whoever stores something of them does: before the rows that a purge deletes are locked."""
    await connection.execute(_SHARE_USER, {"name": f"parley user {user_id}"})


@contextlib.contextmanager
def for_living(user_id: str) -> Iterator[None]:
    """Raises NotFound (USER_NOT_FOUND) where something is to be stored for a user who was purged."""
    try:
        yield
    except IntegrityError as error:
        if violated_constraint(error) != PURGE_GUARD:
            raise
        raise user_gone(user_id) from None
