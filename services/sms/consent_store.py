"""The consent of numbers, and the ledger of its changes: every statement.

Invariants: a change holds the number's row until it commits, and grows its epoch; each leaves its line in the ledger in
the same transaction. A claim of a send holds the same row (migration 0002): none follows a stop that has committed.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database
from services.sms.records import Consent
from services.sms.schema import consent_events, consents

_COLUMNS: Final = (
    consents.c.phone_number, consents.c.is_opted_out, consents.c.epoch, consents.c.source, consents.c.change_time,
)  # fmt: skip


async def held_consent(connection: AsyncConnection, phone_number: str) -> Consent:
    """The number's consent, held until the transaction ends; made where there is none."""
    statement = (
        insert(consents)
        .values(phone_number=phone_number)
        .on_conflict_do_update(index_elements=["phone_number"], set_={"phone_number": phone_number})
        .returning(*_COLUMNS)
    )
    return Consent(*(await connection.execute(statement)).one())


async def change_consent(
    connection: AsyncConnection, held: Consent, *, is_opted_out: bool, source: str, provider_message_id: str | None = None
) -> Consent:
    """The consent after somebody said so. What it says already it goes on saying, under the same epoch."""
    changed, is_other = held, held.is_opted_out != is_opted_out
    if is_other or held.source is None:
        statement = (
            consents.update()
            .where(consents.c.phone_number == held.phone_number)
            .values(
                is_opted_out=is_opted_out, epoch=consents.c.epoch + int(is_other), source=source, change_time=sa.func.now()
            )
            .returning(*_COLUMNS)
        )  # fmt: skip
        changed = Consent(*(await connection.execute(statement)).one())
    await note_event(
        connection, changed, "stop" if is_opted_out else "start", source=source, provider_message_id=provider_message_id
    )
    return changed


async def note_event(
    connection: AsyncConnection, consent: Consent, change: str, *, source: str, provider_message_id: str | None
) -> None:
    """A line of the ledger."""
    await connection.execute(
        consent_events.insert().values(
            phone_number=consent.phone_number, change=change, source=source, epoch=consent.epoch,
            provider_message_id=provider_message_id,
        )
    )  # fmt: skip


class ConsentStore:
    """Consent, outside of messages. For callers whose right to a number was checked."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set_consent(self, phone_number: str, *, is_opted_out: bool) -> Consent:
        """What the owner of the number has said elsewhere than by text. Idempotent."""
        async with self._database.service_transaction() as connection:
            held = await held_consent(connection, phone_number)
            if held.is_opted_out == is_opted_out and held.source is not None:
                return held
            return await change_consent(connection, held, is_opted_out=is_opted_out, source="user")

    async def list_opt_outs(self, *, limit: int, after: tuple[dt.datetime, str] | None) -> Sequence[Consent]:
        """Numbers that want no text messages after a key, the latest first."""
        statement = (
            sa.select(*_COLUMNS)
            .where(consents.c.is_opted_out)
            .order_by(consents.c.change_time.desc(), consents.c.phone_number.desc())
            .limit(limit)
        )
        if after is not None:
            key = sa.tuple_(sa.literal(after[0], consents.c.change_time.type), sa.literal(after[1]))
            statement = statement.where(sa.tuple_(consents.c.change_time, consents.c.phone_number) < key)
        async with self._database.service_transaction() as connection:
            return [Consent(*row) for row in await connection.execute(statement)]
