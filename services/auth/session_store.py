"""Every SQL statement about sessions that have begun. One public method is one transaction.

Of refreshes at once the session's row lock makes a queue. Locks are taken in one order: the user's row, then session rows;
what ends several sessions at once holds the user's row.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_, delete, func, select, union_all, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth.records import OpenSession, Origin, ReusedToken, StartedSession
from services.auth.schema import ended_identities, refresh_tokens, sessions, users
from services.auth.statements import (
    ACCOUNT,
    OPEN,
    Record,
    add_refresh_token,
    after,
    bound_ending,
    end_sessions,
    note_event,
    to_account,
)
from services.runtime.database import Database, interval


class SessionStore:
    """Sessions and their refresh tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def refresh(
        self, *, presented: bytes, replacement: bytes, grace_seconds: float, lifetime_seconds: float, origin: Origin
    ) -> StartedSession | ReusedToken | None:
        """Trades the refresh token with digest `presented` for one with digest `replacement`.

        The token of the session's generation opens the next one; the one before may be traded for another of this
        generation within the grace time; older ones end the session, once. None for a token that is worth nothing.
        """
        async with self._database.service_transaction() as connection:
            await bound_ending(connection)
            row = await _lock_presented(connection, presented, grace_seconds)
            if row is None:
                return None
            if not (row.is_newest or row.is_in_grace):
                await end_sessions(connection, "token_reused", sessions.c.id == row.session_id)
                await note_event(connection, "session_family_revoked", user_id=row.id, origin=origin)
                return ReusedToken(session_id=row.session_id, user_id=row.id)
            used = _use(row.session_id, lifetime_seconds, opens_next=row.is_newest)
            session = (await connection.execute(used)).one()
            await add_refresh_token(connection, session, row.id, replacement)
            return StartedSession(to_account(row), session.id, session.expire_time)

    async def list_sessions(self, user_id: str, *, before_id: str | None, limit: int) -> list[OpenSession]:
        """Open sessions of the user, the newest first, from the one before `before_id`. One query."""
        query = (
            select(
                sessions.c.id,
                sessions.c.user_agent,
                sessions.c.create_time,
                sessions.c.last_used_time,
                sessions.c.expire_time,
            )
            .where(sessions.c.user_id == user_id, OPEN)
            .order_by(sessions.c.id.desc())
            .limit(limit)
        )
        if before_id is not None:
            query = query.where(sessions.c.id < before_id)
        async with self._database.transaction(user_id=user_id) as connection:
            rows = (await connection.execute(query)).all()
        return [OpenSession(**row._mapping) for row in rows]  # noqa: SLF001

    async def end_session(self, user_id: str, session_id: str, *, cause: str) -> Sequence[str]:
        """Ends one open session of the user; returns its id, nothing when there is no such open session."""
        async with self._database.transaction(user_id=user_id) as connection:
            await bound_ending(connection)
            return await end_sessions(connection, cause, and_(sessions.c.user_id == user_id, sessions.c.id == session_id))

    async def end_all_sessions(self, user_id: str, *, cause: str) -> Sequence[str]:
        """Ends every open session of the user; returns their ids."""
        async with self._database.transaction(user_id=user_id) as connection:
            await bound_ending(connection)
            await connection.execute(select(users.c.id).where(users.c.id == user_id).with_for_update(key_share=True))
            return await end_sessions(connection, cause, sessions.c.user_id == user_id)

    async def ended_within(self, seconds: float) -> list[str]:
        """Ids of the sessions and standings that ended within the last `seconds`, in the order in which they ended."""
        since = func.now() - interval(seconds)
        ended = select(sessions.c.id, sessions.c.end_time).where(sessions.c.end_time > since)
        gone = select(ended_identities.c.id, ended_identities.c.end_time).where(ended_identities.c.end_time > since)
        both = union_all(ended, gone).subquery()
        query = select(both.c.id).order_by(both.c.end_time)
        async with self._database.service_transaction() as connection:
            return list((await connection.execute(query)).scalars())

    async def sweep(self, *, keep_seconds: float, batch: int) -> int:
        """Deletes up to `batch` sessions that ended or expired `keep_seconds` ago, and as many expired refresh tokens.

        Returns how many rows went. Rows that another process has locked are left to it.
        """
        past = func.now() - interval(keep_seconds)
        gone = select(sessions.c.id).where((sessions.c.end_time < past) | (sessions.c.expire_time < past))
        stale = select(refresh_tokens.c.digest).where(refresh_tokens.c.expire_time < func.now())
        told = select(ended_identities.c.id).where(ended_identities.c.end_time < past)
        swept: list[tuple[Any, Any, Any]] = [
            (sessions, sessions.c.id, gone),
            (refresh_tokens, refresh_tokens.c.digest, stale),
            (ended_identities, ended_identities.c.id, told),
        ]
        async with self._database.service_transaction() as connection:
            removed = 0
            for table, key, rows in swept:
                chosen = rows.limit(batch).with_for_update(skip_locked=True).scalar_subquery()
                removed += (await connection.execute(delete(table).where(key.in_(chosen)))).rowcount
            return removed


async def _lock_presented(connection: AsyncConnection, digest: bytes, grace_seconds: float) -> Record | None:
    """The open session of a refresh token, locked, with what the token is worth in it.

    Only the session is locked: the token's row never changes, and locking users would make every refresh wait for sign-ins.
    """
    age = func.extract("epoch", func.now() - sessions.c.rotate_time)
    newest = refresh_tokens.c.generation == sessions.c.generation
    before = refresh_tokens.c.generation == sessions.c.generation - 1
    query = (
        select(
            *ACCOUNT,
            sessions.c.id.label("session_id"),
            newest.label("is_newest"),
            and_(before, age <= grace_seconds).label("is_in_grace"),
        )
        .join_from(refresh_tokens, sessions, sessions.c.id == refresh_tokens.c.session_id)
        .join(users, users.c.id == sessions.c.user_id)
        .where(refresh_tokens.c.digest == digest, refresh_tokens.c.expire_time > func.now(), OPEN, users.c.is_active)
    )
    return (await connection.execute(query.with_for_update(of=sessions))).one_or_none()


def _use(session_id: str, lifetime_seconds: float, *, opens_next: bool) -> Any:
    values: dict[str, Any] = {"last_used_time": func.now(), "expire_time": after(lifetime_seconds)}
    if opens_next:
        values |= {"generation": sessions.c.generation + 1, "rotate_time": func.now()}
    return (
        update(sessions)
        .where(sessions.c.id == session_id)
        .values(values)
        .returning(sessions.c.id, sessions.c.generation, sessions.c.expire_time)
    )
