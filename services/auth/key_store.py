"""Every SQL statement about signing keys. One public method is one transaction, of the service itself.

When the next key is due and when it begins to sign is decided here, by the database's clock and under a lock, so that
several processes agree.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, delete, func, insert, or_, select, text, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth.records import StoredKey
from services.auth.schema import signing_keys
from services.runtime.database import Database, interval

_LOCK = text("select pg_advisory_xact_lock(hashtext('auth signing keys'))")


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """How long a key signs, how long it is published before, and how long after, in seconds."""

    signing_seconds: float
    ahead_seconds: float
    behind_seconds: float


class KeyStore:
    """The signing keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load_keys(self) -> list[StoredKey]:
        """Every key that is published, in the order in which they sign."""
        async with self._database.service_transaction() as connection:
            return await _load(connection)

    async def replace_form(self, kid: str, *, held: bytes, sealed: bytes) -> bool:
        """Keeps the same key in another form, if it is still held in this one; of several processes one does."""
        replacing = update(signing_keys).where(signing_keys.c.kid == kid, signing_keys.c.private_key == held)
        async with self._database.service_transaction() as connection:
            return bool((await connection.execute(replacing.values(private_key=sealed))).rowcount)

    async def is_key_due(self, plan: KeyPlan) -> bool:
        """Whether the next key should be published, or an old one go."""
        query = select(or_(_next_is_due(plan), _over(plan).exists()))
        async with self._database.service_transaction() as connection:
            return bool((await connection.execute(query)).scalar_one())

    async def add_key(self, *, kid: str, private_key: bytes, plan: KeyPlan) -> bool:
        """Adds the key as the next one if one is due, and deletes those that no living token can need.

        The first key signs at once; a next one when its predecessor's time is over, but never before it was published
        for `ahead_seconds`. Returns whether the key was added; of several processes that try at once, one adds.
        """
        async with self._database.service_transaction() as connection:
            await connection.execute(_LOCK)
            await connection.execute(delete(signing_keys).where(signing_keys.c.kid.in_(_over(plan))))
            if not (await connection.execute(select(_next_is_due(plan)))).scalar_one():
                return False
            newest = select(func.max(signing_keys.c.activate_time)).scalar_subquery()
            next_time = func.greatest(newest + interval(plan.signing_seconds), func.now() + interval(plan.ahead_seconds))
            activate = case((newest.is_(None), func.now()), else_=next_time)
            values = {"kid": kid, "private_key": private_key, "activate_time": activate}
            await connection.execute(insert(signing_keys).values(values))
            return True


async def _load(connection: AsyncConnection) -> list[StoredKey]:
    query = select(signing_keys.c.kid, signing_keys.c.activate_time, signing_keys.c.private_key)
    rows = await connection.execute(query.order_by(signing_keys.c.activate_time))
    return [StoredKey(row.kid, row.activate_time, row.private_key) for row in rows]


def _next_is_due(plan: KeyPlan) -> Any:
    """Whether there is no key, or the newest one's time to sign ends within `ahead_seconds`."""
    end = func.max(signing_keys.c.activate_time) + interval(plan.signing_seconds - plan.ahead_seconds)
    return func.coalesce(select(end <= func.now()).scalar_subquery(), true())


def _over(plan: KeyPlan) -> Any:
    """Keys whose successor has been signing for `behind_seconds`."""
    newer = signing_keys.alias("newer")
    successor_signs = newer.c.activate_time < func.now() - interval(plan.behind_seconds)
    follows = newer.c.activate_time > signing_keys.c.activate_time
    return select(signing_keys.c.kid).where(select(newer.c.kid).where(follows, successor_signs).exists())
