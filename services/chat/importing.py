"""Conversations of an earlier system, written as they were said: order, times, titles and counts are those of then.

A conversation is loaded in one transaction, however long it is, and is there as a whole or not at all. Memory is told of
what was said by the same mark that the end of a turn leaves (record_store.py), with the time of each message; when it is
told is the caller's to spread.
"""

import datetime as dt
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chat.record_store import owe_turns
from services.chat.records import title_of
from services.chat.schema import conversations, messages
from services.runtime.database import Database


@dataclass(frozen=True, slots=True)
class ImportedConversation:
    """A conversation of another system. `id` is always the same for the same one; without a title it gets one."""

    id: str
    title: str
    kind: Literal["written", "spoken"]
    create_time: dt.datetime
    update_time: dt.datetime


@dataclass(frozen=True, slots=True)
class ImportedMessage:
    """A message of another system. Tokens are known for both directions or not at all."""

    id: str
    role: Literal["user", "assistant"]
    text: str = field(repr=False)
    create_time: dt.datetime
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class Loading:
    """A conversation on its way in; its messages are added in their order, as many at once as the caller likes."""

    def __init__(self, connection: AsyncConnection, conversation: ImportedConversation, user_id: str) -> None:
        self._connection = connection
        self._conversation = conversation
        self._user_id = user_id
        self._title = conversation.title
        self._last_time: dt.datetime | None = None
        self.count = 0

    async def add(self, said: Sequence[ImportedMessage]) -> None:
        """Appends messages."""
        if not said:
            return
        self._title = self._title or next((title_of(one.text) for one in said if one.role == "user"), "")
        rows = [self._row(one, self.count + place) for place, one in enumerate(said, start=1)]
        await self._connection.execute(messages.insert(), rows)
        self.count += len(rows)
        latest = max(one.create_time for one in said)
        self._last_time = latest if self._last_time is None else max(latest, self._last_time)

    def _row(self, said: ImportedMessage, sequence: int) -> dict[str, Any]:
        is_counted = said.input_tokens is not None and said.output_tokens is not None
        return {
            "id": said.id,
            "user_id": self._user_id,
            "conversation_id": self._conversation.id,
            "sequence": sequence,
            "role": said.role,
            "text": said.text,
            "create_time": said.create_time,
            "model": said.model if said.role == "assistant" else None,
            "input_tokens": said.input_tokens if is_counted else None,
            "output_tokens": said.output_tokens if is_counted else None,
            "cached_tokens": 0 if is_counted else None,
            "reasoning_tokens": 0 if is_counted else None,
        }

    async def begin(self) -> bool:
        """False where the conversation is here already."""
        one = self._conversation
        values = {
            "id": one.id, "user_id": self._user_id, "title": one.title, "is_titled_by_user": bool(one.title),
            "kind": one.kind, "create_time": one.create_time, "update_time": one.update_time,
        }  # fmt: skip
        # Of any index: two imports of the same conversation would end in a deadlock over the one that is not named.
        adding = insert(conversations).values(values).on_conflict_do_nothing()
        return (await self._connection.execute(adding.returning(conversations.c.id))).scalar_one_or_none() is not None

    async def finish(self, *, remember_in_seconds: float | None) -> None:
        """Counts what was added, and marks it as owed to memory."""
        table = conversations.c
        counted = (
            update(conversations)
            .where(table.id == self._conversation.id, table.user_id == self._user_id)
            .values(message_count=self.count, last_message_time=self._last_time, title=self._title)
        )
        await self._connection.execute(counted)
        if remember_in_seconds is not None and self.count:
            await owe_turns(self._connection, self._conversation.id, first_sequence=1, own_seconds=remember_in_seconds)


class ConversationImport:
    """The way of other systems' conversations into chat's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def loading(
        self,
        conversation: ImportedConversation,
        *,
        user_id: str,
        remember_in_seconds: float | None,
        is_rehearsal: bool = False,
    ) -> AsyncIterator[Loading | None]:
        """A conversation to add messages to, stored when the block ends; None where it is here already. Idempotent.

        Memory may be told of it after `remember_in_seconds`, never with None. A rehearsal writes nothing in the end.
        """
        async with self._database.transaction(user_id=user_id) as connection:
            loading = Loading(connection, conversation, user_id)
            if await loading.begin():
                yield loading
                await loading.finish(remember_in_seconds=remember_in_seconds)
            else:
                yield None
            if is_rehearsal:
                await connection.rollback()
