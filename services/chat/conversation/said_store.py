"""What a user said in all conversations, with the replies: one statement, for the history that sms shows.

Invariant: a turn stands where the user spoke, and is there once, in its latest version.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from services.chat.records import Usage
from services.chat.schema import conversations, messages
from services.runtime.database import Database

_said, _reply = messages.alias("said"), messages.alias("reply")
_TOKENS: Final = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


@dataclass(frozen=True, slots=True)
class SaidTurn:
    """What the user said in a conversation, and the reply as far as there is one."""

    id: str
    conversation_id: str
    kind: str
    text: str = field(repr=False)
    create_time: dt.datetime
    reply_id: str | None
    reply: str | None = field(repr=False)
    status: str | None
    model: str | None
    usage: Usage | None


class SaidStore:
    """The turns in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read_turns(self, *, user_id: str, limit: int, before: tuple[dt.datetime, str] | None) -> Sequence[SaidTurn]:
        """The user's turns from before a time and id, the latest first. One statement, whatever its length."""
        is_answer = sa.and_(
            _reply.c.user_id == _said.c.user_id,
            _reply.c.conversation_id == _said.c.conversation_id,
            _reply.c.sequence == _said.c.sequence + 1,
            _reply.c.role == "assistant",
            _reply.c.supersede_time.is_(None),
        )
        statement = (
            sa.select(
                _said.c.id, _said.c.conversation_id, conversations.c.kind, _said.c.text, _said.c.create_time,
                _reply.c.id, _reply.c.text, _reply.c.status, _reply.c.model, *(_reply.c[name] for name in _TOKENS),
            )
            .join(conversations, conversations.c.id == _said.c.conversation_id)
            .outerjoin(_reply, is_answer)
            .where(_said.c.user_id == user_id, _said.c.role == "user", _said.c.supersede_time.is_(None))
            .order_by(_said.c.create_time.desc(), _said.c.id.desc())
            .limit(limit)
        )  # fmt: skip
        if before is not None:
            key = sa.tuple_(sa.literal(before[0], _said.c.create_time.type), sa.literal(before[1], _said.c.id.type))
            statement = statement.where(sa.tuple_(_said.c.create_time, _said.c.id) < key)
        async with self._database.transaction(user_id=user_id) as connection:
            rows = await connection.execute(statement)
            return [_turn(*row) for row in rows]


def _turn(*values: Any) -> SaidTurn:
    plain, tokens = values[: -len(_TOKENS)], values[-len(_TOKENS) :]
    turn = (*plain, None if tokens[0] is None else Usage(*tokens))
    return SaidTurn(*turn)
