"""Every statement that reads messages for others than their user: for the model, and for memory.

Owns the two readings; both are bounded. It writes nothing.
"""

from typing import Final

import sqlalchemy as sa

from services.chat.records import ContextMessage, Message
from services.chat.rows import message_of
from services.chat.schema import messages
from services.runtime.database import Database

_CONTEXT_MESSAGES: Final = 1000


class MessageStore:
    """The messages in the database. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
                messages.c.text != "",
            )
            .order_by(messages.c.sequence.desc())
            .limit(_CONTEXT_MESSAGES)
            .subquery()
        )
        statement = sa.select(latest).where(latest.c.total - latest.c.tokens < token_budget).order_by(latest.c.sequence)
        async with self._database.transaction(user_id=user_id) as connection:
            rows = (await connection.execute(statement)).all()
        return [ContextMessage(row.sequence, row.role, row.text, row.revision) for row in rows]

    async def read_recordable(self, conversation_id: str, *, last_sequence: int) -> tuple[str, list[Message]] | None:
        """The user and the messages of the turn that ends at a sequence, for memory; None when they are gone.

        A reply that is being written again is left out: its end is recorded by itself. The first turn comes with the
        messages that the conversation began with.
        """
        first = sa.func.coalesce(
            sa.select(sa.func.max(messages.c.sequence))
            .where(
                messages.c.conversation_id == conversation_id,
                messages.c.generation_id.is_not(None),
                messages.c.sequence < last_sequence,
            )
            .scalar_subquery(),
            0,
        )
        statement = (
            sa.select(*messages.c)
            .where(
                messages.c.conversation_id == conversation_id,
                messages.c.sequence > first,
                messages.c.sequence <= last_sequence,
                messages.c.status != "generating",
            )
            .order_by(messages.c.sequence)
        )
        async with self._database.service_transaction() as connection:
            rows = (await connection.execute(statement)).mappings().all()
        return (rows[0]["user_id"], [message_of(row) for row in rows]) if rows else None
