"""The sweep of evictions: text that was forgotten while Redis was away goes when it is back.

Invariant: an eviction is owed in the database until Redis has confirmed it, also across restarts; any number of processes
may sweep at once. It cannot hurry Redis: until then the text is there for the rest of its half hour, and unreachable.
"""

from typing import Final

from services.memory.conversation_memory import ConversationMemory
from services.runtime.duties import repeat

_BATCH: Final = 500


async def sweep_evictions(memory: ConversationMemory, *, interval_seconds: float) -> None:
    """Settles owed evictions for ever, every `interval_seconds`. A standing duty."""

    async def sweep() -> None:
        while await memory.settle_owed(_BATCH):
            pass

    await repeat("eviction_sweep", sweep, interval_seconds=interval_seconds)
