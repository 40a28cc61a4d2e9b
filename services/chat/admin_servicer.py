"""AdminService: what administrators see of conversations, over gRPC.

Owns the conversion at the door and nothing else: each method checks, calls, converts. Who may call is the contract's rule.
"""

from typing import Any, Final

import grpc

from parley.chat.v1 import admin_pb2, admin_pb2_grpc
from services.chat.conversation.page_keys import conversation_key, key_of_conversation
from services.chat.conversation.session_store import SessionStore
from services.chat.responses import to_session
from services.runtime.paging import cut_page, decode_page_token, page_size

Context = grpc.aio.ServicerContext[Any, Any]

_SESSIONS: Final = "sessions"


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Every user's conversations, without content."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store

    async def ListSessions(self, request: admin_pb2.ListSessionsRequest, context: Context) -> admin_pb2.ListSessionsResponse:
        size, user_id = page_size(request.page_size), request.user_id.lower() or None
        list_name = f"{_SESSIONS}:{user_id or ''}"
        key = decode_page_token(list_name, request.page_token, kinds=(int, str))
        found = await self._store.list_sessions(user_id=user_id, limit=size + 1, after=conversation_key(key))
        page, next_token = cut_page(found, size, list_name=list_name, key=key_of_conversation)
        return admin_pb2.ListSessionsResponse(sessions=[to_session(one) for one in page], next_page_token=next_token)
