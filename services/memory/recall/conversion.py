"""What recall has found, as messages of the contract: for a search, and for a context."""

from parley.memory.v1 import memory_pb2
from services.memory.messages import memory_of_fact, memory_of_turn
from services.memory.recall.search import Found


def memory_of_found(found: Found) -> memory_pb2.Memory:
    """What recall has found, as a memory."""
    if found.fact is not None:
        return memory_of_fact(found.fact)
    if found.turn is None:
        raise ValueError("something that was found is a fact or a message")
    return memory_of_turn(found.turn.turn, conversation_id=found.turn.conversation_id, record_time=found.turn.record_time)
