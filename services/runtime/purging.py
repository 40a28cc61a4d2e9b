"""The fence around a user who is deleted: what keeps late writes from bringing anything back.

A row in `purged_users`, and triggers on the tables whose rows begin what a user has (migrations.fence_purged_users).
Invariant: once `put_up` has returned, whatever was written for the user is committed and can be deleted, and nothing more
is written, by whichever call, job or import: a statement that tries is refused, and its transaction with it. Writers share
an advisory lock of the user; putting the fence up waits for all of them.

The row holds the id, and for as long as the purge lasts the names of keys to delete elsewhere. It goes after a day, when no
token of the user can be good any more.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.calls import current_caller
from services.runtime.database import Database
from services.runtime.duties import repeat
from services.runtime.errors import PermissionDenied, Unavailable

SETTLE_SECONDS: Final = 3.0
"""Longer than a call that was under way goes on writing where no fence stands: to Redis."""
_KEEP_SECONDS: Final = 86_400.0
_SWEEP_SECONDS: Final = 3_600.0
_AUTH: Final = "auth"
_EXCLUDE: Final = sa.text("select pg_advisory_xact_lock(hashtextextended('parley purge ' || :user_id, 0))")
_PUT_UP: Final = sa.text(
    # Not `now()`, when it began to wait for who writes: since then it has kept out nobody.
    "insert into purged_users (user_id, purge_time) values (cast(:user_id as uuid), clock_timestamp())"
    " on conflict (user_id) do update"
    " set purge_time = purged_users.purge_time"
    " returning cast(extract(epoch from clock_timestamp() - purge_time) as double precision) as seconds, held_keys"
)
_HOLD: Final = sa.text(
    "update purged_users set held_keys = array(select distinct unnest(held_keys || cast(:held as text[])))"
    " where user_id = cast(:user_id as uuid)"
)
_RELEASE: Final = sa.text("update purged_users set held_keys = '{}' where user_id = cast(:user_id as uuid)")
_TAKE_DOWN: Final = sa.text("delete from purged_users where purge_time < now() - make_interval(secs => :keep)")


def purged_users_table(metadata: sa.MetaData) -> sa.Table:
    """The table of the fences, in the schema of a service; the migration is migrations.fence_purged_users."""
    return sa.Table(
        "purged_users",
        metadata,
        sa.Column("user_id", sa.Uuid(as_uuid=False), primary_key=True),
        sa.Column("purge_time", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("held_keys", sa.ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'::text[]")),
    )


@dataclass(frozen=True, slots=True)
class Standing:
    """How long a fence has stood, and the keys that are to be deleted beside the rows."""

    seconds: float
    held_keys: Sequence[str]

    @property
    def is_settled(self) -> bool:
        """Whether what was under way when it was put up is over."""
        return self.seconds >= SETTLE_SECONDS


class Fence:
    """The fences of one service. Every method is one transaction of the service, and idempotent."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put_up(self, user_id: str) -> Standing:
        """Waits for those who write for the user, and keeps everybody out from then on.

        With empty hands: nobody whom it waits for can wait for it. It waits as long as a statement may run.
        """
        async with self._database.service_transaction() as connection:
            await connection.execute(_EXCLUDE, {"user_id": user_id})
            row = (await connection.execute(_PUT_UP, {"user_id": user_id})).one()
        return Standing(row.seconds, row.held_keys)

    async def release_keys(self, user_id: str) -> None:
        """Forgets the names of keys that are gone."""
        async with self._database.service_transaction() as connection:
            await connection.execute(_RELEASE, {"user_id": user_id})

    async def sweep(self) -> int:
        """Takes fences down that nobody needs any more; returns how many."""
        async with self._database.service_transaction() as connection:
            return (await connection.execute(_TAKE_DOWN, {"keep": _KEEP_SECONDS})).rowcount


async def hold_keys(connection: AsyncConnection, user_id: str, keys: Collection[str]) -> None:
    """In the transaction that deletes the rows which tell of them: keeps the names of keys to delete."""
    if keys:
        await connection.execute(_HOLD, {"user_id": user_id, "held": list(keys)})


def require_auth() -> None:
    """Raises PermissionDenied unless auth calls for itself: nobody else has users deleted."""
    caller = current_caller()
    if caller.service != _AUTH or caller.user_id is not None:
        raise PermissionDenied("Only auth, for itself, may have a user deleted.", reasons.ERROR_REASON_ACCESS_DENIED)


def unfinished(waits_for: str) -> Unavailable:
    """The answer while not everything is known to be gone: asked again, the purge goes on."""
    return Unavailable(
        "The user's things are being deleted. Ask again.",
        reasons.ERROR_REASON_PURGE_UNFINISHED,
        metadata={"waits_for": waits_for},
        retry_delay_seconds=1,
    )


async def take_down(fence: Fence) -> None:
    """Takes down, for ever, the fences that nobody needs any more. A standing duty."""
    await repeat("purge_fences", fence.sweep, interval_seconds=_SWEEP_SECONDS)
