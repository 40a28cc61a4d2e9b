"""What is owed, in Postgres: one row for a piece of work, however often it was asked for.

Owns claiming and settling. Invariants: work is owed in the transaction of its cause; it stays owed until what was done is
confirmed, whoever dies meanwhile; what is owed anew while it is being done is done again; rows hold ids only. The work
itself is done at least once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database

Task = Literal["embed", "extract", "summarize", "portray", "expire", "index"]

# What waits already keeps its time: talk that goes on does not put it off for ever. What is being done had its time: what
# comes meanwhile waits for more like any other. By the order of the keys, so that two
# that owe the same never wait for each other in a ring.
_OWE: Final = sa.text(
    "insert into upkeep (user_id, scope_id, task, due_time)"
    " select user_id, scope_id, task, now() + make_interval(secs => delay_seconds)"
    " from unnest(cast(:user_ids as uuid[]), cast(:scope_ids as uuid[])) as owed (user_id, scope_id)"
    " cross join unnest(cast(:tasks as text[]), cast(:delays as double precision[])) as due (task, delay_seconds)"
    " order by user_id, scope_id, task"
    " on conflict (user_id, scope_id, task) do update set revision = upkeep.revision + 1,"
    " due_time = case when upkeep.due_time <= now() and upkeep.claim_until > now() then excluded.due_time"
    " else least(upkeep.due_time, excluded.due_time) end"
)
_SET_DUE: Final = sa.text(
    "insert into upkeep (user_id, scope_id, task, due_time) values (cast(:user_id as uuid), cast(:scope_id as uuid), :task,"
    " now() + make_interval(secs => :delay_seconds)) on conflict (user_id, scope_id, task) do update"
    " set revision = upkeep.revision + 1, due_time = excluded.due_time"
)
# By the place of the rows, which stay where they are while they are held: by their keys, a long queue would be read whole.
_CLAIM: Final = sa.text(
    "update upkeep set claim_until = now() + make_interval(secs => :lease_seconds) from ("
    " select ctid from upkeep where task = :task and due_time <= now()"
    " and (claim_until is null or claim_until < now()) order by due_time limit :most for update skip locked) due"
    " where upkeep.ctid = due.ctid"
    " returning cast(upkeep.user_id as text), cast(upkeep.scope_id as text), upkeep.task, upkeep.tries, upkeep.revision"
)
# Held in the order of their keys, like those that are owed, so that nobody waits in a ring.
_OF: Final = (
    " from (select upkeep.user_id, upkeep.scope_id, upkeep.task, told.revision from unnest(cast(:user_ids as uuid[]),"
    " cast(:scope_ids as uuid[]), cast(:revisions as bigint[])) as told (user_id, scope_id, revision)"
    " join upkeep on upkeep.user_id = told.user_id and upkeep.scope_id = told.scope_id and upkeep.task = :task"
    " order by upkeep.user_id, upkeep.scope_id for update of upkeep) done"
    " where upkeep.user_id = done.user_id and upkeep.scope_id = done.scope_id and upkeep.task = done.task"
)
_SETTLE: Final = sa.text(f"delete from upkeep using {_OF.removeprefix(' from ')} and upkeep.revision = done.revision")  # noqa: S608 - of constants
_RENEW: Final = sa.text("update upkeep set claim_until = now() + make_interval(secs => :lease_seconds)" + _OF)  # noqa: S608 - of constants
# What was owed anew meanwhile is due as it was said then.
_RELEASE: Final = sa.text("update upkeep set claim_until = null, tries = 0" + _OF)  # noqa: S608 - of constants
_POSTPONE: Final = sa.text(
    "update upkeep set claim_until = null, tries = tries + :tries,"  # noqa: S608 - of constants
    " due_time = now() + make_interval(secs => :delay_seconds)" + _OF
)
_WAITING: Final = sa.text(
    "select task, count(*) as waiting, cast(extract(epoch from now() - min(due_time)) as double precision) as late_seconds"
    " from upkeep group by task"
)


@dataclass(frozen=True, slots=True)
class Owed:
    """A piece of work: `scope_id` is a conversation, or the user. `tries` counts those that failed by its own fault."""

    user_id: str
    scope_id: str
    task: str
    tries: int
    revision: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """How much of a task waits, and how long the first of it is overdue (negative: not due yet)."""

    task: str
    count: int
    late_seconds: float


async def owe(
    connection: AsyncConnection, task: Task, scopes: Iterable[tuple[str, str]], *, delay_seconds: float = 0.0
) -> None:
    """Notes, in the transaction of the cause, that work is owed for these (user id, scope id), due after `delay_seconds`.

    What waits already keeps the earlier time; what is being done is due anew after that delay.
    """
    await owe_all(connection, {task: delay_seconds}, scopes)


async def owe_all(connection: AsyncConnection, delays: Mapping[Task, float], scopes: Iterable[tuple[str, str]]) -> None:
    """Notes that tasks are owed for these scopes, each due after its delay in seconds; like `owe`, and one statement."""
    owed = list(dict.fromkeys(scopes))
    if owed and delays:
        values = {"user_ids": [user_id for user_id, _ in owed], "scope_ids": [scope_id for _, scope_id in owed]}
        await connection.execute(
            _OWE, {**values, "tasks": list(delays), "delays": [float(delay) for delay in delays.values()]}
        )


async def set_due(connection: AsyncConnection, task: Task, scope: tuple[str, str], *, delay_seconds: float) -> None:
    """Makes a task of a scope (user id, scope id) due after `delay_seconds` and not before, whether it is being done or not.

    For a chore that knows when it comes up next: `owe` would keep the time that has come already.
    """
    user_id, scope_id = scope
    values = {"user_id": user_id, "scope_id": scope_id, "task": task, "delay_seconds": max(0.0, delay_seconds)}
    await connection.execute(_SET_DUE, values)


class UpkeepStore:
    """What is owed, of all users. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, task: str, *, most: int, lease_seconds: float) -> Sequence[Owed]:
        """Takes up to `most` due pieces for this process alone, for `lease_seconds`; the longest due first."""
        values = {"task": task, "most": most, "lease_seconds": lease_seconds}
        async with self._database.service_transaction() as connection:
            rows = (await connection.execute(_CLAIM, values)).all()
        return [Owed(*row) for row in rows]

    async def renew(self, claimed: Sequence[Owed], *, lease_seconds: float) -> None:
        """Keeps what this process has claimed and still works on, for another `lease_seconds`."""
        await self._change(claimed, _RENEW, lease_seconds=lease_seconds)

    async def settle(self, done: Sequence[Owed]) -> None:
        """Strikes what was done; what was owed anew meanwhile stays, free for the next claim."""
        await self._change(done, _SETTLE, _RELEASE)

    async def postpone(self, owed: Sequence[Owed], *, delay_seconds: float, is_own_fault: bool) -> None:
        """Gives pieces back, due after `delay_seconds`."""
        await self._change(owed, _POSTPONE, delay_seconds=delay_seconds, tries=int(is_own_fault))

    async def waiting(self) -> Sequence[Waiting]:
        """What waits, by task."""
        async with self._database.service_transaction() as connection:
            rows = (await connection.execute(_WAITING)).all()
        return [Waiting(*row) for row in rows]

    async def _change(self, owed: Sequence[Owed], *statements: sa.TextClause, **values: Any) -> None:
        of = {
            "user_ids": [one.user_id for one in owed],
            "scope_ids": [one.scope_id for one in owed],
            "revisions": [one.revision for one in owed],
            "task": owed[0].task,
        }
        async with self._database.service_transaction() as connection:
            for statement in statements:
                await connection.execute(statement, of | values)
