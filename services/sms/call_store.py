"""Calls: every statement.

Invariants: a provider's call is one row, whose state only goes forward, in whatever order it is told; a request id names
one call of a user. A call that is told of becomes a user's by a job, as texts do.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database, interval
from services.runtime.jobs import Jobs
from services.sms.records import Call, CallReport, NewCall
from services.sms.refusals import limit_reached, request_id_reused
from services.sms.rows import for_living, lock, share_user
from services.sms.schema import calls

MATCH_JOB: Final = "match_call"
"""Takes the `call_id` of a call that the provider told of."""
_ORDER: Final = ("queued", "ringing", "in_progress", "canceled", "failed", "no_answer", "busy", "completed")
_COLUMNS: Final = (
    *(calls.c[name] for name in ("id", "direction", "phone_number", "status", "start_time", "duration_seconds", "summary")),
    sa.case((calls.c.provider_call_id.is_(None), "client"), else_="provider").label("source"),
    calls.c.create_time,
)


class CallStore:
    """Calls in the database."""

    def __init__(self, database: Database, jobs: Jobs, *, most_calls: int) -> None:
        self._database = database
        self._jobs = jobs
        self._most_calls = most_calls

    async def record(self, new: NewCall, *, user_id: str, request_id: str | None, request_digest: bytes) -> Call:
        """Records a call of the user's, or returns the one that the request id named before.

        Raises AlreadyExists (REQUEST_ID_REUSED), ResourceExhausted (LIMIT_REACHED).
        """
        values: dict[str, Any] = {
            "user_id": user_id, "direction": new.direction, "phone_number": new.phone_number, "status": new.status,
            "start_time": new.start_time or sa.func.now(), "duration_seconds": new.duration_seconds,
            "summary": new.summary,
        }  # fmt: skip
        if request_id is not None:
            values |= {"request_id": request_id, "request_digest": request_digest}
        counted = sa.select(sa.func.count()).where(calls.c.user_id == user_id, calls.c.provider_call_id.is_(None))
        with for_living(user_id):
            async with self._database.transaction(user_id=user_id) as connection:
                await lock(connection, f"calls of {user_id}")
                found = await _requested(connection, user_id, request_id, request_digest)
                if found is not None:
                    return found
                if (await connection.execute(counted)).scalar_one() >= self._most_calls:
                    raise limit_reached("calls", self._most_calls)
                made = await connection.execute(calls.insert().values(values).returning(*_COLUMNS))
                return Call(**made.mappings().one())

    async def list_calls(self, *, user_id: str, limit: int, after: tuple[dt.datetime, str] | None) -> Sequence[Call]:
        """The user's calls after a key, the latest first."""
        statement = (
            sa.select(*_COLUMNS)
            .where(calls.c.user_id == user_id)
            .order_by(calls.c.start_time.desc(), calls.c.id.desc())
            .limit(limit)
        )
        if after is not None:
            key = sa.tuple_(sa.literal(after[0], calls.c.start_time.type), sa.literal(after[1], calls.c.id.type))
            statement = statement.where(sa.tuple_(calls.c.start_time, calls.c.id) < key)
        async with self._database.transaction(user_id=user_id) as connection:
            return [Call(**row) for row in (await connection.execute(statement)).mappings()]

    async def report(self, report: CallReport) -> None:
        """Adds what the provider says of a call, in any order and however often."""
        begin = report.start_time or sa.func.now()
        values = {
            "direction": report.direction, "phone_number": report.phone_number, "status": report.status,
            "duration_seconds": report.duration_seconds, "start_time": begin, "provider_call_id": report.provider_call_id,
        }  # fmt: skip
        later = _ORDER[: _ORDER.index(report.status)]
        known = insert(calls).values(values)
        statement = known.on_conflict_do_update(
            index_elements=["provider_call_id"],
            index_where=sa.text("provider_call_id is not null"),
            # Where it began stays: the history is in that order.
            set_={
                "status": sa.case((calls.c.status.in_(later), known.excluded.status), else_=calls.c.status),
                "duration_seconds": sa.func.greatest(calls.c.duration_seconds, known.excluded.duration_seconds),
                "update_time": sa.func.now(),
            },
        ).returning(calls.c.id, calls.c.user_id)
        async with self._database.service_transaction() as connection:
            row = (await connection.execute(statement)).one()
            if row.user_id is None:
                await self._jobs.defer(connection, MATCH_JOB, call_id=row.id)

    async def number_of(self, call_id: str) -> str | None:
        """The number of a call that is nobody's yet; None for any other."""
        statement = sa.select(calls.c.phone_number).where(calls.c.id == call_id, calls.c.user_id.is_(None))
        async with self._database.service_transaction() as connection:
            number: str | None = (await connection.execute(statement)).scalar_one_or_none()
            return number

    async def assign(self, call_id: str, *, user_id: str) -> None:
        """Makes a call the user's. Idempotent. Raises NotFound (USER_NOT_FOUND)."""
        statement = calls.update().where(calls.c.id == call_id, calls.c.user_id.is_(None)).values(user_id=user_id)
        with for_living(user_id):
            async with self._database.service_transaction() as connection:
                await share_user(connection, user_id)
                await connection.execute(statement)

    async def delete_unmatched(self, *, older_than_seconds: float, limit: int) -> int:
        """Deletes calls of numbers that are nobody's; how many."""
        old = (
            sa.select(calls.c.id)
            .where(calls.c.user_id.is_(None), calls.c.create_time < sa.func.now() - interval(older_than_seconds))
            .limit(limit)
        )
        async with self._database.service_transaction() as connection:
            return (await connection.execute(calls.delete().where(calls.c.id.in_(old)))).rowcount


async def _requested(
    connection: AsyncConnection, user_id: str, request_id: str | None, request_digest: bytes
) -> Call | None:
    if request_id is None:
        return None
    statement = sa.select(*_COLUMNS, calls.c.request_digest).where(
        calls.c.user_id == user_id, calls.c.request_id == request_id
    )
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        return None
    if row["request_digest"] != request_digest:
        raise request_id_reused(request_id)
    return Call(**{name: value for name, value in row.items() if name != "request_digest"})
