"""SQL that accounts and sessions share: a session's begin and end, an identity's end, what is noted, and what an account is.

Inside a transaction of a store, never by itself.
"""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, Text, Uuid, and_, cast, func, insert, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth.records import Account, NewSession, Origin, StartedSession
from services.auth.schema import audit_events, ended_identities, refresh_tokens, sessions, users
from services.runtime.database import interval

ENDING_SECONDS = 10
"""How long after its end_time a session's end is committed at the latest: the feed looks back further than this."""

Record = Row[*tuple[Any, ...]]
ACCOUNT = (
    users.c.id,
    users.c.username,
    users.c.email,
    users.c.phone_number,
    users.c.is_active,
    users.c.is_admin,
    users.c.credential_version,
    # Before the first deactivation made of the id, which it does not tell: it stays known for a while after a deletion.
    func.coalesce(users.c.standing_id, cast(func.md5("standing " + cast(users.c.id, Text)), Uuid(as_uuid=False))).label(
        "standing_id"
    ),
    users.c.create_time,
    users.c.update_time,
)
OPEN = and_(sessions.c.end_time.is_(None), sessions.c.expire_time > func.now())
_BOUND = text(f"select set_config('transaction_timeout', '{ENDING_SECONDS}s', true)")


def to_account(row: Record) -> Account:
    """The account in a row that holds the columns of ACCOUNT."""
    return Account(*(getattr(row, column.name) for column in ACCOUNT))


async def bound_ending(connection: AsyncConnection) -> None:
    """Comes before `end_sessions` in its transaction, which then commits within ENDING_SECONDS or not at all."""
    await connection.execute(_BOUND)


async def end_sessions(connection: AsyncConnection, cause: str, which: ColumnElement[bool]) -> Sequence[str]:
    """Ends those that are open; returns their ids."""
    ending = update(sessions).where(which, OPEN).values(end_time=func.now(), end_cause=cause).returning(sessions.c.id)
    return list((await connection.execute(ending)).scalars())


async def end_identities(connection: AsyncConnection, ids: Collection[str]) -> None:
    """Tells the feed of sessions and standings that have no open row any more. Comes after `bound_ending`."""
    if ids:
        ending = postgresql.insert(ended_identities).values([{"id": one} for one in ids])
        await connection.execute(ending.on_conflict_do_nothing(index_elements=["id"]))


async def note_event(
    connection: AsyncConnection, kind: str, *, user_id: str | None, origin: Origin, details: Collection[str] = ()
) -> None:
    """Adds to the audit log, in a transaction of the service: what was done is noted if and only if it was done."""
    values = {"kind": kind, "user_id": user_id, "actor_id": origin.actor_id, "address": origin.address}
    await connection.execute(insert(audit_events).values(**values, details=list(details)))


async def start_session(
    connection: AsyncConnection, account: Account, new: NewSession, *, ended_ids: tuple[str, ...] = ()
) -> StartedSession:
    """A new session of the account, with its first refresh token."""
    values = {"user_id": account.id, "user_agent": new.user_agent, "expire_time": after(new.lifetime_seconds)}
    starting = insert(sessions).values(values).returning(sessions.c.id, sessions.c.generation, sessions.c.expire_time)
    row = (await connection.execute(starting)).one()
    await add_refresh_token(connection, row, account.id, new.refresh_digest)
    return StartedSession(account, row.id, row.expire_time, ended_ids)


async def add_refresh_token(connection: AsyncConnection, session: Record, user_id: str, digest: bytes) -> None:
    """Adds a token of the session's present generation; `session` holds its id, generation and expire_time."""
    await connection.execute(
        insert(refresh_tokens).values(
            digest=digest,
            session_id=session.id,
            user_id=user_id,
            generation=session.generation,
            expire_time=session.expire_time,
        )
    )


async def lock_unchanged(connection: AsyncConnection, account: Account) -> Account | None:
    """The account as it is, its row locked, if its password is still the one that was checked and it may still sign in."""
    query = select(*ACCOUNT).where(
        users.c.id == account.id, users.c.credential_version == account.credential_version, users.c.is_active
    )
    row = (await connection.execute(query.with_for_update(key_share=True))).one_or_none()
    return None if row is None else to_account(row)


def beyond(user_id: str, kept: int) -> Any:
    """The open sessions of a user but the `kept` that were used last."""
    return (
        select(sessions.c.id)
        .where(sessions.c.user_id == user_id, OPEN)
        .order_by(sessions.c.last_used_time.desc(), sessions.c.id.desc())
        .offset(kept)
        .scalar_subquery()
    )


def after(seconds: float) -> Any:
    """The database's time in so many seconds."""
    return func.now() + interval(seconds)
