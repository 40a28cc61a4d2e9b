"""What memory keeps, as messages of the contract.

Owns the conversion that the servicers of memory share: both ways for messages of a conversation, one way for the rest.
"""

import uuid
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from parley.memory.v1 import memory_pb2
from services.memory.records import Fact
from services.memory.tokens import message_tokens
from services.memory.turns import Turn


def memory_of_fact(fact: Fact) -> memory_pb2.Memory:
    """A fact as a memory."""
    return memory_pb2.Memory(
        id=fact.id,
        kind="fact",
        text=fact.text,
        subject=fact.subject,
        attribute=fact.attribute,
        importance=fact.importance,
        stamped_by=fact.stamped_by,
        valid_from_time=timestamp(fact.valid_from),
        valid_to_time=timestamp(fact.valid_to),
        record_time=timestamp(fact.record_time),
        invalidate_time=timestamp(fact.invalidate_time),
        superseded_by=fact.superseded_by or "",
        expire_time=timestamp(fact.expire_time),
        sources=[
            memory_pb2.MemorySource(conversation_id=source.conversation_id, message_id=source.message_id)
            for source in fact.sources
        ],
    )


def memory_of_turn(turn: Turn, *, conversation_id: str, record_time: datetime | None) -> memory_pb2.Memory:
    """A message as a memory. Its role stamps it."""
    return memory_pb2.Memory(
        id=turn.message_id,
        kind="message",
        text=turn.text,
        stamped_by=turn.role,
        valid_from_time=timestamp(turn.create_time),
        record_time=timestamp(record_time),
        conversation_id=conversation_id,
        sequence=turn.sequence,
        role=turn.role,
    )


def told_message(turn: Turn) -> memory_pb2.ContextMessage:
    """A turn as a message of its conversation."""
    return memory_pb2.ContextMessage(
        message_id=turn.message_id,
        sequence=turn.sequence,
        role=turn.role,
        text=turn.text,
        revision=turn.revision,
        create_time=timestamp(turn.create_time),
    )


def turn_of_message(message: memory_pb2.ContextMessage) -> Turn:
    """A message of a conversation as a turn."""
    return Turn(
        message_id=str(uuid.UUID(message.message_id)),
        sequence=message.sequence,
        role=message.role,
        text=message.text,
        revision=message.revision,
        create_time=message.create_time.ToDatetime(tzinfo=UTC),
        token_count=message_tokens(message.text),
    )


def timestamp(time: datetime | None) -> Timestamp | None:
    """A time of the contract; None stays absent."""
    if time is None:
        return None
    converted = Timestamp()
    converted.FromDatetime(time)
    return converted
