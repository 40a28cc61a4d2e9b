"""The RPCs that chat calls in each turn: check, call, convert.

The user is always the one on whose behalf the calling service acts; a call without one is refused. What no field rule can
say is checked here: a request names each message and each place once.
"""

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import grpc

from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.memory.assembly import Assembled, Assembly
from services.memory.conversation_memory import ConversationMemory
from services.memory.messages import told_message, turn_of_message
from services.memory.recall.conversion import memory_of_found
from services.memory.turns import ConversationKey, Turn
from services.runtime.calls import current_caller, current_user_id
from services.runtime.errors import FieldViolation, PermissionDenied, invalid_request

Context = grpc.aio.ServicerContext[Any, Any]


class ContextRpcs(memory_pb2_grpc.MemoryServiceServicer):
    """AssembleContext, RecordTurn, RecordTurns, InvalidateContext."""

    _assembly: Assembly
    _memory: ConversationMemory

    async def AssembleContext(
        self,
        request: memory_pb2.AssembleContextRequest,
        context: Context,
    ) -> memory_pb2.AssembleContextResponse:
        key = _key(request.conversation_id)
        assembled = await self._assembly.assemble(
            key,
            token_budget=request.token_budget,
            query=request.query,
            memory_token_budget=request.memory_token_budget,
        )
        return _response(assembled)

    async def RecordTurn(
        self,
        request: memory_pb2.RecordTurnRequest,
        context: Context,
    ) -> memory_pb2.RecordTurnResponse:
        key = _key(request.conversation_id)
        _check_messages(request.messages)
        last_sequence = await self._memory.record(key, _turns(request.messages))
        return memory_pb2.RecordTurnResponse(last_sequence=last_sequence)

    async def RecordTurns(
        self,
        request: memory_pb2.RecordTurnsRequest,
        context: Context,
    ) -> memory_pb2.RecordTurnsResponse:
        _check_for_itself()
        _check_conversations(request.conversations)
        told = {_told_key(one): _turns(one.messages) for one in request.conversations}
        left_out = await self._memory.record_many(told, skip_busy=request.skip_busy)
        return memory_pb2.RecordTurnsResponse(
            refused_conversation_ids=[key.conversation_id for key in left_out.refused],
            busy_conversation_ids=[key.conversation_id for key in left_out.busy],
        )

    async def InvalidateContext(
        self,
        request: memory_pb2.InvalidateContextRequest,
        context: Context,
    ) -> memory_pb2.InvalidateContextResponse:
        key = _key(request.conversation_id)
        forgotten = await self._memory.forget(key, from_sequence=request.from_sequence)
        return memory_pb2.InvalidateContextResponse(forgotten_messages=forgotten)


def _key(conversation_id: str) -> ConversationKey:
    return ConversationKey(current_user_id(), str(uuid.UUID(conversation_id)))


def _told_key(told: memory_pb2.ConversationTurns) -> ConversationKey:
    return ConversationKey(str(uuid.UUID(told.user_id)), str(uuid.UUID(told.conversation_id)))


def _check_for_itself() -> None:
    """What is said of users in a request counts only when no user stands behind the call."""
    if current_caller().user_id is not None:
        raise PermissionDenied(
            "This call is for a service that acts for itself: send no user's token.",
            reasons.ERROR_REASON_ACCESS_DENIED,
            metadata={"method": "/parley.memory.v1.MemoryService/RecordTurns"},
        )


def _check_conversations(conversations: Sequence[memory_pb2.ConversationTurns]) -> None:
    seen, said, violations = set[ConversationKey](), set[tuple[str, str]](), list[FieldViolation]()
    for index, one in enumerate(conversations):
        key, field = _told_key(one), f"conversations[{index}]"
        messages = {(key.user_id, str(uuid.UUID(message.message_id))) for message in one.messages}
        if key in seen:
            violations.append(FieldViolation(f"{field}.conversation_id", "is that of another entry in this request"))
        if messages & said:
            violations.append(FieldViolation(f"{field}.messages", "holds a message of another entry in this request"))
        repeated = _repeated(one.messages)
        violations += [FieldViolation(f"{field}.{problem.field}", problem.description) for problem in repeated]
        seen.add(key)
        said |= messages
    if violations:
        raise invalid_request(violations)


def _check_messages(messages: Sequence[memory_pb2.ContextMessage]) -> None:
    if violations := list(_repeated(messages)):
        raise invalid_request(violations)


def _repeated(messages: Sequence[memory_pb2.ContextMessage]) -> Iterator[FieldViolation]:
    ids, sequences = set[str](), set[int]()
    for index, message in enumerate(messages):
        message_id = str(uuid.UUID(message.message_id))
        if message.sequence in sequences:
            yield FieldViolation(f"messages[{index}].sequence", "is that of another message in this request")
        if message_id in ids:
            yield FieldViolation(f"messages[{index}].message_id", "is that of another message in this request")
        ids.add(message_id)
        sequences.add(message.sequence)


def _turns(messages: Sequence[memory_pb2.ContextMessage]) -> list[Turn]:
    return [turn_of_message(message) for message in messages]


def _response(assembled: Assembled) -> memory_pb2.AssembleContextResponse:
    return memory_pb2.AssembleContextResponse(
        messages=[told_message(turn) for turn in assembled.context.turns],
        last_sequence=assembled.context.last_sequence,
        token_count=assembled.context.token_count,
        memories=[memory_of_found(found) for found in assembled.memories],
        person_summary=assembled.person_summary,
        conversation_summary=assembled.conversation_summary,
        degraded=assembled.degraded,
    )
