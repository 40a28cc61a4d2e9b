"""What goes with time: texts and calls of numbers that are nobody's, and the memory of purges."""

from typing import Final

from services.sms.call_store import CallStore
from services.sms.erasure_store import ErasureStore
from services.sms.inbox_store import InboxStore

_DAY_SECONDS: Final = 86_400
_BATCH: Final = 1_000


class Upkeep:
    """Deletes what is old."""

    def __init__(self, inbox: InboxStore, calls: CallStore, erasure: ErasureStore, *, unmatched_days: float) -> None:
        self._inbox = inbox
        self._calls = calls
        self._erasure = erasure
        self._unmatched_seconds = unmatched_days * _DAY_SECONDS

    async def sweep(self) -> None:
        """One batch of each. A standing duty, of every replica."""
        await self._inbox.delete_unmatched(older_than_seconds=self._unmatched_seconds, limit=_BATCH)
        await self._calls.delete_unmatched(older_than_seconds=self._unmatched_seconds, limit=_BATCH)
        await self._erasure.forget_purges()
