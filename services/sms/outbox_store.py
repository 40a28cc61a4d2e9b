"""Texts that go out: every statement about their sending.

Invariants: a text is claimed once for each time that the provider surely did not take it, and never again after a claim
whose end is not known; the database refuses a claim for a number that wants none; what is reported comes to the same in
any order.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database, interval, violated_constraint
from services.runtime.jobs import Jobs
from services.sms.consent_store import change_consent, held_consent
from services.sms.provider.provider import Taken
from services.sms.records import DeliveryReport
from services.sms.rows import FORGET_JOB
from services.sms.schema import CONSENT_GUARD, messages

OPTED_OUT_CODE: Final = "21610"
"""Twilio's word for a number that has told it to stop."""
# What is known of a text, from the least: a report only ever adds to it.
_KNOWN: Final = ("queued", "sending", "unknown", "sent", "blocked", "failed", "undelivered", "delivered")


@dataclass(frozen=True, slots=True)
class Claim:
    """A text that is ours to send, now."""

    message_id: str
    kind: str
    phone_number: str = field(repr=False)
    text: str = field(repr=False)
    attempts: int


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A text whose sending ended without an answer. `age_seconds` is since its claim."""

    message_id: str
    kind: str
    phone_number: str = field(repr=False)
    text: str = field(repr=False)
    claim_time: dt.datetime
    age_seconds: float


class OutboxStore:
    """The outbox in the database."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        self._database = database
        self._jobs = jobs

    async def claim(self, message_id: str) -> Claim | None:
        """Claims a queued text; None where there is nothing to send (any more). One that must not be sent is `blocked`."""
        statement = (
            messages.update()
            .where(messages.c.id == message_id, messages.c.status == "queued")
            .values(
                status="sending", attempts=messages.c.attempts + 1, claim_time=sa.func.now(), update_time=sa.func.now()
            )
            .returning(
                messages.c.id, messages.c.kind, messages.c.phone_number, messages.c.text, messages.c.attempts
            )
        )  # fmt: skip
        try:
            async with self._database.service_transaction() as connection:
                row = (await connection.execute(statement)).one_or_none()
        except IntegrityError as error:
            if violated_constraint(error) != CONSENT_GUARD:
                raise
            await self._update(message_id, {"status": "blocked"}, only=("queued",))
            return None
        return None if row is None else Claim(*row)

    async def accept(self, message_id: str, taken: Taken) -> None:
        """The provider has taken it. Idempotent; a report that came first stays. Of a text that was purged it forgets it."""
        await self.report(DeliveryReport(taken.provider_message_id, taken.status, taken.error_code, message_id))

    async def status_of(self, message_id: str) -> str | None:
        """How far a text is; None where it is gone."""
        async with self._database.service_transaction() as connection:
            statement = sa.select(messages.c.status).where(messages.c.id == message_id)
            status: str | None = (await connection.execute(statement)).scalar_one_or_none()
            return status

    async def requeue(self, message_id: str) -> None:
        """The provider surely did not take it: it may be claimed again."""
        await self._update(message_id, {"status": "queued"}, only=("sending",))

    async def fail(self, message_id: str, *, error_code: str) -> None:
        """It is not sent, for good. Where the provider says that its receiver wants none, the ledger says so from now on."""
        is_opt_out = error_code == OPTED_OUT_CODE
        status = "blocked" if is_opt_out else "failed"
        async with self._database.service_transaction() as connection:
            number = await _set(connection, message_id, {"status": status, "error_code": error_code}, only=_OPEN)
            if is_opt_out and number is not None:
                await _sync_opt_out(connection, number)

    async def report(self, report: DeliveryReport) -> bool:
        """Adds what a report says, in any order and however often; False where it is of no message of ours.

        Has the provider forget a text that the report calls by our id and that is gone here: its user was purged.
        """
        values: dict[str, Any] = {"status": report.status, "error_code": report.error_code}
        async with self._database.service_transaction() as connection:
            row = await _reported(connection, report)
            if row is None:
                await self._forget_gone(connection, report)
                return False
            less_known = _KNOWN[: _KNOWN.index(report.status)]
            number = await _set(connection, row.id, values, only=less_known)
            if report.error_code == OPTED_OUT_CODE and number is not None:
                await _sync_opt_out(connection, number)
        return True

    async def _forget_gone(self, connection: AsyncConnection, report: DeliveryReport) -> None:
        if report.message_id is None:
            return
        # It may be here, under another id of the provider's.
        here = sa.select(messages.c.id).where(messages.c.id == report.message_id)
        if (await connection.execute(here)).one_or_none() is None:
            await self._jobs.defer(connection, FORGET_JOB, provider_message_id=report.provider_message_id)

    async def list_unresolved(self, *, after_seconds: float, limit: int) -> Sequence[Unresolved]:
        """Texts that were claimed so long ago and are `sending` still, the oldest first."""
        statement = (
            sa.select(
                messages.c.id, messages.c.kind, messages.c.phone_number, messages.c.text, messages.c.claim_time,
                sa.extract("epoch", sa.func.now() - messages.c.claim_time).cast(sa.Float),
            )
            .where(messages.c.status == "sending", messages.c.claim_time < sa.func.now() - interval(after_seconds))
            .order_by(messages.c.claim_time)
            .limit(limit)
        )  # fmt: skip
        async with self._database.service_transaction() as connection:
            return [Unresolved(*row) for row in await connection.execute(statement)]

    async def unknown_among(self, provider_message_ids: Sequence[str]) -> frozenset[str]:
        """Which of the provider's messages are none that we know."""
        statement = sa.select(messages.c.provider_message_id).where(messages.c.provider_message_id.in_(provider_message_ids))
        async with self._database.service_transaction() as connection:
            return frozenset(provider_message_ids).difference((await connection.execute(statement)).scalars())

    async def give_up(self, message_id: str) -> None:
        """Whether it was sent is not known, and it is never sent again. A later report may still tell."""
        await self._update(message_id, {"status": "unknown"}, only=("sending",))

    async def _update(self, message_id: str, values: dict[str, Any], *, only: Sequence[str]) -> None:
        async with self._database.service_transaction() as connection:
            await _set(connection, message_id, values, only=only)


_OPEN: Final = ("queued", "sending", "unknown")


async def _set(connection: AsyncConnection, message_id: str, values: dict[str, Any], *, only: Sequence[str]) -> str | None:
    """Changes a text that stands at one of these; its number, None where it stands elsewhere."""
    statement = (
        messages.update()
        .where(messages.c.id == message_id, messages.c.status.in_(only))
        .values(**values, update_time=sa.func.now())
        .returning(messages.c.phone_number)
    )
    number: str | None = (await connection.execute(statement)).scalar_one_or_none()
    return number


async def _reported(connection: AsyncConnection, report: DeliveryReport) -> Any:
    """The row that a report is of, held, with the provider's id in it from now on."""
    if report.message_id is None:
        of_provider = sa.select(messages.c.id).where(
            messages.c.direction == "outbound", messages.c.provider_message_id == report.provider_message_id
        )
        return (await connection.execute(of_provider.with_for_update())).one_or_none()
    known = messages.c.provider_message_id
    statement = (
        messages.update()
        .where(
            messages.c.id == report.message_id,
            messages.c.direction == "outbound",
            sa.or_(known.is_(None), known == report.provider_message_id),
        )
        .values(provider_message_id=sa.func.coalesce(known, report.provider_message_id))
        .returning(messages.c.id)
    )
    return (await connection.execute(statement)).one_or_none()


async def _sync_opt_out(connection: AsyncConnection, phone_number: str) -> None:
    held = await held_consent(connection, phone_number)
    if not held.is_opted_out:
        await change_consent(connection, held, is_opted_out=True, source="provider")
