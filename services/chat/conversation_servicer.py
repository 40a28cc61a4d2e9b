"""ConversationService: conversations over gRPC.

Owns the conversion at the door and nothing else: each method checks, calls, converts.
"""

import datetime as dt
import hashlib
from typing import Any, Final

import grpc

from parley.chat.v1 import conversation_pb2, conversation_pb2_grpc
from services.chat.conversation.page_keys import conversation_key, found_key, key_of_conversation, message_key
from services.chat.conversation.said_store import SaidStore
from services.chat.conversation.search_store import SearchStore
from services.chat.conversation.store import ConversationStore
from services.chat.generation.generations import Generations
from services.chat.request.ownership import own_id
from services.chat.request.reading import check, without_words, wrong_mask, wrong_place
from services.chat.responses import to_conversation, to_found, to_message
from services.chat.said_turns import to_said_turn
from services.runtime.calls import current_metadata, current_user_id
from services.runtime.paging import cut_page, decode_page_token, page_size
from services.runtime.request_ids import digest_of, request_id_of

Context = grpc.aio.ServicerContext[Any, Any]

_CONVERSATIONS: Final = "conversations"


class ConversationServicer(conversation_pb2_grpc.ConversationServiceServicer):
    """The caller's conversations."""

    def __init__(self, store: ConversationStore, search: SearchStore, said: SaidStore, generations: Generations) -> None:
        self._store = store
        self._search = search
        self._said = said
        self._generations = generations

    async def CreateConversation(
        self, request: conversation_pb2.CreateConversationRequest, context: Context
    ) -> conversation_pb2.Conversation:
        created = await self._store.create_conversation(
            user_id=own_id(request),
            title=request.title,
            request_id=request_id_of(request, current_metadata()),
            request_digest=digest_of(request, ("request_id", "user_id")),
        )
        return to_conversation(created)

    async def ListConversations(
        self, request: conversation_pb2.ListConversationsRequest, context: Context
    ) -> conversation_pb2.ListConversationsResponse:
        size = page_size(request.page_size)
        key = decode_page_token(_CONVERSATIONS, request.page_token, kinds=(int, str))
        found = await self._store.list_conversations(user_id=own_id(request), limit=size + 1, after=conversation_key(key))
        page, next_token = cut_page(found, size, list_name=_CONVERSATIONS, key=key_of_conversation)
        return conversation_pb2.ListConversationsResponse(
            conversations=[to_conversation(one) for one in page], next_page_token=next_token
        )

    async def GetConversation(
        self, request: conversation_pb2.GetConversationRequest, context: Context
    ) -> conversation_pb2.Conversation:
        return to_conversation(await self._store.read_conversation(request.conversation_id, user_id=own_id(request)))

    async def UpdateConversation(
        self, request: conversation_pb2.UpdateConversationRequest, context: Context
    ) -> conversation_pb2.Conversation:
        check(wrong_mask(request))
        renamed = await self._store.rename_conversation(
            request.conversation_id, user_id=own_id(request), title=request.title
        )
        return to_conversation(renamed)

    async def DeleteConversation(
        self, request: conversation_pb2.DeleteConversationRequest, context: Context
    ) -> conversation_pb2.DeleteConversationResponse:
        deleted = await self._store.delete_conversation(request.conversation_id, user_id=own_id(request))
        await self._generations.stop_everywhere(deleted.running_generation_ids)
        # Of the running ones too: their process may be gone. One that lives writes the log anew and deletes it at its end.
        await self._generations.forget_logs([*deleted.running_generation_ids, *deleted.ended_generation_ids])
        return conversation_pb2.DeleteConversationResponse(deleted_messages=deleted.message_count)

    async def ListMessages(
        self, request: conversation_pb2.ListMessagesRequest, context: Context
    ) -> conversation_pb2.ListMessagesResponse:
        size, list_name = page_size(request.page_size), f"messages:{request.conversation_id.lower()}"
        if request.include_superseded:
            list_name += ":versions"
        key = decode_page_token(list_name, request.page_token, kinds=(int, int))
        found = await self._store.list_messages(
            request.conversation_id,
            user_id=current_user_id(),
            limit=size + 1,
            after=message_key(key),
            with_superseded=request.include_superseded,
        )
        page, next_token = cut_page(found, size, list_name=list_name, key=lambda one: (one.sequence, one.version))
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

    async def SearchConversations(
        self, request: conversation_pb2.SearchConversationsRequest, context: Context
    ) -> conversation_pb2.SearchConversationsResponse:
        check(without_words(request.query))
        size = page_size(request.page_size, default=20, greatest=100)
        list_name = f"found:{hashlib.sha256(request.query.encode()).hexdigest()[:16]}"
        key = decode_page_token(list_name, request.page_token, kinds=(int, str))
        found = await self._search.find_conversations(
            request.query, user_id=current_user_id(), limit=size + 1, after=found_key(key)
        )
        page, next_token = cut_page(found, size, list_name=list_name, key=lambda one: (one.score, one.conversation.id))
        return conversation_pb2.SearchConversationsResponse(
            results=[to_found(one) for one in page], next_page_token=next_token
        )

    async def ReadTurns(
        self, request: conversation_pb2.ReadTurnsRequest, context: Context
    ) -> conversation_pb2.ReadTurnsResponse:
        check(wrong_place(request))
        before = None
        if request.HasField("before_time"):
            before = (request.before_time.ToDatetime(dt.UTC), request.before_id.lower())
        found = await self._said.read_turns(user_id=current_user_id(), limit=request.limit, before=before)
        return conversation_pb2.ReadTurnsResponse(turns=map(to_said_turn, found))
