"""Decisions about texts: every statement.

Invariant: a request id names one decision of a user. Two calls with one id at once may both ask the model; the first that is
stored is what both get.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database, interval
from services.sms.records import Decision, Verdict
from services.sms.refusals import limit_reached, request_id_reused
from services.sms.rows import for_living
from services.sms.schema import decisions

_DAY_SECONDS: Final = 86_400
_COLUMNS: Final = tuple(
    decisions.c[name] for name in ("id", "input_text", "is_yes", "reply", "reason", "confidence", "model", "create_time")
)


def decision_of(row: Any) -> Decision:
    """The decision in a row."""
    verdict = Verdict(row["is_yes"], row["reply"], row["reason"], row["confidence"])
    return Decision(row["id"], row["input_text"], verdict, row["model"], row["create_time"])


class DecisionStore:
    """Decisions in the database."""

    def __init__(self, database: Database, *, most_per_day: int) -> None:
        self._database = database
        self._most_per_day = most_per_day

    async def admit(self, *, user_id: str, request_id: str | None, request_digest: bytes) -> Decision | None:
        """The decision that the request id names; None where one may be made.

        Raises AlreadyExists (REQUEST_ID_REUSED), ResourceExhausted (LIMIT_REACHED).
        """
        since = sa.func.now() - interval(_DAY_SECONDS)
        counted = sa.select(sa.func.count()).where(decisions.c.user_id == user_id, decisions.c.create_time > since)
        async with self._database.transaction(user_id=user_id) as connection:
            found = await _requested(connection, user_id, request_id, request_digest)
            if found is None and (await connection.execute(counted)).scalar_one() >= self._most_per_day:
                raise limit_reached("decisions in 24 hours", self._most_per_day, retry_delay_seconds=3600)
        return found

    async def create(  # noqa: PLR0913 - a row
        self,
        text: str,
        verdict: Verdict,
        *,
        model: str,
        user_id: str,
        request_id: str | None,
        request_digest: bytes,
    ) -> Decision:
        """Stores a decision, or returns the one that another call with this request id has stored meanwhile."""
        values = {
            "user_id": user_id, "input_text": text, "is_yes": verdict.is_yes, "reply": verdict.reply,
            "reason": verdict.reason, "confidence": verdict.confidence, "model": model, "request_id": request_id,
            "request_digest": None if request_id is None else request_digest,
        }  # fmt: skip
        statement = (
            insert(decisions)
            .values(values)
            .on_conflict_do_nothing(index_elements=["user_id", "request_id"], index_where=sa.text("request_id is not null"))
            .returning(*_COLUMNS)
        )
        with for_living(user_id):
            async with self._database.transaction(user_id=user_id) as connection:
                row = (await connection.execute(statement)).mappings().one_or_none()
                if row is not None:
                    return decision_of(row)
                found = await _requested(connection, user_id, request_id, request_digest)
        if found is None:
            raise RuntimeError("a decision was neither stored nor found")
        return found

    async def list_decisions(self, *, user_id: str, limit: int, after: tuple[dt.datetime, str] | None) -> Sequence[Decision]:
        """The user's decisions after a key, the latest first."""
        statement = (
            sa.select(*_COLUMNS)
            .where(decisions.c.user_id == user_id)
            .order_by(decisions.c.create_time.desc(), decisions.c.id.desc())
            .limit(limit)
        )
        if after is not None:
            key = sa.tuple_(sa.literal(after[0], decisions.c.create_time.type), sa.literal(after[1], decisions.c.id.type))
            statement = statement.where(sa.tuple_(decisions.c.create_time, decisions.c.id) < key)
        async with self._database.transaction(user_id=user_id) as connection:
            return [decision_of(row) for row in (await connection.execute(statement)).mappings()]


async def _requested(
    connection: AsyncConnection, user_id: str, request_id: str | None, request_digest: bytes
) -> Decision | None:
    if request_id is None:
        return None
    statement = sa.select(*_COLUMNS, decisions.c.request_digest).where(
        decisions.c.user_id == user_id, decisions.c.request_id == request_id
    )
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        return None
    if row["request_digest"] != request_digest:
        raise request_id_reused(request_id)
    return decision_of(row)
