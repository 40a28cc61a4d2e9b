"""MemoryService over gRPC: the RPCs stand beside what they call, and come together here."""

from services.memory.context_servicer import ContextRpcs
from services.memory.conversation_memory import ConversationMemory
from services.memory.unfinished import Unfinished


class MemoryServicer(ContextRpcs, Unfinished):
    """The RPCs of parley.memory.v1.MemoryService."""

    def __init__(self, *, memory: ConversationMemory) -> None:
        self._memory = memory
