"""The row of a person: what every change of a user's memories goes past first.

Owns the agreement between those who write and those who forget. Whoever writes text of a user, or anything made of it,
holds the person's row before the transaction reads or writes anything else; whoever forgets excludes all of those. So a
writer has either committed before the forgetting begins, and what it wrote is deleted, or begins after it, sees what is
left, and learns until when everything was erased.

The modes: writers take FOR KEY SHARE, which they share with each other and with a change of the version (an update of no
key column), so that writers of one user neither wait for each other here nor deadlock when each raises the version at its
end; two that raise it follow each other. Forgetting takes FOR UPDATE, which only waits while it holds nothing else.
Whoever writes for many users at once may pass over those who are held alone, so that nobody waits for a stranger.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

_CLOCK: Final = "cast(extract(epoch from clock_timestamp()) * 1000000 as bigint)"
# In the order of the keys, so that two who hold the same people never wait for each other in a ring.
_HOLD: Final = sa.text(
    "select cast(user_id as text), erase_time from people where user_id = any(cast(:user_ids as uuid[]))"
    " order by user_id for key share"
)
# Who is known and was not to be had at once is busy.
_HOLD_FREE: Final = sa.text(
    "with held as (select user_id, erase_time from people where user_id = any(cast(:user_ids as uuid[]))"
    " order by user_id for key share skip locked)"
    " select cast(told.user_id as text), held.erase_time, held.user_id is not null as is_held,"
    " exists (select from people where people.user_id = told.user_id) as is_known"
    " from unnest(cast(:user_ids as uuid[])) as told (user_id) left join held using (user_id)"
)
_CREATE: Final = sa.text(
    f"insert into people (user_id, version) select user_id, {_CLOCK}"  # noqa: S608 - of constants
    " from unnest(cast(:user_ids as uuid[])) as told (user_id) order by user_id on conflict (user_id) do nothing"
    " returning cast(user_id as text)"
)
_EXCLUDE: Final = sa.text("select erase_time, facts_erase_time from people where user_id = :user_id for update")
_READ: Final = sa.text("select erase_time, facts_erase_time from people where user_id = :user_id")
_TOUCH: Final = sa.text(
    f"update people set version = greatest(version + 1, {_CLOCK})"  # noqa: S608 - of constants
    " from (select user_id from people where user_id = any(cast(:user_ids as uuid[])) order by user_id for no key update)"
    " as held where people.user_id = held.user_id"
)
_ERASE: Final = sa.text(
    "update people set"
    " erase_time = case when :messages then greatest(erase_time, clock_timestamp()) else erase_time end,"
    " facts_erase_time = case when :facts then greatest(facts_erase_time, clock_timestamp()) else facts_erase_time end"
    " where user_id = :user_id"
)


@dataclass(frozen=True, slots=True)
class Erased:
    """Until when everything that a user said, and every fact, was erased; None where that never was."""

    messages: datetime | None
    facts: datetime | None


async def hold_person(connection: AsyncConnection, user_id: str) -> datetime | None:
    """Holds the user's row for writing, creating it if need be; returns until when messages were erased.

    The first statement of whatever writes text of a user or what is made of it. Messages with a create_time up to the time
    that it returns are not taken. One round trip, but for a user who is new.
    """
    return (await hold_people(connection, [user_id]))[user_id]


async def hold_people(connection: AsyncConnection, user_ids: Collection[str]) -> dict[str, datetime | None]:
    """As `hold_person`, for many users at once, in the order of their ids. Ids are in lower case."""
    held = await _held(connection, user_ids)
    if missing := [user_id for user_id in user_ids if user_id not in held]:
        # A row of our own nobody else sees yet: it is held. The others were made by another at the same moment.
        created = (await connection.execute(_CREATE, {"user_ids": missing})).scalars().all()
        held |= dict.fromkeys(created)
        held |= await _held(connection, others) if (others := set(missing) - set(created)) else {}
    return held


async def hold_free_people(connection: AsyncConnection, user_ids: Collection[str]) -> dict[str, datetime | None]:
    """As `hold_people`, but leaves out those whom somebody excludes others from just now, instead of waiting.

    Who is new, and is being made known by another transaction, is waited for: that is once in the life of a user.
    """
    rows = (await connection.execute(_HOLD_FREE, {"user_ids": list(user_ids)})).all()
    held: dict[str, datetime | None] = {row.user_id: row.erase_time for row in rows if row.is_held}
    if missing := [row.user_id for row in rows if not row.is_held and not row.is_known]:
        created = (await connection.execute(_CREATE, {"user_ids": missing})).scalars()
        held |= dict.fromkeys(created)
    return held


async def _held(connection: AsyncConnection, user_ids: Collection[str]) -> dict[str, datetime | None]:
    rows = await connection.execute(_HOLD, {"user_ids": list(user_ids)})
    return {row.user_id: row.erase_time for row in rows}


async def exclude_writers(connection: AsyncConnection, user_id: str) -> None:
    """Waits until nobody writes for this user, and keeps it so until the transaction ends.

    The first statement of whatever forgets: it waits with empty hands, so that those it waits for can end. It waits as long
    as a statement may run.
    """
    await connection.execute(_CREATE, {"user_ids": [user_id]})
    await connection.execute(_EXCLUDE, {"user_id": user_id})


async def erased_until(connection: AsyncConnection, user_id: str) -> Erased:
    """Until when what was erased; call it while the person is held."""
    row = (await connection.execute(_READ, {"user_id": user_id})).one()
    return Erased(row.erase_time, row.facts_erase_time)


async def note_erasure(connection: AsyncConnection, user_id: str, *, messages: bool, facts: bool) -> None:
    """The tombstone: what was said, or known, until now is not taken any more. Call it while writers are excluded."""
    await connection.execute(_ERASE, {"user_id": user_id, "messages": messages, "facts": facts})


async def touch_person(connection: AsyncConnection, user_id: str) -> None:
    """Raises the version of what is remembered of the person; call it at the end, while the row is held.

    Versions grow with the clock: a database that was restored from a backup never gives one again. The lock that it takes
    goes beside those of writers, and is no upgrade that two of them could wait for in a ring.
    """
    await touch_people(connection, [user_id])


async def touch_people(connection: AsyncConnection, user_ids: Collection[str]) -> None:
    """As `touch_person`, for many users at once, in the order of their ids."""
    await connection.execute(_TOUCH, {"user_ids": list(user_ids)})


def is_erased(create_time: datetime, *erase_times: datetime | None) -> bool:
    """Whether what was said then falls under one of these erasures."""
    return any(time is not None and create_time <= time for time in erase_times)
