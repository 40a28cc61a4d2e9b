"""Every statement about titles that the model gives.

Owns the rule of whose title stands: the user's own always wins, also when it comes while the model is asked; and a title
made of words that were edited away meanwhile is not kept. Invariant: what the title cost is counted in the transaction that
keeps it.
"""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chat.records import Usage
from services.chat.schema import conversations, generations, messages
from services.chat.usage.settlement import settle
from services.runtime.database import Database

_MOST_CHARACTERS = 2_000


@dataclass(frozen=True, slots=True)
class Exchange:
    """What was said first and what was answered, each cut to 2,000 characters."""

    said: str
    answered: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What asking for a title cost, under an id of its own; `may_have_cost` where the provider did not say what it did."""

    id: str
    user_id: str
    model: str
    usage: Usage | None = None
    may_have_cost: bool = False


class TitleStore:
    """The titles in the database. Every method is confined to one user and is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read_exchange(self, generation_id: str, *, user_id: str) -> Exchange | None:
        """What a turn was about; None when it needs no title any more: it is gone, edited away, or the user gave one."""
        said, reply = messages.alias("said"), messages.alias("reply")
        statement = (
            sa.select(sa.func.left(said.c.text, _MOST_CHARACTERS), sa.func.left(reply.c.text, _MOST_CHARACTERS))
            .select_from(generations)
            .join(conversations, conversations.c.id == generations.c.conversation_id)
            .join(said, said.c.id == generations.c.user_message_id)
            .join(reply, reply.c.id == generations.c.reply_message_id)
            .where(
                generations.c.id == generation_id,
                generations.c.user_id == user_id,
                said.c.supersede_time.is_(None),
                conversations.c.is_titled_by_user.is_(False),
            )
        )
        async with self._database.transaction(user_id=user_id) as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else Exchange(*row)

    async def keep_title(self, generation_id: str, *, title: str, cost: Cost) -> None:
        """Gives the conversation of a turn its title, unless the user has given one; empty changes nothing."""
        about = (
            sa.select(generations.c.conversation_id)
            .join(messages, messages.c.id == generations.c.user_message_id)
            .where(generations.c.id == generation_id, messages.c.supersede_time.is_(None))
        )
        renamed = (
            conversations.update()
            .where(
                conversations.c.id.in_(about),
                conversations.c.user_id == cost.user_id,
                conversations.c.is_titled_by_user.is_(False),
            )
            .values(title=title)
        )
        async with self._database.transaction(user_id=cost.user_id) as connection:
            if title:
                await connection.execute(renamed)
            await _settle(connection, cost)

    async def count_failure(self, cost: Cost) -> None:
        """Counts what asking in vain cost, as far as it is known."""
        async with self._database.transaction(user_id=cost.user_id) as connection:
            await _settle(connection, cost)


async def _settle(connection: AsyncConnection, cost: Cost) -> None:
    await settle(
        connection, generation_id=cost.id, user_id=cost.user_id, model=cost.model, usage=cost.usage,
        has_output=cost.may_have_cost, replies=0,
    )  # fmt: skip
