"""The seam to memory: the context of a turn, the user's memories, and the turns and deletions that memory is told of.

Owns the calls and their conversion. Invariant: every call has a deadline, and reaches only the user that it is made for. It
decides nothing: what to do without memory is the caller's business.
"""

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from google.protobuf import timestamp_pb2

from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.records import ContextMessage, Memory, Message, Remembered
from services.chat.unrecorded import OwedTurns, SaidMessage
from services.runtime.errors import DeadlineExceeded, peer_errors

MAX_RECORDED_MESSAGES = 100


@dataclass(frozen=True, slots=True)
class NewMemory:
    """A fact to be remembered: what it says and about whom, the message that it comes from, and how far it is trusted."""

    text: str
    subject: str
    attribute: str
    stamped_by: str
    conversation_id: str
    message_id: str
    request_id: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What memory has not taken: conversations `refused`, since it knows otherwise, and `busy`, to be told again later."""

    refused: Sequence[str]
    busy: Sequence[str]


class MemoryClient:
    """Memory, as chat uses it. Every method raises ServiceError when memory does not answer or refuses."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_seconds: float) -> None:
        self._memory = memory_pb2_grpc.MemoryServiceStub(channel)
        self._timeout_seconds = timeout_seconds

    async def assemble_context(
        self, conversation_id: str, *, token_budget: int, query: str, memory_token_budget: int, timeout_seconds: float
    ) -> Remembered:
        """The latest messages that fit the budget, oldest first, and up to which sequence memory knows the conversation.

        With a `query` also the summaries, and what is remembered about it.
        """
        request = memory_pb2.AssembleContextRequest(
            conversation_id=conversation_id, token_budget=token_budget, query=query,
            memory_token_budget=memory_token_budget,
        )  # fmt: skip
        try:
            # Around the call's own deadline, since the token for it may have to be fetched first.
            with peer_errors():
                async with asyncio.timeout(timeout_seconds):
                    answer = await self._memory.AssembleContext(request, timeout=timeout_seconds)
        except TimeoutError as error:
            raise DeadlineExceeded("Memory took too long.", reasons.ERROR_REASON_DEADLINE_PASSED) from error
        return Remembered(
            messages=[ContextMessage(one.sequence, one.role, one.text, one.revision) for one in answer.messages],
            last_sequence=answer.last_sequence,
            memories=[_memory(one) for one in answer.memories],
            person_summary=answer.person_summary,
            conversation_summary=answer.conversation_summary,
            degraded=list(answer.degraded),
        )

    async def add_memory(self, new: NewMemory) -> Memory:
        """Remembers a fact about the user that this call is made for. Idempotent by its request id, and by its words."""
        source = memory_pb2.MemorySource(conversation_id=new.conversation_id, message_id=new.message_id)
        request = memory_pb2.AddMemoryRequest(
            text=new.text, subject=new.subject, attribute=new.attribute, stamped_by=new.stamped_by,
            request_id=new.request_id, source=source,
        )  # fmt: skip
        with peer_errors():
            return _memory(await self._memory.AddMemory(request, timeout=self._timeout_seconds))

    async def search_memories(self, query: str, *, limit: int) -> list[Memory]:
        """What is remembered of the user about something, the best first."""
        request = memory_pb2.SearchMemoriesRequest(query=query, limit=limit)
        with peer_errors():
            answer = await self._memory.SearchMemories(request, timeout=self._timeout_seconds)
        return [_memory(found.memory) for found in answer.memories]

    async def delete_memory(self, memory_id: str) -> None:
        """Deletes a fact of the user for good. Raises NotFound (MEMORY_NOT_FOUND)."""
        with peer_errors():
            request = memory_pb2.DeleteMemoryRequest(memory_id=memory_id)
            await self._memory.DeleteMemory(request, timeout=self._timeout_seconds)

    async def record_turn(self, conversation_id: str, messages: Sequence[Message]) -> None:
        """Tells memory of messages, in order. Idempotent by message and revision."""
        for begin in range(0, len(messages), MAX_RECORDED_MESSAGES):
            part = messages[begin : begin + MAX_RECORDED_MESSAGES]
            request = memory_pb2.RecordTurnRequest(
                conversation_id=conversation_id, messages=[_recorded(message) for message in part]
            )
            with peer_errors():
                await self._memory.RecordTurn(request, timeout=self._timeout_seconds)

    async def record_turns(self, owed: Sequence[OwedTurns]) -> LeftOut:
        """Tells memory of messages of many conversations, at once. Idempotent by message and revision.

        Nobody waits for a user whose memories somebody else is changing: they are busy.
        """
        request = memory_pb2.RecordTurnsRequest(conversations=[_owed(one) for one in owed], skip_busy=True)
        with peer_errors():
            answer = await self._memory.RecordTurns(request, timeout=self._timeout_seconds)
        return LeftOut(answer.refused_conversation_ids, answer.busy_conversation_ids)

    async def forget_conversation(self, conversation_id: str) -> None:
        """Makes memory forget a conversation for good. Idempotent."""
        await self._invalidate(conversation_id, from_sequence=0)

    async def forget_end(self, conversation_id: str, *, from_sequence: int) -> None:
        """Makes memory forget what it knows now of a conversation from a sequence on. Idempotent."""
        await self._invalidate(conversation_id, from_sequence=from_sequence)

    async def _invalidate(self, conversation_id: str, *, from_sequence: int) -> None:
        request = memory_pb2.InvalidateContextRequest(conversation_id=conversation_id, from_sequence=from_sequence)
        with peer_errors():
            await self._memory.InvalidateContext(request, timeout=self._timeout_seconds)


def _memory(told: memory_pb2.Memory) -> Memory:
    begin_time = told.valid_from_time if told.HasField("valid_from_time") else told.record_time
    end_time = next((getattr(told, name) for name in ("valid_to_time", "invalidate_time") if told.HasField(name)), None)
    return Memory(
        id=told.id,
        kind=told.kind,
        text=told.text,
        stamped_by=told.stamped_by or told.role,
        begin_time=begin_time.ToDatetime(dt.UTC),
        end_time=None if end_time is None else end_time.ToDatetime(dt.UTC),
        conversation_id=told.conversation_id,
        sequence=told.sequence,
    )


def _owed(owed: OwedTurns) -> memory_pb2.ConversationTurns:
    messages = [_recorded(message) for message in owed.messages]
    return memory_pb2.ConversationTurns(user_id=owed.user_id, conversation_id=owed.conversation_id, messages=messages)


def _recorded(message: Message | SaidMessage) -> memory_pb2.ContextMessage:
    create_time = timestamp_pb2.Timestamp()
    create_time.FromDatetime(message.create_time)
    return memory_pb2.ContextMessage(
        message_id=message.id,
        sequence=message.sequence,
        role=message.role,
        text=message.text,
        revision=message.revision,
        create_time=create_time,
    )
