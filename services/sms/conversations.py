"""The seam to chat: the person's conversation by text, and the turns of their history.

Owns the calls and their conversion. Invariant: every call has a deadline and is made for one user.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
from google.protobuf import timestamp_pb2

from parley.chat.v1 import chat_pb2, chat_pb2_grpc, conversation_pb2, conversation_pb2_grpc
from services.runtime.calls import acting_for
from services.runtime.errors import peer_errors

_CHANNEL = "sms"


@dataclass(frozen=True, slots=True)
class Reply:
    """What chat answers to a text."""

    conversation_id: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Turn:
    """What a user said in a conversation, and what was answered. Tokens are 0 where they are not known."""

    id: str
    conversation_id: str
    conversation_kind: str
    input_text: str = field(repr=False)
    reply_id: str
    reply: str = field(repr=False)
    status: str
    model: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    time: dt.datetime


class Conversations:
    """Chat, as sms uses it. Every method raises ServiceError when chat does not answer or refuses."""

    def __init__(self, channel: grpc.aio.Channel, *, answer_timeout_seconds: float, timeout_seconds: float) -> None:
        self._chat = chat_pb2_grpc.ChatServiceStub(channel)
        self._conversations = conversation_pb2_grpc.ConversationServiceStub(channel)
        self._answer_timeout_seconds = answer_timeout_seconds
        self._timeout_seconds = timeout_seconds

    async def answer(self, text: str, *, user_id: str, message_id: str) -> Reply:
        """The reply to a text, as a turn of the user's conversation by text. Once for each message, however often asked."""
        request = chat_pb2.ProcessUtteranceRequest(text=text, channel=_CHANNEL, request_id=f"sms:{message_id}")
        with acting_for(user_id, request_id=message_id), peer_errors():
            answer = await self._chat.ProcessUtterance(request, timeout=self._answer_timeout_seconds)
        return Reply(answer.conversation_id, answer.reply)

    async def read_turns(self, *, limit: int, before: tuple[dt.datetime, str] | None) -> Sequence[Turn]:
        """Turns of the user who calls, the latest first, from before a time and id."""
        request = conversation_pb2.ReadTurnsRequest(limit=limit)
        if before is not None:
            request.before_time.FromDatetime(before[0])
            request.before_id = before[1]
        with peer_errors():
            answer = await self._conversations.ReadTurns(request, timeout=self._timeout_seconds)
        return [_turn(one) for one in answer.turns]


def _turn(told: conversation_pb2.Turn) -> Turn:
    usage = told.usage
    return Turn(
        id=told.id,
        conversation_id=told.conversation_id,
        conversation_kind=told.conversation_kind,
        input_text=told.input_text,
        reply_id=told.reply_id,
        reply=told.reply,
        status=told.status,
        model=told.model,
        input_tokens=usage.input_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        time=_time(told.create_time),
    )


def _time(told: timestamp_pb2.Timestamp) -> dt.datetime:
    return told.ToDatetime(dt.UTC)
