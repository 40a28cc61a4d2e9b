"""ConversationService: conversations over gRPC.

Owns the conversion at the door and nothing else: each method checks, calls, converts.
"""

import datetime as dt
import uuid
from typing import Any, Final

import grpc

from parley.chat.v1 import conversation_pb2, conversation_pb2_grpc
from services.chat.conversation_store import ConversationStore
from services.chat.generations import Generations
from services.chat.requests import check, digest_of, request_id_of, wrong_mask
from services.chat.responses import to_conversation, to_message
from services.runtime.calls import current_metadata, current_user_id
from services.runtime.paging import bad_page_token, cut_page, decode_page_token, page_size

Context = grpc.aio.ServicerContext[Any, Any]

_CONVERSATIONS: Final = "conversations"


class ConversationServicer(conversation_pb2_grpc.ConversationServiceServicer):
    """The caller's conversations."""

    def __init__(self, store: ConversationStore, generations: Generations) -> None:
        self._store = store
        self._generations = generations

    async def CreateConversation(
        self, request: conversation_pb2.CreateConversationRequest, context: Context
    ) -> conversation_pb2.Conversation:
        created = await self._store.create_conversation(
            user_id=current_user_id(),
            title=request.title,
            request_id=request_id_of(request, current_metadata()),
            request_digest=digest_of(request, ("request_id",)),
        )
        return to_conversation(created)

    async def ListConversations(
        self, request: conversation_pb2.ListConversationsRequest, context: Context
    ) -> conversation_pb2.ListConversationsResponse:
        size = page_size(request.page_size)
        key = decode_page_token(_CONVERSATIONS, request.page_token, kinds=(int, str))
        found = await self._store.list_conversations(user_id=current_user_id(), limit=size + 1, after=_conversation_key(key))
        page, next_token = cut_page(
            found, size, list_name=_CONVERSATIONS, key=lambda one: (_microseconds(one.latest_time), one.id)
        )
        return conversation_pb2.ListConversationsResponse(
            conversations=[to_conversation(one) for one in page], next_page_token=next_token
        )

    async def GetConversation(
        self, request: conversation_pb2.GetConversationRequest, context: Context
    ) -> conversation_pb2.Conversation:
        return to_conversation(await self._store.read_conversation(request.conversation_id, user_id=current_user_id()))

    async def UpdateConversation(
        self, request: conversation_pb2.UpdateConversationRequest, context: Context
    ) -> conversation_pb2.Conversation:
        check(wrong_mask(request))
        renamed = await self._store.rename_conversation(
            request.conversation_id, user_id=current_user_id(), title=request.title
        )
        return to_conversation(renamed)

    async def DeleteConversation(
        self, request: conversation_pb2.DeleteConversationRequest, context: Context
    ) -> conversation_pb2.DeleteConversationResponse:
        deleted = await self._store.delete_conversation(request.conversation_id, user_id=current_user_id())
        self._generations.stop(deleted.running_generation_ids)
        return conversation_pb2.DeleteConversationResponse(deleted_messages=deleted.message_count)

    async def ListMessages(
        self, request: conversation_pb2.ListMessagesRequest, context: Context
    ) -> conversation_pb2.ListMessagesResponse:
        size, list_name = page_size(request.page_size), f"messages:{request.conversation_id.lower()}"
        key = decode_page_token(list_name, request.page_token, kinds=(int,))
        found = await self._store.list_messages(
            request.conversation_id,
            user_id=current_user_id(),
            limit=size + 1,
            after_sequence=_sequence_key(key),
        )
        page, next_token = cut_page(found, size, list_name=list_name, key=lambda one: (one.sequence,))
        return conversation_pb2.ListMessagesResponse(messages=[to_message(one) for one in page], next_page_token=next_token)

    async def GetFullConversation(
        self, request: conversation_pb2.GetFullConversationRequest, context: Context
    ) -> conversation_pb2.FullConversation:
        conversation, messages, has_earlier = await self._store.read_full_conversation(
            request.conversation_id, user_id=current_user_id()
        )
        return conversation_pb2.FullConversation(
            conversation=to_conversation(conversation),
            messages=[to_message(one) for one in messages],
            has_earlier_messages=has_earlier,
        )


_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MOST_SEQUENCE: Final = 2**31 - 1


def _microseconds(time: dt.datetime) -> int:
    return (time - _EPOCH) // dt.timedelta(microseconds=1)


def _conversation_key(key: list[str | int] | None) -> tuple[dt.datetime, str] | None:
    """The key in a token; what a client made up is refused here and not by the database."""
    if key is None:
        return None
    try:
        return _EPOCH + dt.timedelta(microseconds=int(key[0])), str(uuid.UUID(str(key[1])))
    except (OverflowError, ValueError):
        raise bad_page_token() from None


def _sequence_key(key: list[str | int] | None) -> int:
    sequence = 0 if key is None else int(key[0])
    if not 0 <= sequence <= _MOST_SEQUENCE:
        raise bad_page_token()
    return sequence
