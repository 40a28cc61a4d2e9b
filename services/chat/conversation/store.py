"""Every statement about conversations and the reading of their messages.

Owns the lists and their keys. Invariants: a list is one statement whatever its length; what is another user's is not
there; a deletion takes everything with it and defers the job that makes memory forget, in the same transaction.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from services.chat.generation_store import FORGET_CONVERSATION, defer_forgetting
from services.chat.log.entries import OUTLIVES_SECONDS
from services.chat.records import Conversation, Message
from services.chat.refusals import conversation_not_found, request_id_reused
from services.chat.rows import CONVERSATION_COLUMNS, conversation_of, message_columns, message_of
from services.chat.schema import conversations, generations, messages
from services.chat.settings import MOST_DEADLINE_SECONDS
from services.runtime.database import Database, interval
from services.runtime.jobs import Jobs

FULL_MESSAGES: Final = 1000
# Longer than any log is kept, also of a generation whose end Redis was not told: its greatest deadline, what the log
# outlives that by, and room for clocks.
_LOG_KEPT_SECONDS: Final = MOST_DEADLINE_SECONDS + OUTLIVES_SECONDS + 60


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a deletion took: how many messages, and the generations that were running or have ended just now."""

    message_count: int
    running_generation_ids: Sequence[str]
    ended_generation_ids: Sequence[str]
    """Those whose log may still be there, as that of the running ones is."""


class ConversationStore:
    """The conversations in the database. Every method is confined to one user and is one transaction."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        self._database = database
        self._jobs = jobs

    async def create_conversation(
        self, *, user_id: str, title: str, request_id: str | None, request_digest: bytes
    ) -> Conversation:
        """Creates an empty conversation, or returns the one that the request id created before.

        Raises AlreadyExists (REQUEST_ID_REUSED) when the id named another request.
        """
        values = {"user_id": user_id, "title": title, "is_titled_by_user": bool(title)}
        if request_id is not None:
            values |= {"request_id": request_id, "request_digest": request_digest}
        created = (
            insert(conversations)
            .values(values)
            .on_conflict_do_nothing(index_elements=["user_id", "request_id"], index_where=sa.text("request_id is not null"))
            .returning(*CONVERSATION_COLUMNS)
        )
        async with self._database.transaction(user_id=user_id) as connection:
            row = (await connection.execute(created)).mappings().one_or_none()
            if row is None:
                again = sa.select(*CONVERSATION_COLUMNS, conversations.c.request_digest).where(
                    conversations.c.user_id == user_id, conversations.c.request_id == request_id
                )
                row = (await connection.execute(again)).mappings().one()
                if row["request_digest"] != request_digest:
                    raise request_id_reused(request_id or "")
        return conversation_of(row)

    async def list_conversations(
        self, *, user_id: str, limit: int, after: tuple[dt.datetime, str] | None
    ) -> list[Conversation]:
        """The conversations after a key, the one with the latest message first."""
        table = conversations.c
        statement = (
            sa.select(*CONVERSATION_COLUMNS)
            .where(table.user_id == user_id)
            .order_by(table.latest_time.desc(), table.id.desc())
            .limit(limit)
        )
        if after is not None:
            key = sa.tuple_(sa.literal(after[0], table.latest_time.type), sa.literal(after[1], table.id.type))
            statement = statement.where(sa.tuple_(table.latest_time, table.id) < key)
        async with self._database.transaction(user_id=user_id) as connection:
            return [conversation_of(row) for row in (await connection.execute(statement)).mappings()]

    async def read_conversation(self, conversation_id: str, *, user_id: str) -> Conversation:
        """One conversation. Raises NotFound."""
        statement = sa.select(*CONVERSATION_COLUMNS).where(_is(conversation_id, user_id))
        return await self._one(statement, conversation_id, user_id)

    async def rename_conversation(self, conversation_id: str, *, user_id: str, title: str) -> Conversation:
        """Gives a conversation the user's own title, which nothing replaces later. Idempotent. Raises NotFound."""
        statement = (
            conversations.update()
            .where(_is(conversation_id, user_id))
            .values(title=title, is_titled_by_user=True, update_time=sa.func.now())
            .returning(*CONVERSATION_COLUMNS)
        )
        return await self._one(statement, conversation_id, user_id)

    async def _one(
        self, statement: sa.Select[tuple[object, ...]] | sa.sql.dml.ReturningUpdate[tuple[object, ...]],
        conversation_id: str, user_id: str,
    ) -> Conversation:  # fmt: skip
        async with self._database.transaction(user_id=user_id) as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
        if row is None:
            raise conversation_not_found(conversation_id)
        return conversation_of(row)

    async def delete_conversation(self, conversation_id: str, *, user_id: str) -> Deleted:
        """Deletes a conversation with everything in it and defers its forgetting by memory. Raises NotFound."""
        lock = sa.select(conversations.c.message_count).where(_is(conversation_id, user_id)).with_for_update()
        async with self._database.transaction(user_id=user_id) as connection:
            count = (await connection.execute(lock)).scalar_one_or_none()
            if count is None:
                raise conversation_not_found(conversation_id)
            found = (await connection.execute(with_logs([conversation_id], user_id=user_id))).all()
            await connection.execute(conversations.delete().where(_is(conversation_id, user_id)))
            await self._jobs.defer(connection, FORGET_CONVERSATION, conversation_id=conversation_id, user_id=user_id)
            # What the provider keeps of those that ended is forgotten already.
            running = [row for row in found if row.status == "running"]
            if kept := [response_id for row in running for response_id in row.provider_response_ids]:
                await defer_forgetting(self._jobs, connection, kept, user_id=user_id)
        return Deleted(count, [row.id for row in running], [row.id for row in found if row.status != "running"])

    async def list_messages(
        self, conversation_id: str, *, user_id: str, limit: int, after: tuple[int, int], with_superseded: bool
    ) -> list[Message]:
        """The messages after a sequence and version, in that order; each place once unless `with_superseded`.

        One statement, images included. Raises NotFound.
        """
        # Without the earlier versions a place that was passed does not come back when it is written anew.
        follows = messages.c.sequence > after[0]
        if with_superseded:
            follows = sa.tuple_(messages.c.sequence, messages.c.version) > sa.tuple_(*map(sa.literal, after))
        page = (
            sa.select(*message_columns())
            .where(_are_of(conversation_id, user_id), follows)
            .order_by(messages.c.sequence, messages.c.version)
            .limit(limit)
        )
        if not with_superseded:
            page = page.where(messages.c.supersede_time.is_(None))
        return await self._page_of(page.subquery(), conversation_id, user_id)

    async def _page_of(self, page: sa.Subquery, conversation_id: str, user_id: str) -> list[Message]:
        # One statement tells an empty conversation from none.
        statement = (
            sa.select(*page.c)
            .select_from(conversations.outerjoin(page, sa.true()))
            .where(_is(conversation_id, user_id))
            .order_by(page.c.sequence, page.c.version)
        )
        async with self._database.transaction(user_id=user_id) as connection:
            rows = (await connection.execute(statement)).mappings().all()
        if not rows:
            raise conversation_not_found(conversation_id)
        return [message_of(row) for row in rows if row["id"] is not None]

    async def read_full_conversation(
        self, conversation_id: str, *, user_id: str
    ) -> tuple[Conversation, list[Message], bool]:
        """A conversation, its latest messages in their order, and whether there are earlier ones. Raises NotFound."""
        one = sa.select(*CONVERSATION_COLUMNS).where(_is(conversation_id, user_id))
        latest = (
            sa.select(*message_columns())
            .where(_are_of(conversation_id, user_id), messages.c.supersede_time.is_(None))
            .order_by(messages.c.sequence.desc())
            .limit(FULL_MESSAGES + 1)
        )
        async with self._database.transaction(user_id=user_id) as connection:
            row = (await connection.execute(one)).mappings().one_or_none()
            if row is None:
                raise conversation_not_found(conversation_id)
            found = [message_of(each) for each in (await connection.execute(latest)).mappings()]
        return conversation_of(row), found[FULL_MESSAGES - 1 :: -1] if found else [], len(found) > FULL_MESSAGES


def with_logs(conversation_ids: Sequence[str], *, user_id: str) -> sa.Select[tuple[str, str, Sequence[str]]]:
    """The generations whose log may still be there: of others it has expired, and what the provider kept is forgotten."""
    lately = generations.c.end_time > sa.func.now() - interval(_LOG_KEPT_SECONDS)
    return sa.select(generations.c.id, generations.c.status, generations.c.provider_response_ids).where(
        generations.c.user_id == user_id,
        generations.c.conversation_id.in_(conversation_ids),
        (generations.c.status == "running") | lately,
    )


def _is(conversation_id: str, user_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(conversations.c.id == conversation_id, conversations.c.user_id == user_id)


def _are_of(conversation_id: str, user_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(messages.c.conversation_id == conversation_id, messages.c.user_id == user_id)
