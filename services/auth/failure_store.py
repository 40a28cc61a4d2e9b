"""Every SQL statement about sign-ins that failed. One public method is one transaction of the service.

Counters are shared by all processes, and grow by upsert, so that attempts at once are all counted.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from sqlalchemy import case, delete, func, literal, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth.records import Origin
from services.auth.schema import sign_in_failures
from services.auth.statements import note_event
from services.runtime.database import Database, interval

_COLUMNS = sign_in_failures.c
_MOST_DOUBLINGS = 20


@dataclass(frozen=True, slots=True)
class Counter:
    """One count of failures: after `free` of them within `window_seconds` each doubles the delay, up to `most_seconds`."""

    key: bytes = field(repr=False)
    name_key: bytes | None = field(repr=False)
    free: int
    most_seconds: float


class FailureStore:
    """Failures by key. They are forgotten `window_seconds` after the last one."""

    def __init__(self, database: Database, *, window_seconds: float) -> None:
        self._database = database
        self._window_seconds = window_seconds

    async def delay_seconds(
        self, keys: Collection[bytes], *, pair_key: bytes, name_key: bytes, known_seconds: float
    ) -> float:
        """How long the next attempt has to wait, at most, by these keys; 0 or less where it need not.

        The name's own delay does not count for an address from which somebody signed in with it within `known_seconds`.
        """
        # Not `now()`, when this transaction began: a success may have been noted since then, without a delay.
        left = func.extract("epoch", _COLUMNS.delay_until - func.clock_timestamp())
        known = select(_COLUMNS.key).where(
            _COLUMNS.key == pair_key, _COLUMNS.success_time > func.now() - interval(known_seconds)
        )
        counts = (_COLUMNS.key != name_key) | ~known.correlate(None).exists()
        query = select(func.coalesce(func.max(left), 0)).where(_COLUMNS.key.in_(list(keys)), counts)
        async with self._database.service_transaction() as connection:
            return float((await connection.execute(query)).scalar_one())

    async def note_failure(self, counters: Sequence[Counter], *, cause: str, user_id: str | None, origin: Origin) -> None:
        """Counts a failure, and adds it to the audit log."""
        async with self._database.service_transaction() as connection:
            # In one order, so that two that fail at once never wait for each other in a ring.
            for counter in sorted(counters, key=lambda one: one.key):
                await self._count(connection, counter)
            await note_event(connection, "sign_in_refused", user_id=user_id, origin=origin, details=(cause,))

    async def _count(self, connection: AsyncConnection, counter: Counter) -> None:
        is_old = _COLUMNS.update_time < func.now() - interval(self._window_seconds)
        failures = case((is_old, 1), else_=_COLUMNS.failures + 1)
        doublings = func.least(failures - counter.free - 1, _MOST_DOUBLINGS)
        seconds = func.least(func.power(literal(2.0), doublings), counter.most_seconds)
        delay = case((failures <= counter.free, interval(0)), else_=func.make_interval(0, 0, 0, 0, 0, 0, seconds))
        counting = insert(sign_in_failures).values(
            key=counter.key, name_key=counter.name_key, failures=1, delay_until=func.now()
        )
        counting = counting.on_conflict_do_update(
            index_elements=["key"],
            set_={"failures": failures, "delay_until": func.now() + delay, "update_time": func.now()},
        )
        await connection.execute(counting)

    async def note_success(self, *, pair_key: bytes, name_key: bytes, anew_seconds: float) -> None:
        """Forgets the failures of a name from an address, and remembers the two as known; again after `anew_seconds`."""
        values = {"failures": 0, "delay_until": func.now(), "success_time": func.now(), "update_time": func.now()}
        stale = func.coalesce(_COLUMNS.success_time < func.now() - interval(anew_seconds), literal(value=True))
        noting = insert(sign_in_failures).values(**values, key=pair_key, name_key=name_key)
        noting = noting.on_conflict_do_update(index_elements=["key"], set_=values, where=(_COLUMNS.failures > 0) | stale)
        async with self._database.service_transaction() as connection:
            await connection.execute(noting)

    async def forget_names(self, name_keys: Collection[bytes]) -> None:
        """Deletes what is known of names whose account is gone, or whose password was set anew."""
        # In the order of `note_failure`, which may be counting for the same names.
        theirs = select(_COLUMNS.key).where(_COLUMNS.name_key.in_(list(name_keys))).order_by(_COLUMNS.key).with_for_update()
        async with self._database.service_transaction() as connection:
            await connection.execute(delete(sign_in_failures).where(_COLUMNS.key.in_(theirs.scalar_subquery())))

    async def sweep(self, *, keep_seconds: float, batch: int) -> int:
        """Deletes up to `batch` counters whose failures are forgotten and whose success, if any, is so long ago."""
        is_known = _COLUMNS.success_time > func.now() - interval(keep_seconds)
        old = select(_COLUMNS.key).where(
            _COLUMNS.update_time < func.now() - interval(self._window_seconds), func.coalesce(~is_known, literal(value=True))
        )
        chosen = old.limit(batch).with_for_update(skip_locked=True).scalar_subquery()
        async with self._database.service_transaction() as connection:
            return (await connection.execute(delete(sign_in_failures).where(_COLUMNS.key.in_(chosen)))).rowcount
