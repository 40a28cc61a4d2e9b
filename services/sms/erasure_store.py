"""What goes with a user, and with time: every statement.

Invariant: after a purge nothing of the user is stored here, and nothing that was under way is stored later: who stores
shares the user's lock, which a purge has alone (migration 0002). What stays is the consent of numbers and its ledger,
which name no user: that a number wants no text messages is a duty towards its owner, whoever asks us to send there next.
"""

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from services.runtime.database import Database, interval
from services.runtime.jobs import Jobs
from services.sms.rows import FORGET_JOB, lock
from services.sms.schema import calls, decisions, messages, purged_users, seen_numbers

REMEMBER_SECONDS: Final = 86_400
"""For how long a purge is remembered: longer than a token lives, or a job takes."""


# Of the rows of a purge, in one transaction.
_BATCH: Final = 200


class ErasureStore:
    """Deletes for good."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        self._database = database
        self._jobs = jobs

    async def purge_user(self, user_id: str) -> None:
        """Deletes everything of the user, texts and calls of the user's numbers included that nobody was found for.

        What the provider keeps of the texts is deleted by jobs. Goes by batches, each its own transaction, so that none
        comes near the time that a statement may take. Idempotent: one that was cut short is finished by the next.
        """
        await self._remember(user_id)
        of_user = [table.c.user_id == user_id for table in (messages, calls)]
        # Those of nobody first: which numbers were the user's is known from the user's own.
        for is_chosen in (_of_nobody_at_numbers_of(user_id), of_user):
            for table, chosen in zip((messages, calls), is_chosen, strict=True):
                while await self._delete(table, chosen):
                    pass
        for table in (decisions, seen_numbers):
            while await self._delete(table, table.c.user_id == user_id):
                pass

    async def _remember(self, user_id: str) -> None:
        """From here on nobody stores anything of the user."""
        remembering = insert(purged_users).values(user_id=user_id)
        renewed = remembering.on_conflict_do_update(index_elements=["user_id"], set_={"purge_time": sa.func.now()})
        async with self._database.service_transaction() as connection:
            await lock(connection, f"parley user {user_id}")
            await connection.execute(renewed)

    async def _delete(self, table: sa.Table, chosen: sa.ColumnElement[bool]) -> int:
        """Deletes up to a batch of rows, texts with jobs for what the provider keeps of them; returns how many."""
        key = list(table.primary_key)
        batch = sa.select(*key).where(chosen).order_by(*key).limit(_BATCH).with_for_update().cte("batch")
        if table is not messages:
            deleting = table.delete().where(sa.tuple_(*key).in_(sa.select(*batch.c)))
            async with self._database.service_transaction() as connection:
                return (await connection.execute(deleting)).rowcount
        texts = messages.delete().where(messages.c.id.in_(_with_replies(batch)))
        async with self._database.service_transaction() as connection:
            found = (await connection.execute(texts.returning(messages.c.provider_message_id))).scalars().all()
            for provider_message_id in filter(None, found):
                await self._jobs.defer(connection, FORGET_JOB, provider_message_id=provider_message_id)
        return len(found)

    async def forget_purges(self) -> None:
        """Forgets purges that nothing can be under way of any more."""
        old = purged_users.c.purge_time < sa.func.now() - interval(REMEMBER_SECONDS)
        async with self._database.service_transaction() as connection:
            await connection.execute(purged_users.delete().where(old))


def _with_replies(batch: sa.CTE) -> sa.CompoundSelect[Any]:
    """The texts of a batch and the replies to them, which would else go by the foreign key, and their ids with them."""
    replies = sa.select(messages.c.id).where(messages.c.in_reply_to.in_(sa.select(batch.c.id)))
    return sa.select(batch.c.id).union(replies)


def _of_nobody_at_numbers_of(user_id: str) -> list[sa.ColumnElement[bool]]:
    """Texts and calls that nobody was found for, of numbers that auth has said were the user's."""
    texted = sa.select(messages.c.phone_number).where(messages.c.user_id == user_id, messages.c.direction == "inbound")
    called = sa.select(calls.c.phone_number).where(calls.c.user_id == user_id, calls.c.provider_call_id.is_not(None))
    numbers = texted.union(called)
    return [sa.and_(table.c.user_id.is_(None), table.c.phone_number.in_(numbers)) for table in (messages, calls)]
