"""Every statement that reserves tokens, and reads what was spent. One public method is one transaction.

Invariant: of one user's day, spent and reserved tokens together never exceed the budget that a reservation was given,
however many ask at once: they take turns by a lock on the user, and each sees what the one before committed.
"""

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from services.chat.records import Usage
from services.chat.usage.schema import token_reservations, usage_days
from services.runtime.database import Database

_LOCK_USER: Final = sa.text("select pg_advisory_xact_lock(hashtext('parley token budget'), hashtext(:user_id))")
# A statement of its own after the lock: its snapshot must see what the lock's last holder committed.
_RESERVE: Final = sa.text(
    "with today as (select cast(now() at time zone 'utc' as date) as day),"
    " held as (select today.day,"
    " coalesce((select sum(input_tokens + output_tokens + unreported_tokens) from usage_days"
    " where user_id = cast(:user_id as uuid) and day = today.day), 0)"
    " + coalesce((select sum(tokens) from token_reservations where user_id = cast(:user_id as uuid)"
    " and day = today.day and generation_id <> cast(:generation_id as uuid)), 0) as others,"
    " cast(:tokens as bigint) + coalesce(cast(:spent as bigint), (select tokens from token_reservations"
    " where generation_id = cast(:generation_id as uuid)), 0) as own from today)"
    " insert into token_reservations as kept (generation_id, user_id, day, tokens, spent_tokens)"
    " select cast(:generation_id as uuid), cast(:user_id as uuid), day, own, coalesce(cast(:spent as bigint), 0) from held"
    " where others + own <= :budget"
    " on conflict (generation_id) do update set day = excluded.day, tokens = excluded.tokens,"
    " spent_tokens = greatest(excluded.spent_tokens, kept.spent_tokens)"
    " returning tokens"
)
# The round that was refused costs nothing; those before it stay charged.
_KEEP_SPENT: Final = sa.text(
    "update token_reservations set tokens = :spent, spent_tokens = :spent where generation_id = cast(:generation_id as uuid)"
)
# Of conversations that were deleted while a reply was written; no reply runs for a day.
_SWEEP: Final = sa.text(
    "delete from token_reservations where user_id = cast(:user_id as uuid)"
    " and day < cast(now() at time zone 'utc' as date) - 1"
)
_MOST_ROWS: Final = 10_000


@dataclass(frozen=True, slots=True)
class UsageOfDay:
    """What one model cost a user on one day (UTC)."""

    day: dt.date
    model: str
    usage: Usage
    replies: int


@dataclass(frozen=True, slots=True)
class Spending:
    """What a user spent: by day and model, the latest first; and today, with what is reserved."""

    days: Sequence[UsageOfDay]
    today_tokens: int
    reset_time: dt.datetime


class UsageStore:
    """Usage in the database. At most `concurrency` reservations wait for a connection's turn at a time."""

    def __init__(self, database: Database, *, concurrency: int) -> None:
        self._database = database
        self._gate = asyncio.Semaphore(concurrency)

    async def reserve(
        self, *, generation_id: str, user_id: str, tokens: int, spent_tokens: int | None, budget_tokens: int
    ) -> bool:
        """Reserves tokens for the next round of a reply, if today's budget has room for them.

        `spent_tokens` are what its earlier rounds cost; None when that is unknown: then what was reserved for them stays.
        """
        asked = {"generation_id": generation_id, "user_id": user_id, "tokens": tokens, "spent": spent_tokens}
        async with self._gate, self._database.transaction(user_id=user_id) as connection:
            await connection.execute(_LOCK_USER, {"user_id": user_id})
            reserved = await connection.execute(_RESERVE, asked | {"budget": budget_tokens})
            if reserved.scalar_one_or_none() is not None:
                return True
            await connection.execute(_SWEEP, {"user_id": user_id})
            if spent_tokens is not None:
                await connection.execute(_KEEP_SPENT, {"generation_id": generation_id, "spent": spent_tokens})
        return False

    async def read_spending(self, user_id: str, *, days: int) -> Spending:
        """What the user spent in the last `days` days, today included. Two queries; at most 10,000 rows."""
        today = sa.cast(sa.func.timezone("utc", sa.func.now()), sa.Date)
        spent = (
            sa.select(usage_days)
            .where(usage_days.c.user_id == user_id, usage_days.c.day > today - days)
            .order_by(usage_days.c.day.desc(), usage_days.c.model)
            .limit(_MOST_ROWS)
        )
        reserved = sa.select(
            today.label("day"),
            sa.select(sa.func.coalesce(sa.func.sum(token_reservations.c.tokens), 0))
            .where(token_reservations.c.user_id == user_id, token_reservations.c.day == today)
            .scalar_subquery()
            .label("tokens"),
            sa.select(
                sa.func.coalesce(
                    sa.func.sum(usage_days.c.input_tokens + usage_days.c.output_tokens + usage_days.c.unreported_tokens),
                    0,
                )
            )
            .where(usage_days.c.user_id == user_id, usage_days.c.day == today)
            .scalar_subquery()
            .label("spent"),
        )
        async with self._database.transaction(user_id=user_id) as connection:
            now = (await connection.execute(reserved)).one()
            rows = (await connection.execute(spent)).all()
        found = [
            UsageOfDay(
                row.day,
                row.model,
                Usage(row.input_tokens, row.cached_tokens, row.output_tokens, row.reasoning_tokens),
                row.replies,
            )
            for row in rows
        ]
        reset_time = dt.datetime.combine(now.day + dt.timedelta(days=1), dt.time(), dt.UTC)
        return Spending(found, int(now.tokens + now.spent), reset_time)
