"""Facts that were asked to be forgotten at a time: the chore that does it when it comes, and a sweep for what it missed.

Invariant: what has expired is shown by no statement from that moment on; these only take it away. Any number of processes
may do so at once.
"""

from collections.abc import Sequence
from typing import Final

from services.memory.facts.store import FactStore
from services.memory.upkeep.runner import Chore
from services.memory.upkeep.store import Owed
from services.runtime.duties import repeat

_BATCH: Final = 50
_SWEPT_AT_ONCE: Final = 500


def expiry_chore(store: FactStore) -> Chore:
    """Deletes the facts of users whose time has come."""

    async def work(owed: Sequence[Owed]) -> None:
        for one in owed:
            await store.expire(one.user_id)

    return Chore("expire", work, batch=_BATCH)


async def sweep_expired(store: FactStore, *, interval_seconds: float) -> None:
    """Deletes for ever what has expired and nobody was told of, every `interval_seconds`. A standing duty."""

    async def sweep() -> None:
        while users := await store.users_with_expired(_SWEPT_AT_ONCE):
            for user_id in users:
                await store.expire(user_id)

    await repeat("expiry_sweep", sweep, interval_seconds=interval_seconds)
