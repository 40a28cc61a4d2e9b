"""Every SQL statement about the deletion of users. One public method is one transaction.

The account goes at once, and with it whatever refers to it; what ended by it stays known to the feed by ids that name
nobody. The deletion itself, ids and times, stays as long as the audit log does.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth.records import Account, Deletion, Origin, ServiceDeletion
from services.auth.refusals import user_not_found
from services.auth.schema import audit_events, deletion_services, deletions, sessions, users
from services.auth.statements import bound_ending, end_identities, note_event
from services.auth.user_store import (
    exclude_administrators,
    lock_user,
    loses_rights,
    require_another_administrator,
)
from services.runtime.database import Database, interval
from services.runtime.errors import NotFound
from services.runtime.jobs import Jobs

PURGE_USER = "purge_user"
_DELETED = "user_deleted"


@dataclass(frozen=True, slots=True)
class Begun:
    """A deletion that was begun, and the ids of what ended by it."""

    deletion: Deletion
    ended_ids: Sequence[str]
    account: Account


class DeletionStore:
    """Deletions. `told_seconds` is how long the feed tells of what ended."""

    def __init__(self, database: Database, jobs: Jobs, *, told_seconds: float) -> None:
        self._database = database
        self._jobs = jobs
        self._told_seconds = told_seconds

    async def begin(self, user_id: str, *, services: Collection[str], origin: Origin) -> Begun | None:
        """Deletes the account with all that auth has of it, and defers the job that has the services follow.

        None where it was begun before. Raises NotFound (USER_NOT_FOUND) and FailedPrecondition (LAST_ADMINISTRATOR).
        """
        async with self._database.service_transaction() as connection:
            await bound_ending(connection)
            await exclude_administrators(connection)
            try:
                account = await lock_user(connection, user_id)
            except NotFound:
                if await _read(connection, user_id) is not None:
                    return None
                raise
            if loses_rights(account, {"is_active": False}):
                await require_another_administrator(connection, user_id)
            ended = [account.standing_id, *await _told_sessions(connection, user_id, self._told_seconds)]
            await end_identities(connection, ended)
            await connection.execute(delete(users).where(users.c.id == user_id))
            await _forget_addresses(connection, user_id)
            await note_event(connection, _DELETED, user_id=user_id, origin=_nowhere(origin, user_id))
            await connection.execute(insert(deletions).values(user_id=user_id))
            await _require_services(connection, user_id, services)
            await self._jobs.defer(connection, PURGE_USER, user_id=user_id)
            deletion = await _read(connection, user_id)
        if deletion is None:
            raise RuntimeError("a deletion that was just begun is not there")
        return Begun(deletion, ended, account)

    async def read(self, user_id: str) -> Deletion:
        """How far it is. Raises NotFound (USER_NOT_FOUND) where nobody of that id was deleted."""
        async with self._database.service_transaction() as connection:
            deletion = await _read(connection, user_id)
        if deletion is None:
            raise user_not_found(user_id)
        return deletion

    async def require(self, user_id: str, services: Collection[str]) -> Deletion | None:
        """How far it is, with these services among those that must confirm: one may have been added since it began.

        None where it is not known any more.
        """
        known = select(deletions.c.user_id).where(deletions.c.user_id == user_id).with_for_update(key_share=True)
        async with self._database.service_transaction() as connection:
            if (await connection.execute(known)).one_or_none() is None:
                return None
            await _require_services(connection, user_id, services)
            return await _read(connection, user_id)

    async def note_answer(self, user_id: str, service: str, *, refusal: str) -> None:
        """Notes that a service was asked: it confirmed, or refused for a reason. A confirmation stays."""
        values = {"attempts": deletion_services.c.attempts + 1, "last_reason": refusal}
        if not refusal:
            values["confirm_time"] = func.now()
        row = (deletion_services.c.user_id == user_id) & (deletion_services.c.service == service)
        async with self._database.service_transaction() as connection:
            await connection.execute(
                update(deletion_services).where(row, deletion_services.c.confirm_time.is_(None)).values(values)
            )

    async def complete(self, user_id: str) -> bool:
        """Notes the end, once every service has confirmed; whether they have. Idempotent."""
        missing = select(deletion_services.c.service).where(
            deletion_services.c.user_id == user_id, deletion_services.c.confirm_time.is_(None)
        )
        ending = update(deletions).where(
            deletions.c.user_id == user_id, deletions.c.complete_time.is_(None), ~missing.exists()
        )
        async with self._database.service_transaction() as connection:
            if (await connection.execute(ending.values(complete_time=func.now()))).rowcount:
                # Once more: a sign-in whose password was being looked at has noted where it came from.
                await _forget_addresses(connection, user_id)
                await note_event(connection, "deletion_completed", user_id=user_id, origin=Origin())
            deletion = await _read(connection, user_id)
        return deletion is None or deletion.complete_time is not None

    async def sweep(self, *, keep_seconds: float, batch: int) -> int:
        """Deletes up to `batch` deletions that were asked for so long ago and are complete; returns how many."""
        old = select(deletions.c.user_id).where(
            deletions.c.request_time < func.now() - interval(keep_seconds), deletions.c.complete_time.is_not(None)
        )
        chosen = old.limit(batch).with_for_update(skip_locked=True).scalar_subquery()
        async with self._database.service_transaction() as connection:
            return (await connection.execute(delete(deletions).where(deletions.c.user_id.in_(chosen)))).rowcount


def _nowhere(origin: Origin, user_id: str) -> Origin:
    """Of the users' own deletion the address is forgotten like all others of theirs."""
    return Origin(origin.actor_id) if origin.actor_id == user_id else origin


async def _told_sessions(connection: AsyncConnection, user_id: str, told_seconds: float) -> Sequence[str]:
    """The sessions whose access tokens may still live: their rows go with the account, and the feed must tell of them."""
    lately = sessions.c.end_time.is_(None) | (sessions.c.end_time > func.now() - interval(told_seconds))
    return (await connection.execute(select(sessions.c.id).where(sessions.c.user_id == user_id, lately))).scalars().all()


async def _forget_addresses(connection: AsyncConnection, user_id: str) -> None:
    # Who deleted them is somebody else, whose address stays.
    of_them = (audit_events.c.user_id == user_id) & (audit_events.c.kind != _DELETED)
    theirs = of_them | (audit_events.c.actor_id == user_id)
    await connection.execute(update(audit_events).where(theirs, audit_events.c.address.is_not(None)).values(address=None))


async def _require_services(connection: AsyncConnection, user_id: str, services: Collection[str]) -> None:
    values = [{"user_id": user_id, "service": service} for service in services]
    adding = insert(deletion_services).values(values).on_conflict_do_nothing(index_elements=["user_id", "service"])
    await connection.execute(adding)


async def _read(connection: AsyncConnection, user_id: str) -> Deletion | None:
    query = (
        select(
            deletions.c.request_time,
            deletions.c.complete_time,
            deletion_services.c.service,
            deletion_services.c.confirm_time,
            deletion_services.c.attempts,
            deletion_services.c.last_reason,
        )
        .outerjoin(deletion_services, deletion_services.c.user_id == deletions.c.user_id)
        .where(deletions.c.user_id == user_id)
        .order_by(deletion_services.c.service)
    )
    rows = (await connection.execute(query)).all()
    if not rows:
        return None
    services = tuple(
        ServiceDeletion(row.service, row.confirm_time, row.attempts, row.last_reason) for row in rows if row.service
    )
    return Deletion(user_id, rows[0].request_time, rows[0].complete_time, services)
