"""Every statement about what memory has yet to be told.

Owns one row a conversation that memory is behind of. Invariants: it is there from the transaction that ended a turn until
memory has confirmed all that had ended by then; a conversation that somebody else is telling memory of is left to them for a
while, and never for ever. What is read at once is bounded, in messages a conversation and in bytes.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chat.unrecorded import OwedTurns, SaidMessage
from services.runtime.database import Database

_MESSAGES_AT_ONCE: Final = 100
# For so long the process that ended a turn tells memory of it by itself, or one that took it over; then any may.
_OWN_SECONDS: Final = 10
_CLAIM_SECONDS: Final = 30
# Memories of a user are mostly changed in milliseconds; what a user deletes or imports may take half a minute.
_BUSY_SECONDS: Final = 2

# From the end of the turn before on, since a conversation may have begun with several messages.
_OWED: Final = (
    "insert into unrecorded_turns (conversation_id, user_id, first_sequence, due_time)"
    " select id, user_id, coalesce((select sequence + 1 from messages where conversation_id = ended_in.id"
    "  and sequence < :first_sequence and generation_id is not null and supersede_time is null"
    "  order by sequence desc limit 1), 1), now() + make_interval(secs => :own_seconds) from {source}"
    " on conflict (conversation_id) do update set due_time = excluded.due_time,"
    " first_sequence = least(unrecorded_turns.first_sequence, excluded.first_sequence)"
)
_OWE: Final = sa.text(_OWED.format(source="conversations ended_in where id = :id"))
OWED: Final = f"owed as ({_OWED.format(source='touched ended_in where true')})"
"""The same as a part of a larger statement, in which `touched` is the row of the conversation; see `owed_values`."""
# Without a reply that is being written and what it answers, and without turns that were answered without memory. No message
# at all: one row without one. No more bytes than a call to memory takes.
_READ: Final = sa.text(
    """
    with owed as (
      select conversation_id, user_id, first_sequence, due_time from unrecorded_turns
      where conversation_id = any(cast(:ids as uuid[]))
    ), found as (
      select owed.*, said.*, count(said.id) over (partition by owed.conversation_id) as message_count,
        coalesce(sum(octet_length(said.text)) over (order by owed.conversation_id, said.sequence), 0) as bytes
      from owed left join lateral (
        select id, sequence, role, text, revision, create_time from messages said
        where conversation_id = owed.conversation_id and supersede_time is null
          and not exists (
            select from messages reply join generations on generations.id = reply.generation_id
            where reply.conversation_id = said.conversation_id and reply.sequence in (said.sequence, said.sequence + 1)
              and reply.role = 'assistant' and reply.supersede_time is null
              and generations.options ->> 'memory_enabled' = 'false')
          and sequence >= owed.first_sequence
          and sequence < coalesce((
            select min(sequence) - 1 from messages
            where conversation_id = owed.conversation_id and status = 'generating'), 2147483647)
        order by sequence limit :most
      ) said on true
    )
    select cast(conversation_id as text), cast(user_id as text), due_time, message_count,
      cast(id as text), sequence, role, text, revision, create_time
    from found where bytes - coalesce(octet_length(text), 0) < :most_bytes
    order by conversation_id, sequence
    """
)
# What has come due is claimed for a while, so that the replicas share it; rows that somebody changes right now are no news.
_CLAIM: Final = sa.text(
    "update unrecorded_turns set due_time = now() + make_interval(secs => :claim_seconds) where conversation_id in ("
    " select conversation_id from unrecorded_turns where due_time < now() order by due_time limit :most"
    " for update skip locked) returning cast(conversation_id as text)"
)
# Only in the state that was read: a turn that has ended meanwhile, or another's claim, has another time.
_SETTLE: Final = sa.text(
    "delete from unrecorded_turns using unnest(cast(:ids as uuid[]), cast(:due_times as timestamptz[]))"
    " as told (id, due_time) where conversation_id = told.id and unrecorded_turns.due_time = told.due_time"
)
_PUT_OFF: Final = sa.text(
    "update unrecorded_turns set due_time = now() + make_interval(secs => :busy_seconds)"
    " from unnest(cast(:ids as uuid[]), cast(:due_times as timestamptz[])) as told (id, due_time)"
    " where conversation_id = told.id and unrecorded_turns.due_time = told.due_time"
)
_ADVANCE: Final = sa.text(
    "update unrecorded_turns set first_sequence = :first_sequence, due_time = now() where conversation_id = :id"
    " and due_time = :due_time"
)


async def owe_turns(
    connection: AsyncConnection, conversation_id: str, *, first_sequence: int, own_seconds: float = _OWN_SECONDS
) -> None:
    """Notes, in the transaction that ends a turn, that memory has to be told of it: from this message of the user on.

    After `own_seconds` any process may tell it.
    """
    await connection.execute(_OWE, {"id": conversation_id} | owed_values(first_sequence) | {"own_seconds": own_seconds})


def owed_values(first_sequence: int) -> dict[str, object]:
    """What OWED takes."""
    return {"first_sequence": first_sequence, "own_seconds": _OWN_SECONDS}


class RecordStore:
    """What memory has yet to be told, in the database. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read_owed(self, conversation_ids: Sequence[str], *, most_bytes: int) -> list[OwedTurns]:
        """What memory has yet to be told of these conversations; not of those of which it knows all, or that are gone.

        Beyond `most_bytes` of text the rest is left for another time.
        """
        values = {"ids": list(conversation_ids), "most": _MESSAGES_AT_ONCE, "most_bytes": most_bytes}
        async with self._database.service_transaction() as connection:
            rows = (await connection.execute(_READ, values)).all()
        return [_owed(list(group)) for _, group in itertools.groupby(rows, lambda row: row.conversation_id)]

    async def claim_due(self, most: int) -> list[str]:
        """Takes over conversations that nobody has told memory of in time, the oldest first."""
        async with self._database.service_transaction() as connection:
            return list((await connection.execute(_CLAIM, {"claim_seconds": _CLAIM_SECONDS, "most": most})).scalars())

    async def settle(self, told: Sequence[OwedTurns]) -> None:
        """Notes what memory has confirmed. What has ended meanwhile, or was left for another time, stays owed."""
        whole = [one for one in told if one.is_all]
        async with self._database.service_transaction() as connection:
            if whole:
                await connection.execute(_SETTLE, _states(whole))
            for one in told:
                if not one.is_all:
                    await connection.execute(_ADVANCE, _advanced(one))

    async def put_off(self, busy: Sequence[OwedTurns]) -> None:
        """Leaves them to whoever sees in a few seconds that they are due. What has ended meanwhile keeps its own time."""
        async with self._database.service_transaction() as connection:
            await connection.execute(_PUT_OFF, _states(busy) | {"busy_seconds": _BUSY_SECONDS})


def _states(owed: Sequence[OwedTurns]) -> dict[str, Any]:
    """Conversations and the states of them that were read, as _SETTLE and _PUT_OFF take them."""
    return {"ids": [one.conversation_id for one in owed], "due_times": [one.due_time for one in owed]}


def _owed(rows: Sequence[sa.Row[Any]]) -> OwedTurns:
    head = rows[0]
    messages = [
        SaidMessage(row.id, row.sequence, row.role, row.text, row.revision, row.create_time) for row in rows if row.id
    ]
    is_all = len(messages) == head.message_count < _MESSAGES_AT_ONCE
    return OwedTurns(head.user_id, head.conversation_id, messages, head.due_time, is_all)


def _advanced(told: OwedTurns) -> dict[str, object]:
    following = told.messages[-1].sequence + 1
    return {"id": told.conversation_id, "due_time": told.due_time, "first_sequence": following}
