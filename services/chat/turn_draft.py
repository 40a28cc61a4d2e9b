"""A turn as it is asked for, and what it refers to in the database.

Owns the look-ups before a turn begins: the attempt that its request id names, the spoken conversation that it goes on with,
whether another turn has come since. Invariant: what another call could change meanwhile is looked at under a lock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chat.records import Image, Turn
from services.chat.rows import TURN, turn_of
from services.chat.schema import conversations, generations, messages
from services.chat.versions import Replacement
from services.runtime.database import interval

_LOCK_SPOKEN: Final = sa.text("select pg_advisory_xact_lock(hashtext('parley spoken conversation'), hashtext(:user_id))")

ConversationKind = Literal["written", "spoken", "texted"]


@dataclass(frozen=True, slots=True)
class TurnDraft:
    """A turn to be: what is said (the last of `said` is the user's message) and what names it."""

    user_id: str
    conversation_id: str | None
    said: Sequence[tuple[str, str]]
    metadata: Mapping[str, str]
    request_id: str | None
    request_digest: bytes
    model: str
    options: Mapping[str, Any]
    """ReplyOptions.to_stored()."""
    sealed_secrets: bytes | None = None
    images: Sequence[Image] = ()
    """Images of the user's message."""
    replaces: Replacement | None = None
    """What this turn takes the place of; `said` is then what the user says anew, or nothing for a regeneration."""
    spoken_within_seconds: int | None = None
    """Said aloud, or texted: without a `conversation_id` it goes on with the last of its kind that was not silent longer."""
    kind: ConversationKind = "written"
    """Of the conversation that begins with it, or that it goes on with."""


async def latest_attempt(connection: AsyncConnection, draft: TurnDraft) -> Turn | None:
    """The latest attempt at the turn that the draft's request id names."""
    if draft.request_id is None:
        return None
    statement = (
        TURN.where(generations.c.user_id == draft.user_id, generations.c.request_id == draft.request_id)
        .order_by(generations.c.attempt.desc())
        .limit(1)
    )
    row = (await connection.execute(statement)).mappings().one_or_none()
    return None if row is None else turn_of(row)


async def is_latest(connection: AsyncConnection, turn: Turn) -> bool:
    """Whether no later turn follows this one or stands in its place. Locks the conversation, so that it stays so."""
    generation = turn.generation
    statement = (
        sa.select(conversations.c.message_count)
        .where(conversations.c.id == generation.conversation_id, conversations.c.user_id == generation.user_id)
        .with_for_update(key_share=True)
    )
    if (await connection.execute(statement)).scalar_one_or_none() != turn.reply.sequence:
        return False
    # Looked at under the lock, and not before it.
    current = sa.select(messages.c.supersede_time.is_(None)).where(
        messages.c.id == turn.reply.id, messages.c.user_id == generation.user_id
    )
    return bool((await connection.execute(current)).scalar_one_or_none())


async def placed(connection: AsyncConnection, draft: TurnDraft) -> TurnDraft:
    """The draft with the spoken or texted conversation that it goes on with, if there is one.

    Two utterances at once take turns from here to the end of their transactions, so that they do not both begin one.
    """
    if draft.spoken_within_seconds is None or draft.conversation_id is not None:
        return draft
    await connection.execute(_LOCK_SPOKEN, {"user_id": draft.user_id})
    table = conversations.c
    latest = (
        sa.select(table.id)
        .where(table.user_id == draft.user_id, table.kind == draft.kind)
        .where(table.latest_time >= sa.func.now() - interval(draft.spoken_within_seconds))
        .order_by(table.latest_time.desc())
        .limit(1)
    )
    return replace(draft, conversation_id=(await connection.execute(latest)).scalar_one_or_none())
