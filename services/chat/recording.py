"""The jobs that keep memory in step: what was said, and what is to be forgotten.

Owns the two handlers. Both are idempotent, read what they send when they run, and are repeated by the queue until memory has
confirmed; a turn whose conversation is gone needs nothing any more.
"""

from services.chat.generation_store import FORGET_CONVERSATION, RECORD_TURN
from services.chat.memory import MemoryClient
from services.chat.message_store import MessageStore
from services.runtime.calls import acting_for
from services.runtime.jobs import Jobs


class Recording:
    """Tells memory, on behalf of the users."""

    def __init__(self, store: MessageStore, memory: MemoryClient) -> None:
        self._store = store
        self._memory = memory

    def register(self, jobs: Jobs) -> None:
        """Makes the queue know the handlers."""
        jobs.register(RECORD_TURN, self._record)
        jobs.register(FORGET_CONVERSATION, self._forget)

    async def _record(self, *, conversation_id: str, last_sequence: int) -> None:
        found = await self._store.read_recordable(conversation_id, last_sequence=last_sequence)
        if found is None:
            return
        user_id, messages = found
        with acting_for(user_id):
            await self._memory.record_turn(conversation_id, messages)

    async def _forget(self, *, conversation_id: str, user_id: str) -> None:
        with acting_for(user_id):
            await self._memory.forget_conversation(conversation_id)
