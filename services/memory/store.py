"""The turns in Postgres. One public method is one transaction; its SQL stands in statements.py.

Owns the order of changes: whatever changes a conversation holds its row first, so that changes of one conversation
follow each other, in every process. Invariant: a change of the turns is a new version in the same transaction.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection

from parley.type.v1 import error_reason_pb2 as reasons
from services.memory import statements
from services.memory.cascades import drop_upkeep, follow_lost_turns
from services.memory.consequences import Consequences
from services.memory.context import Block
from services.memory.people import exclude_writers, hold_free_people, hold_people, is_erased
from services.memory.schema import forgotten_turns, purged_users, turns
from services.memory.turns import ConversationKey, Merge, Place, Turn, merge
from services.runtime.database import Database, violated_constraint
from services.runtime.errors import PURGED_USERS, Aborted, FieldViolation, InvalidArgument, ServiceError, invalid_request


@dataclass(frozen=True, slots=True)
class Head:
    """The state of a conversation: its version, and how far its turns are known without a hole."""

    version: int
    last_sequence: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a recorded turn changed. `previous` is None for a new conversation."""

    previous: Head | None
    head: Head
    accepted: Sequence[Turn]

    @property
    def appended(self) -> Sequence[Turn] | None:
        """The turns that the known part grew by, in order; None when it changed in another way than growing at its end."""
        before = self.previous.last_sequence if self.previous else 0
        if any(turn.sequence <= before for turn in self.accepted):
            return None
        new = sorted((t for t in self.accepted if t.sequence <= self.head.last_sequence), key=lambda t: t.sequence)
        return new if len(new) == self.head.last_sequence - before else None


@dataclass(frozen=True, slots=True)
class Eviction:
    """The working set may hold text from before `version` that must go."""

    key: ConversationKey
    version: int


class TurnStore:
    """What is remembered, for every user; each method acts for the user of its key.

    `concurrency`: connections that are kept for looking at the state of conversations.
    """

    def __init__(self, database: Database, consequences: Consequences, *, concurrency: int) -> None:
        self._database = database
        self._consequences = consequences
        # What every context waits for first.
        self._lane = database.lane(size=concurrency)

    async def head(self, key: ConversationKey) -> Head | None:
        """The state of a conversation; None when it is unknown or deleted. One statement."""
        async with self._lane.transaction(user_id=key.user_id) as transaction:
            row = await transaction.fetch_one(statements.HEAD, statements.identity(key))
        return None if row is None else Head(*row)

    async def latest(self, key: ConversationKey, *, most_messages: int, most_tokens: int) -> tuple[Head, Block] | None:
        """The turns with text among the last `most_messages`, up to `most_tokens`, and the state that they are of.

        None when the conversation is unknown or deleted. One statement, so that turns and version are of one moment.
        """
        statement = statements.latest(key, most_messages=most_messages, most_tokens=most_tokens)
        async with self._database.transaction(user_id=key.user_id) as connection:
            rows = (await connection.execute(statement)).all()
        if not rows:
            return None
        head = Head(rows[0].version, rows[0].last_sequence)
        return head, _block(rows, lowest=max(1, head.last_sequence - most_messages + 1))

    async def record(
        self, told: Mapping[ConversationKey, Sequence[Turn]], *, user_id: str | None, skip_busy: bool = False
    ) -> dict[ConversationKey, Recorded | ServiceError | None]:
        """Records turns of conversations, all of one user or, without a user, of several; returns what each changed.

        Idempotent, in any order, at once from several processes: see turns.merge. None for a conversation that was
        deleted. Messages from before an erasure are dropped. Where a message belongs to another conversation or another
        place, nothing of its conversation is recorded: InvalidArgument stands in its place. The statements are as many for
        one conversation as for many. None also where the user was purged.

        With `skip_busy` a user whose memories another transaction is changing is not waited for: Aborted stands in the place
        of what they said.
        """
        try:
            return await self._record(told, user_id=user_id, skip_busy=skip_busy)
        except exc.IntegrityError as error:
            if violated_constraint(error) != PURGED_USERS:
                raise
        purged = await self._purged({key.user_id for key in told})
        others = {key: turns_of for key, turns_of in told.items() if key.user_id not in purged}
        results: dict[ConversationKey, Recorded | ServiceError | None] = dict.fromkeys(told)
        return results | (await self._record(others, user_id=user_id, skip_busy=skip_busy) if others else {})

    async def _purged(self, user_ids: Collection[str]) -> Collection[str]:
        query = sa.select(purged_users.c.user_id).where(purged_users.c.user_id.in_(list(user_ids)))
        async with self._database.service_transaction() as connection:
            return set((await connection.execute(query)).scalars())

    async def _record(
        self, told: Mapping[ConversationKey, Sequence[Turn]], *, user_id: str | None, skip_busy: bool
    ) -> dict[ConversationKey, Recorded | ServiceError | None]:
        database = self._database
        whose = database.service_transaction() if user_id is None else database.transaction(user_id=user_id)
        async with whose as connection:
            hold = hold_free_people if skip_busy else hold_people
            erased = await hold(connection, sorted({key.user_id for key in told}))
            locked = await _locked(connection, [key for key in told if key.user_id in erased])
            changes = await _merged(connection, {key: _not_erased(told[key], erased, row) for key, row in locked.items()})
            await _forget(connection, changes)
            lengths = await _written(connection, changes)
            merges = {key: change for key, change in changes.items() if isinstance(change, Merge)}
            extracted = {key: row.extracted_sequence for key, row in locked.items()}
            await self._consequences.of_recorded(connection, merges, extracted)
        results: dict[ConversationKey, Recorded | ServiceError | None]
        results = {key: None if key.user_id in erased else _busy() for key in told}
        for key, change in changes.items():
            results[key] = _recorded(locked[key], change, lengths.get(key)) if isinstance(change, Merge) else change
        return results

    async def delete_conversation(self, key: ConversationKey) -> tuple[int, Eviction]:
        """Deletes every turn, and counts them; leaves a tombstone without text, also for a conversation never heard of.

        What was made of them goes too, see cascades.py. Idempotent. The eviction that it returns is owed until `settle`.
        """
        async with self._database.transaction(user_id=key.user_id) as connection:
            await exclude_writers(connection, key.user_id)
            version = (await connection.execute(statements.bury(key))).scalar_one()
            gone = await connection.execute(sa.delete(turns).where(statements.is_of(turns, key)))
            await connection.execute(sa.delete(forgotten_turns).where(statements.is_of(forgotten_turns, key)))
            await follow_lost_turns(connection, key.user_id, {key.conversation_id: 0}, whole=True)
            await drop_upkeep(connection, key.user_id, [key.conversation_id])
            await connection.execute(statements.owe_eviction(key, version))
        return gone.rowcount, Eviction(key, version)

    async def delete_end(self, key: ConversationKey, *, from_sequence: int) -> tuple[int, Eviction] | None:
        """Deletes the turns from `from_sequence` on, and counts them. Idempotent. None when unknown or deleted.

        What was made of them goes too, see cascades.py. The eviction that it returns is owed until `settle`.
        """
        async with self._database.transaction(user_id=key.user_id) as connection:
            await exclude_writers(connection, key.user_id)
            version = (await connection.execute(statements.shorten(key, from_sequence))).scalar_one_or_none()
            if version is None:
                return None
            gone = (await connection.execute(statements.edit_away(key, from_sequence))).scalar_one()
            await follow_lost_turns(connection, key.user_id, {key.conversation_id: from_sequence}, whole=False)
            await connection.execute(statements.owe_eviction(key, version))
        return gone, Eviction(key, version)

    async def owed_evictions(self, limit: int) -> Sequence[Eviction]:
        """The evictions, of all users, that are not settled; the oldest first."""
        async with self._database.service_transaction() as connection:
            rows = (await connection.execute(statements.owed_evictions(limit))).all()
        return [Eviction(ConversationKey(row.user_id, row.conversation_id), row.version) for row in rows]

    async def settle(self, evictions: Sequence[Eviction]) -> None:
        """Notes that the working set has forgotten. Idempotent; a later eviction of the same conversation stays owed."""
        values = statements.of_conversations(eviction.key for eviction in evictions)
        users, database = set(values["user_ids"]), self._database
        whose = database.transaction(user_id=users.pop()) if len(users) == 1 else database.service_transaction()
        async with whose as connection:
            await connection.execute(
                statements.SETTLE_EVICTIONS, values | {"versions": [eviction.version for eviction in evictions]}
            )


def _block(rows: Sequence[sa.Row[Any]], *, lowest: int) -> Block:
    newest_first = [_turn(row) for row in rows if row.body is not None]
    oldest = rows[-1]
    if oldest.message_id is None or oldest.body is not None:
        return Block(lowest, 0, newest_first)
    return Block(oldest.sequence + 1, oldest.token_count, newest_first)


def _turn(row: sa.Row[Any]) -> Turn:
    return Turn(
        message_id=row.message_id,
        sequence=row.sequence,
        role=row.role,
        text=row.body,
        revision=row.revision,
        create_time=row.create_time,
        token_count=row.token_count,
    )


async def _locked(connection: AsyncConnection, told: Iterable[ConversationKey]) -> dict[ConversationKey, sa.Row[Any]]:
    rows = await connection.execute(statements.LOCK, statements.of_conversations(told))
    return {ConversationKey(row.user_id, row.conversation_id): row for row in rows}


def _not_erased(told: Sequence[Turn], erased: Mapping[str, datetime | None], locked: sa.Row[Any]) -> list[Turn]:
    return [turn for turn in told if not is_erased(turn.create_time, erased[locked.user_id], locked.erase_time)]


async def _merged(
    connection: AsyncConnection, told: Mapping[ConversationKey, Sequence[Turn]]
) -> dict[ConversationKey, Merge | ServiceError]:
    pairs = [(key, turn) for key, turns_of in told.items() for turn in turns_of]
    found: dict[ConversationKey, list[sa.Row[Any]]] = {key: [] for key in told}
    for row in await connection.execute(statements.PLACES, statements.of_messages(pairs)) if pairs else ():
        found[ConversationKey(row.user_id, row.conversation_id)].append(row)
    return {key: _change(turns_of, found[key]) for key, turns_of in told.items()}


def _change(told: Sequence[Turn], rows: Sequence[sa.Row[Any]]) -> Merge | ServiceError:
    if not all(row.is_of_conversation for row in rows):
        return _elsewhere()
    known = [Place(row.message_id, row.sequence, row.revision, row.create_time) for row in rows if row.sequence]
    try:
        return merge(told, known=known, forgotten={row.message_id: row.revision for row in rows if not row.sequence})
    except InvalidArgument as error:
        return error


async def _forget(connection: AsyncConnection, changes: Mapping[ConversationKey, Merge | ServiceError]) -> None:
    """Rarely anything: what an edit has put in the place of something else."""
    for key, change in changes.items():
        if isinstance(change, Merge) and change.displaced:
            await connection.execute(statements.displace(key, change.displaced))
        if isinstance(change, Merge) and change.forgotten:
            rows = [statements.forgotten_row(key, *message) for message in change.forgotten.items()]
            await connection.execute(statements.note_forgotten(), rows)
        if isinstance(change, Merge) and change.displaced:
            first = min(turn.sequence for turn in change.accepted)
            await follow_lost_turns(connection, key.user_id, {key.conversation_id: first}, whole=False)


async def _written(
    connection: AsyncConnection, changes: Mapping[ConversationKey, Merge | ServiceError]
) -> dict[ConversationKey, int]:
    """How far the conversations that got something new are known now."""
    news = [(key, turn) for key, change in changes.items() if isinstance(change, Merge) for turn in change.accepted]
    if not news:
        return {}
    written = await connection.execute(statements.WRITE, statements.of_turns(news))
    if written.rowcount != len(news):
        # Told of at once under two conversations, one of them by another call.
        raise _elsewhere()
    keys = dict.fromkeys(key for key, _ in news)
    rows = await connection.execute(statements.EXTEND, statements.of_conversations(keys))
    return {ConversationKey(row.user_id, row.conversation_id): row.last_sequence for row in rows}


def _recorded(locked: sa.Row[Any], change: Merge, last_sequence: int | None) -> Recorded:
    previous = None if locked.old_version is None else Head(locked.old_version, locked.last_sequence)
    return Recorded(previous, Head(locked.version, last_sequence or locked.last_sequence), change.accepted)


def _busy() -> ServiceError:
    return Aborted("What is remembered of this user is being changed. Repeat the call.", reasons.ERROR_REASON_CONFLICT)


def _elsewhere() -> ServiceError:
    problem = "a message belongs to another conversation: give each message its own id"
    return invalid_request([FieldViolation("messages.message_id", problem)])
