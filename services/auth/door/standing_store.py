"""Every SQL statement about standing sessions and identities of other issuers. One public method is one transaction."""

from sqlalchemy import insert, select, update
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth.door.records import ExternalIdentity, Standing, StandingSession
from services.auth.records import Account, Origin
from services.auth.schema import external_identities, sessions, users
from services.auth.statements import (
    ACCOUNT,
    after,
    beyond,
    bound_ending,
    end_sessions,
    lock_unchanged,
    note_event,
    to_account,
)
from services.runtime.database import Database, violated_constraint

_TAKEN = frozenset({"users_username_key", "users_email_key", "external_identities_pkey"})


class StandingStore:
    """Sessions that stand for credentials which come with every call, and whose they are."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def keep_session(
        self, account: Account, standing: Standing, *, most_sessions: int, origin: Origin
    ) -> StandingSession | None:
        """The user's session of this kind, begun if there is none and prolonged if there is.

        A new one ends the least used beyond `most_sessions`. None when the account was deactivated or got another password
        since it was read. Two at once get the same session: the user's row is locked.
        """
        async with self._database.service_transaction() as connection:
            current = await lock_unchanged(connection, account)
            if current is None:
                return None
            session_id = await _prolong(connection, account.id, standing)
            if session_id is not None:
                return StandingSession(session_id, current)
            await bound_ending(connection)
            ended = await end_sessions(connection, "too_many", sessions.c.id.in_(beyond(account.id, most_sessions - 1)))
            values = {
                "user_id": account.id,
                "kind": standing.kind,
                "user_agent": standing.user_agent,
                "expire_time": after(standing.lifetime_seconds),
            }
            await note_event(connection, "signed_in", user_id=account.id, origin=origin, details=[standing.kind])
            begun = await connection.execute(insert(sessions).values(values).returning(sessions.c.id))
            return StandingSession(begun.scalar_one(), current, tuple(ended))

    async def find_external(self, identity: ExternalIdentity) -> Account | None:
        """The account that the identity is linked to."""
        query = (
            select(*ACCOUNT)
            .join(external_identities, external_identities.c.user_id == users.c.id)
            .where(external_identities.c.issuer == identity.issuer, external_identities.c.subject == identity.subject)
        )
        async with self._database.service_transaction() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else to_account(row)

    async def link(self, identity: ExternalIdentity, user_id: str) -> None:
        """Links the identity to the account; one that is linked already stays as it is."""
        values = {"issuer": identity.issuer, "subject": identity.subject, "user_id": user_id}
        async with self._database.service_transaction() as connection:
            await connection.execute(postgres_insert(external_identities).values(values).on_conflict_do_nothing())

    async def create_linked(
        self, identity: ExternalIdentity, *, username: str, email: str, password_hash: str, origin: Origin
    ) -> bool:
        """Creates an account for the identity; False when one of its names is taken, also by another call at once."""
        account = {"username": username, "email": email, "password_hash": password_hash}
        try:
            async with self._database.service_transaction() as connection:
                user_id = (await connection.execute(insert(users).values(account).returning(users.c.id))).scalar_one()
                values = {"issuer": identity.issuer, "subject": identity.subject, "user_id": user_id}
                await connection.execute(insert(external_identities).values(values))
                await note_event(connection, "registered", user_id=user_id, origin=origin, details=["external"])
        except IntegrityError as error:
            if violated_constraint(error) not in _TAKEN:
                raise
            return False
        return True


async def _prolong(connection: AsyncConnection, user_id: str, standing: Standing) -> str | None:
    """Expired ones too: the credentials that it stands for have just been shown."""
    prolonging = (
        update(sessions)
        .where(sessions.c.user_id == user_id, sessions.c.kind == standing.kind, sessions.c.end_time.is_(None))
        .values(last_used_time=after(0), expire_time=after(standing.lifetime_seconds))
        .returning(sessions.c.id)
    )
    found: str | None = (await connection.execute(prolonging)).scalar_one_or_none()
    return found
