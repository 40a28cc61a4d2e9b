"""What goes with a user, and with time: every statement.

Invariant: after a purge nothing of the user is stored here, and nothing that was under way is stored later: who stores
shares the user's lock, which a purge has alone (migration 0002). What stays is the consent of numbers and its ledger,
which name no user: that a number wants no text messages is a duty towards its owner, whoever asks us to send there next.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database, interval
from services.runtime.jobs import Jobs
from services.sms.rows import FORGET_JOB, lock
from services.sms.schema import calls, decisions, messages, purged_users, seen_numbers

REMEMBER_SECONDS: Final = 86_400
"""For how long a purge is remembered: longer than a token lives, or a job takes."""


class ErasureStore:
    """Deletes for good."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        self._database = database
        self._jobs = jobs

    async def purge_user(self, user_id: str) -> None:
        """Deletes everything of the user, texts and calls of the user's numbers included that nobody was found for.

        What the provider keeps of the texts is deleted by jobs. Idempotent.
        """
        async with self._database.service_transaction() as connection:
            await lock(connection, f"parley user {user_id}")
            await connection.execute(
                insert(purged_users)
                .values(user_id=user_id)
                .on_conflict_do_update(index_elements=["user_id"], set_={"purge_time": sa.func.now()})
            )
            # Those that auth has said were the user's, and not those that the user has only named.
            texted = sa.select(messages.c.phone_number).where(
                messages.c.user_id == user_id, messages.c.direction == "inbound"
            )
            called = sa.select(calls.c.phone_number).where(calls.c.user_id == user_id, calls.c.provider_call_id.is_not(None))
            numbers = (await connection.execute(texted.union(called))).scalars().all()
            for table in (calls, messages):
                is_of_number = sa.and_(table.c.user_id.is_(None), table.c.phone_number.in_(numbers))
                of_user = sa.or_(table.c.user_id == user_id, is_of_number)
                if table is messages:
                    await self._forget_at_provider(connection, of_user)
                await connection.execute(table.delete().where(of_user))
            for table in (decisions, seen_numbers):
                await connection.execute(table.delete().where(table.c.user_id == user_id))

    async def _forget_at_provider(self, connection: AsyncConnection, of_user: sa.ColumnElement[bool]) -> None:
        known = sa.select(messages.c.provider_message_id).where(of_user, messages.c.provider_message_id.is_not(None))
        for provider_message_id in (await connection.execute(known)).scalars().all():
            await self._jobs.defer(connection, FORGET_JOB, provider_message_id=provider_message_id)

    async def forget_purges(self) -> None:
        """Forgets purges that nothing can be under way of any more."""
        old = purged_users.c.purge_time < sa.func.now() - interval(REMEMBER_SECONDS)
        async with self._database.service_transaction() as connection:
            await connection.execute(purged_users.delete().where(old))
