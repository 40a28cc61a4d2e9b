"""Every statement about messages for others than their user: for the model, and for memory.

Owns what the two are told; every reading is bounded and knows only the current version of a message. It writes nothing but
revisions, by which memory tells the newer of two.
"""

import asyncio
from typing import Final

import sqlalchemy as sa

from services.chat.record_store import owe_turns
from services.chat.records import ContextMessage, Image, Message
from services.chat.rows import message_columns, message_of
from services.chat.schema import conversations, generations, message_images, messages
from services.runtime.database import Database

_CONTEXT_MESSAGES: Final = 1000
_TURNS_READ_AT_ONCE: Final = 2


class MessageStore:
    """The messages in the database. Every method is one transaction.

    The readings of turns wait here for their turn, in order, and not at the connection pool, whose patience is short.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._gate = asyncio.Semaphore(_TURNS_READ_AT_ONCE)

    async def read_context(
        self, conversation_id: str, *, user_id: str, after: int, before: int, token_budget: int
    ) -> list[ContextMessage]:
        """The latest messages between two sequences (both excluded) within the budget, oldest first. At most 1,000.

        The first that exceeds it is among them, so that the reader sees where the budget ends. Empty ones are left out.
        Tokens are estimated as by `estimated_tokens` in context.py.
        """
        tokens = sa.func.char_length(messages.c.text) // 4 + 4
        latest = (
            sa.select(messages.c.sequence, messages.c.role, messages.c.text, messages.c.revision)
            .add_columns(tokens.label("tokens"))
            .add_columns(sa.func.sum(tokens).over(order_by=messages.c.sequence.desc()).label("total"))
            .where(
                messages.c.user_id == user_id,
                messages.c.conversation_id == conversation_id,
                messages.c.sequence > after,
                messages.c.sequence < before,
                messages.c.supersede_time.is_(None),
                messages.c.text != "",
            )
            .order_by(messages.c.sequence.desc())
            .limit(_CONTEXT_MESSAGES)
            .subquery()
        )
        statement = sa.select(latest).where(latest.c.total - latest.c.tokens < token_budget).order_by(latest.c.sequence)
        async with self._gate, self._database.transaction(user_id=user_id) as connection:
            rows = (await connection.execute(statement)).all()
        return [ContextMessage(row.sequence, row.role, row.text, row.revision) for row in rows]

    async def read_images(self, message_id: str, *, user_id: str) -> list[Image]:
        """The images of a message, in their order, with their data."""
        image = message_images.c
        statement = (
            sa.select(image.url, image.media_type, image.data)
            .where(image.message_id == message_id, image.user_id == user_id)
            .order_by(image.position)
        )
        async with self._gate, self._database.transaction(user_id=user_id) as connection:
            return [Image(row.url, row.media_type, row.data) for row in await connection.execute(statement)]

    async def read_rewritten(
        self, conversation_id: str, *, user_id: str, first: int, last: int
    ) -> list[tuple[int, int, bool]]:
        """Which messages between two sequences were written anew: sequence, revision, and whether there is no text."""
        statement = sa.select(messages.c.sequence, messages.c.revision, messages.c.text == "").where(
            messages.c.user_id == user_id,
            messages.c.conversation_id == conversation_id,
            messages.c.sequence.between(first, last),
            messages.c.supersede_time.is_(None),
            messages.c.revision > 0,
        )
        async with self._gate, self._database.transaction(user_id=user_id) as connection:
            rows = (await connection.execute(statement.order_by(messages.c.sequence))).all()
        return [(sequence, revision, is_empty) for sequence, revision, is_empty in rows]

    async def revise_from(self, conversation_id: str, *, user_id: str, sequence: int) -> None:
        """Makes the messages from a sequence on newer than whatever memory has forgotten of them, and owes them to it.

        What is still being written is owed at its end.
        """
        lock = sa.select(conversations.c.id).where(conversations.c.id == conversation_id).with_for_update(key_share=True)
        revised = (
            messages.update()
            .where(
                messages.c.conversation_id == conversation_id,
                messages.c.user_id == user_id,
                messages.c.sequence >= sequence,
                messages.c.supersede_time.is_(None),
            )
            .values(revision=messages.c.revision + 1)
            .returning(messages.c.role, messages.c.status)
        )
        async with self._database.transaction(user_id=user_id) as connection:
            # The conversation first, as all who write in it: no deadlock.
            await connection.execute(lock)
            rows = (await connection.execute(revised)).all()
            if any(row.role == "assistant" and row.status != "generating" for row in rows):
                await owe_turns(connection, conversation_id, first_sequence=sequence)

    async def read_recordable(self, conversation_id: str, *, last_sequence: int) -> tuple[str, list[Message]] | None:
        """The user and the messages of the turn that ends at a sequence, for memory; None when they are gone.

        A reply that is being written again is left out: its end is recorded by itself. The first turn comes with the
        messages that the conversation began with. None as well for a turn that memory is not to know.
        """
        first = sa.func.coalesce(
            sa.select(sa.func.max(messages.c.sequence))
            .where(
                messages.c.conversation_id == conversation_id,
                messages.c.generation_id.is_not(None),
                messages.c.sequence < last_sequence,
                messages.c.supersede_time.is_(None),
            )
            .scalar_subquery(),
            0,
        )
        statement = (
            sa.select(*message_columns())
            .where(
                messages.c.conversation_id == conversation_id,
                messages.c.sequence > first,
                messages.c.sequence <= last_sequence,
                messages.c.supersede_time.is_(None),
                messages.c.status != "generating",
                ~_is_private_turn(conversation_id, last_sequence),
            )
            .order_by(messages.c.sequence)
        )
        async with self._database.service_transaction() as connection:
            rows = (await connection.execute(statement)).mappings().all()
        return (rows[0]["user_id"], [message_of(row) for row in rows]) if rows else None


_reply = messages.alias("reply")
_PRIVATE_REPLIES: Final = (
    sa.select(generations.c.id)
    .join(_reply, _reply.c.generation_id == generations.c.id)
    .where(_reply.c.supersede_time.is_(None), generations.c.options["memory_enabled"].astext == "false")
)


def _is_private_turn(conversation_id: str, last_sequence: int) -> sa.ColumnElement[bool]:
    """Whether the turn that ends at a sequence was answered without memory."""
    reply = _PRIVATE_REPLIES.where(_reply.c.conversation_id == conversation_id, _reply.c.sequence == last_sequence)
    return reply.correlate(None).exists()
