"""Texts as users see them, and the acceptance of new ones: every statement.

Invariants: a request id names one text of a user; limits are counted under locks of the user and the number, so that many at
once cannot pass them together; the job that sends a text is stored with it.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database, interval
from services.runtime.jobs import Jobs
from services.sms.records import NewText, TextMessage
from services.sms.refusals import limit_reached, message_not_found, recipient_opted_out, request_id_reused
from services.sms.rows import MESSAGE_COLUMNS, SEND_JOB, for_living, lock, message_of, outbound_values
from services.sms.schema import consents, messages
from services.sms.seen_numbers import note_number

_DAY_SECONDS = 86_400
_HOUR_SECONDS = 3_600
_ANSWERS: Final = ("reply", "help")
_COUNTED_WITH: Final[Mapping[str, Sequence[str]]] = {
    "text": ("text",), "code": ("code",), "reply": _ANSWERS, "help": _ANSWERS,
}  # fmt: skip
"""The kinds of texts to a number that count together towards its limit."""


@dataclass(frozen=True, slots=True)
class TextLimits:
    """How many texts a user may cause in 24 hours, and a number get in one.

    `number_per_hour` holds for the texts of users to a number, and apart from them for the answers to its own.
    """

    user_per_day: int
    number_per_hour: int
    codes_per_hour: int


class MessageStore:
    """Text messages in the database."""

    def __init__(self, database: Database, jobs: Jobs, limits: TextLimits) -> None:
        self._database = database
        self._jobs = jobs
        self._limits = limits

    async def create(self, new: NewText, *, user_id: str, request_id: str | None, request_digest: bytes) -> TextMessage:
        """Accepts a text of the user's, or returns the one that the request id named before.

        Raises AlreadyExists (REQUEST_ID_REUSED), FailedPrecondition (RECIPIENT_OPTED_OUT), ResourceExhausted
        (LIMIT_REACHED). A verification code is sent by whoever asked for it, and has no job.
        """
        with for_living(user_id):
            async with self._database.service_transaction() as connection:
                await lock(connection, f"texts of {user_id}", f"texts to {new.phone_number}")
                found = await _requested(connection, user_id, request_id, request_digest)
                if found is not None:
                    return found
                await check_limits(connection, new, self._limits)
                values = outbound_values(new)
                if request_id is not None:
                    values |= {"request_id": request_id, "request_digest": request_digest}
                row = await connection.execute(messages.insert().values(values).returning(*MESSAGE_COLUMNS))
                created = message_of(row.mappings().one())
                if new.kind == "code":
                    await note_number(connection, user_id, new.phone_number)
                else:
                    await self._jobs.defer(connection, SEND_JOB, message_id=created.id)
                return created

    async def read(self, message_id: str, *, user_id: str) -> TextMessage:
        """One text of the user's. Raises NotFound."""
        statement = sa.select(*MESSAGE_COLUMNS).where(
            messages.c.id == message_id, messages.c.user_id == user_id, messages.c.kind != "code"
        )
        async with self._database.transaction(user_id=user_id) as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
        if row is None:
            raise message_not_found(message_id)
        return message_of(row)

    async def list_messages(
        self, *, user_id: str, limit: int, after: tuple[dt.datetime, str] | None
    ) -> Sequence[TextMessage]:
        """The user's texts after a key, the latest first."""
        statement = (
            sa.select(*MESSAGE_COLUMNS)
            .where(messages.c.user_id == user_id, messages.c.kind != "code")
            .order_by(messages.c.create_time.desc(), messages.c.id.desc())
            .limit(limit)
        )
        if after is not None:
            key = sa.tuple_(sa.literal(after[0], messages.c.create_time.type), sa.literal(after[1], messages.c.id.type))
            statement = statement.where(sa.tuple_(messages.c.create_time, messages.c.id) < key)
        async with self._database.transaction(user_id=user_id) as connection:
            return [message_of(row) for row in (await connection.execute(statement)).mappings()]


async def _requested(
    connection: AsyncConnection, user_id: str, request_id: str | None, request_digest: bytes
) -> TextMessage | None:
    if request_id is None:
        return None
    statement = sa.select(*MESSAGE_COLUMNS, messages.c.request_digest).where(
        messages.c.user_id == user_id, messages.c.request_id == request_id
    )
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        return None
    if row["request_digest"] != request_digest:
        raise request_id_reused(request_id)
    return message_of(row)


async def check_limits(connection: AsyncConnection, new: NewText, limits: TextLimits) -> None:
    """Refuses a text that its receiver does not want, or that would be one too many: surely under locks of user and number.

    What users send to a number takes nothing from the answers that its owner gets, nor from codes.
    """
    opted_out = sa.select(consents.c.is_opted_out).where(consents.c.phone_number == new.phone_number)
    if (await connection.execute(opted_out)).scalar_one_or_none():
        raise recipient_opted_out()
    counted = sa.select(sa.func.count()).where(
        messages.c.direction == "outbound", messages.c.status != "blocked", messages.c.kind != "confirmation"
    )
    of_number = counted.where(
        messages.c.phone_number == new.phone_number,
        messages.c.create_time > sa.func.now() - interval(_HOUR_SECONDS),
        messages.c.kind.in_(_COUNTED_WITH[new.kind]),
    )
    of_user = counted.where(
        messages.c.user_id == new.user_id, messages.c.create_time > sa.func.now() - interval(_DAY_SECONDS)
    )
    statement = sa.select(of_number.scalar_subquery(), of_user.scalar_subquery())
    to_number, by_user = (await connection.execute(statement)).one()
    what, most = ("codes", limits.codes_per_hour) if new.kind == "code" else ("texts", limits.number_per_hour)
    if to_number >= most:
        raise limit_reached(f"{what} to this number in an hour", most, retry_delay_seconds=_HOUR_SECONDS)
    if new.user_id is not None and by_user >= limits.user_per_day:
        raise limit_reached("texts in 24 hours", limits.user_per_day, retry_delay_seconds=_HOUR_SECONDS)
