"""The standing duty that keeps memory in step with what is said: many conversations in few calls.

Invariants: at least once, by marks in the database that go only after memory has confirmed (record_store.py); memory that is
away is asked again ever more rarely and costs no turn anything; nobody waits for this, nor for a user whose memories are
being changed: of those memory is told later. It forgets nothing: deletions and edits are jobs (recording.py), whose order
with what is told here does not matter to memory.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Final

import structlog

from services.chat.memory.client import LeftOut, MemoryClient
from services.chat.record_store import RecordStore
from services.chat.unrecorded import OwedTurns, Unrecorded
from services.runtime.database import DATABASE_FAILURES
from services.runtime.errors import InvalidArgument, ServiceError, reason_name

log = structlog.get_logger(__name__)

CONVERSATIONS_AT_ONCE: Final = 200
# Well below what a gRPC server of ours takes, with one message of the greatest size beyond it.
_BYTES_AT_ONCE: Final = 3_000_000
# What ends within this time goes in one call. Until memory knows of a turn, chat adds it to the context by itself.
_GATHER_SECONDS: Final = 0.25
_SWEEP_SECONDS: Final = 3.0
_LONGEST_PAUSE_SECONDS: Final = 30.0


class Recorder:
    """Tells memory what has been said."""

    def __init__(self, store: RecordStore, memory: MemoryClient, unrecorded: Unrecorded) -> None:
        self._store = store
        self._memory = memory
        self._unrecorded = unrecorded

    async def follow(self) -> None:
        """Tells memory of the turns that this process ends, soon after. A standing duty."""
        failures = 0
        while True:
            await self._unrecorded.wait()
            await asyncio.sleep(_GATHER_SECONDS if failures == 0 else _pause(failures))
            ids = self._unrecorded.take(CONVERSATIONS_AT_ONCE)
            if await self._told(ids):
                failures = 0
            else:
                failures += 1
                for conversation_id in ids:
                    self._unrecorded.note(conversation_id)

    async def sweep(self) -> None:
        """Tells memory of what others left untold: processes that died, calls that failed. A standing duty."""
        failures = 0
        while True:
            await asyncio.sleep(_pause(failures) if failures else _SWEEP_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311
            failures = 0 if await self._swept() else failures + 1

    async def _swept(self) -> bool:
        try:
            ids = await self._store.claim_due(CONVERSATIONS_AT_ONCE)
        except DATABASE_FAILURES as error:
            log.warning("recorder.postponed", error=type(error).__name__)
            return False
        return not ids or await self._told(ids)

    async def _told(self, conversation_ids: Sequence[str]) -> bool:
        """Whether memory has confirmed what it is owed of these conversations, or will be told of them later."""
        try:
            owed = await self._store.read_owed(conversation_ids, most_bytes=_BYTES_AT_ONCE)
            busy = await self._tell([one for one in owed if one.messages])
            if told := [one for one in owed if one.conversation_id not in busy]:
                await self._store.settle(told)
            if busy:
                log.info("recorder.put_off", conversations=len(busy))
                await self._store.put_off([one for one in owed if one.conversation_id in busy])
        except ServiceError as error:
            log.warning("recorder.postponed", error=reason_name(error.reason), conversations=len(conversation_ids))
            return False
        except DATABASE_FAILURES as error:
            log.warning("recorder.postponed", error=type(error).__name__, conversations=len(conversation_ids))
            return False
        return True

    async def _tell(self, owed: Sequence[OwedTurns]) -> set[str]:
        """Tells memory of them; returns the conversations that it is to be told of again."""
        if not owed:
            return set()
        try:
            left_out = await self._memory.record_turns(owed)
        except InvalidArgument:
            if len(owed) > 1:
                return set().union(*[await self._tell([one]) for one in owed])
            left_out = LeftOut(refused=[owed[0].conversation_id], busy=[])
        if left_out.refused:
            # Not to be mended by telling it again.
            log.error("recorder.refused", conversation_ids=list(left_out.refused))
        return set(left_out.busy)


def _pause(failures: int) -> float:
    return float(min(2.0 ** min(failures, 10), _LONGEST_PAUSE_SECONDS) * random.uniform(0.8, 1.2))  # noqa: S311 - a beat
