"""ChatService: turns over gRPC.

Owns the conversion at the door and nothing else: each method checks, calls, converts.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import grpc

from parley.chat.v1 import chat_pb2, chat_pb2_grpc
from services.chat.failures import error_of
from services.chat.generation.turns import Answer, TurnRequest, Turns
from services.chat.records import Message, Turn
from services.chat.refusals import conversation_not_found, generation_cancelled
from services.chat.request.ownership import own_id
from services.chat.request.reading import RequestReading, last_event_id
from services.chat.responses import to_completion, to_generation
from services.chat.usage.answers import to_usage_response
from services.chat.usage.budget import Budget
from services.chat.utterance import to_utterance
from services.runtime.calls import current_metadata, current_user_id

Context = grpc.aio.ServicerContext[Any, Any]
_DEFAULT_DAYS: Final = 30
_MOST_DAYS: Final = 366
_FINISHED: Final = (("x-parley-finished", "1"),)


class ChatServicer(chat_pb2_grpc.ChatServiceServicer):
    """Answers the user. Events leave as bytes: they are serialized once, however many read them."""

    def __init__(self, turns: Turns, reading: RequestReading, budget: Budget) -> None:
        self._turns = turns
        self._reading = reading
        self._budget = budget

    async def CreateCompletion(self, request: chat_pb2.CompletionRequest, context: Context) -> chat_pb2.Completion:
        turn, reply = await _completed(await self._answer(request))
        return to_completion(turn.generation, turn.user_message, reply)

    async def StreamCompletion(self, request: chat_pb2.CompletionRequest, context: Context) -> AsyncIterator[Any]:
        answer = await self._answer(request)
        # Closed here and not by the garbage collector, so that a reader who left is let go at once.
        async with aclosing(answer.events()) as events:
            async for event in events:
                yield event

    async def _answer(self, request: chat_pb2.CompletionRequest) -> Answer:
        arrival = asyncio.get_running_loop().time()
        read = await self._reading.completion(request, user_id=own_id(request), metadata=current_metadata())
        return await self._turns.begin(TurnRequest(read.draft, read.options, arrival))

    async def ProcessUtterance(self, request: chat_pb2.ProcessUtteranceRequest, context: Context) -> chat_pb2.Utterance:
        arrival = asyncio.get_running_loop().time()
        read = await self._reading.utterance(request, user_id=own_id(request), metadata=current_metadata())
        turn, reply = await _completed(await self._turns.begin(TurnRequest(read.draft, read.options, arrival)))
        return to_utterance(turn, reply, read.preferences)

    async def SubscribeGeneration(
        self, request: chat_pb2.SubscribeGenerationRequest, context: Context
    ) -> AsyncIterator[Any]:
        after = max(request.after_sequence, last_event_id(current_metadata()))
        answer = await self._turns.find(request.generation_id.lower(), user_id=current_user_id())
        if await answer.is_over(after=after):
            # The edge makes it 204, which is what ends an EventSource.
            await context.send_initial_metadata(_FINISHED)
            return
        async with aclosing(answer.events(after=after)) as events:
            async for event in events:
                yield event

    async def GetGeneration(self, request: chat_pb2.GetGenerationRequest, context: Context) -> chat_pb2.Generation:
        turn, sequence = await self._turns.read(request.generation_id.lower(), user_id=current_user_id())
        return to_generation(turn, sequence=sequence)

    async def CancelGeneration(self, request: chat_pb2.CancelGenerationRequest, context: Context) -> chat_pb2.Generation:
        turn, sequence = await self._turns.cancel(request.generation_id.lower(), user_id=current_user_id())
        return to_generation(turn, sequence=sequence)

    async def EditMessage(self, request: chat_pb2.EditMessageRequest, context: Context) -> AsyncIterator[Any]:
        answer = await self._answer_anew(request)
        async with aclosing(answer.events()) as events:
            async for event in events:
                yield event

    async def RegenerateReply(self, request: chat_pb2.RegenerateReplyRequest, context: Context) -> AsyncIterator[Any]:
        answer = await self._answer_anew(request)
        async with aclosing(answer.events()) as events:
            async for event in events:
                yield event

    async def _answer_anew(self, request: chat_pb2.EditMessageRequest | chat_pb2.RegenerateReplyRequest) -> Answer:
        arrival = asyncio.get_running_loop().time()
        read = await self._reading.replacement(request, user_id=current_user_id(), metadata=current_metadata())
        return await self._turns.begin(TurnRequest(read.draft, read.options, arrival))

    async def GetUsage(self, request: chat_pb2.GetUsageRequest, context: Context) -> chat_pb2.GetUsageResponse:
        days = min(request.days or _DEFAULT_DAYS, _MOST_DAYS)
        return to_usage_response(await self._budget.account(current_user_id(), days=days))


async def _completed(answer: Answer) -> tuple[Turn, Message]:
    """The turn and its reply, once it has ended well; raises what it failed with."""
    turn, ending = await answer.ended()
    if ending.failure is not None:
        raise error_of(ending.failure)
    if ending.is_cancelled:
        raise generation_cancelled(turn.generation.id)
    if ending.reply is None:
        raise conversation_not_found(turn.generation.conversation_id)
    return turn, ending.reply
