"""The jobs that keep memory in step: what was said, what was said anew, and what is to be forgotten.

Owns the three handlers. All are idempotent, read what they send when they run, and are repeated by the queue until memory
has confirmed; a turn whose conversation is gone needs nothing any more. They may run in any order: of two messages in one
place memory keeps the later written by itself, and what stands where something was forgotten is told anew.
"""

from services.chat.generation_store import FORGET_CONVERSATION, RECORD_TURN
from services.chat.memory.client import MemoryClient
from services.chat.message_store import MessageStore
from services.chat.versions import FORGET_REPLACED
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
        jobs.register(FORGET_REPLACED, self._forget_replaced)

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

    async def _forget_replaced(self, *, conversation_id: str, user_id: str, from_sequence: int) -> None:
        """Makes memory forget what it knows from a sequence on, and be told what stands there now.

        Which of it was told already is not known here: so all of it is told as newer than what was forgotten.
        """
        with acting_for(user_id):
            await self._memory.forget_end(conversation_id, from_sequence=from_sequence)
        await self._store.revise_from(conversation_id, user_id=user_id, sequence=from_sequence)
