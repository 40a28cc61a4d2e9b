"""The seam to the memory service: the context of a turn, and the turns and deletions that memory is told of.

Owns the calls and their conversion. Invariant: every call has a deadline. It decides nothing: what to do without memory is
the caller's business.
"""

import asyncio
from collections.abc import Sequence

import grpc
from google.protobuf import timestamp_pb2

from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.records import ContextMessage, Message
from services.chat.unrecorded import OwedTurns, SaidMessage
from services.runtime.errors import DeadlineExceeded, peer_errors

MAX_RECORDED_MESSAGES = 100


class MemoryClient:
    """Memory, as chat uses it. Every method raises ServiceError when memory does not answer or refuses."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_seconds: float) -> None:
        self._memory = memory_pb2_grpc.MemoryServiceStub(channel)
        self._timeout_seconds = timeout_seconds

    async def assemble_context(
        self, conversation_id: str, *, token_budget: int, timeout_seconds: float
    ) -> tuple[list[ContextMessage], int]:
        """The latest messages that fit the budget, oldest first, and up to which sequence memory knows the conversation."""
        request = memory_pb2.AssembleContextRequest(conversation_id=conversation_id, token_budget=token_budget)
        try:
            # Around the call's own deadline, since the token for it may have to be fetched first.
            with peer_errors():
                async with asyncio.timeout(timeout_seconds):
                    answer = await self._memory.AssembleContext(request, timeout=timeout_seconds)
        except TimeoutError as error:
            raise DeadlineExceeded("Memory took too long.", reasons.ERROR_REASON_DEADLINE_PASSED) from error
        known = [ContextMessage(one.sequence, one.role, one.text, one.revision) for one in answer.messages]
        return known, answer.last_sequence

    async def record_turn(self, conversation_id: str, messages: Sequence[Message]) -> None:
        """Tells memory of messages, in order. Idempotent by message and revision."""
        for begin in range(0, len(messages), MAX_RECORDED_MESSAGES):
            part = messages[begin : begin + MAX_RECORDED_MESSAGES]
            request = memory_pb2.RecordTurnRequest(
                conversation_id=conversation_id, messages=[_recorded(message) for message in part]
            )
            with peer_errors():
                await self._memory.RecordTurn(request, timeout=self._timeout_seconds)

    async def record_turns(self, owed: Sequence[OwedTurns]) -> list[str]:
        """Tells memory of messages of many conversations, at once. Idempotent by message and revision.

        Returns the conversations of which it has taken nothing, because it knows otherwise.
        """
        request = memory_pb2.RecordTurnsRequest(conversations=[_owed(one) for one in owed])
        with peer_errors():
            answer = await self._memory.RecordTurns(request, timeout=self._timeout_seconds)
        return list(answer.refused_conversation_ids)

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
