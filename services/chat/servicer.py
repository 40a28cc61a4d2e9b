"""ChatService: turns over gRPC.

Owns the conversion at the door and nothing else: each method checks, calls, converts.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from parley.chat.v1 import chat_pb2, chat_pb2_grpc
from services.chat.failures import error_of
from services.chat.refusals import conversation_not_found
from services.chat.requests import RequestReading
from services.chat.responses import to_completion
from services.chat.turns import Answer, TurnRequest, Turns
from services.runtime.calls import current_metadata, current_user_id

Context = grpc.aio.ServicerContext[Any, Any]


class ChatServicer(chat_pb2_grpc.ChatServiceServicer):
    """Answers the user."""

    def __init__(self, turns: Turns, reading: RequestReading) -> None:
        self._turns = turns
        self._reading = reading

    async def CreateCompletion(self, request: chat_pb2.CompletionRequest, context: Context) -> chat_pb2.Completion:
        answer = await self._answer(request)
        turn, ending = await answer.ended()
        if ending.failure is not None:
            raise error_of(ending.failure)
        if ending.reply is None:
            raise conversation_not_found(turn.generation.conversation_id)
        return to_completion(turn.generation, turn.user_message, ending.reply)

    async def StreamCompletion(
        self, request: chat_pb2.CompletionRequest, context: Context
    ) -> AsyncIterator[chat_pb2.CompletionEvent]:
        answer = await self._answer(request)
        # Closed here and not by the garbage collector, so that a reader who left is let go at once.
        async with aclosing(answer.events()) as events:
            async for event in events:
                yield event

    async def _answer(self, request: chat_pb2.CompletionRequest) -> Answer:
        user_id, arrival = current_user_id(), asyncio.get_running_loop().time()
        draft = self._reading.draft(request, user_id=user_id, metadata=current_metadata())
        options = self._reading.options(request, user_id=user_id)
        return await self._turns.begin(TurnRequest(draft, options, arrival))
