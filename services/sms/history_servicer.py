"""HistoryService: one history over gRPC. Each method checks, calls, converts."""

from collections.abc import Sequence
from typing import Any, Final

import grpc

from parley.sms.v1 import history_pb2, history_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.calls import current_user_id
from services.runtime.errors import PermissionDenied
from services.runtime.paging import cut_page, page_size
from services.sms.history import ALL, History, Kind
from services.sms.page_keys import key_of, place_in
from services.sms.responses import to_entry

Context = grpc.aio.ServicerContext[Any, Any]
Request = history_pb2.ListHistoryRequest
Response = history_pb2.ListHistoryResponse
_ME: Final = "me"


class HistoryServicer(history_pb2_grpc.HistoryServiceServicer):
    """parley.sms.v1.HistoryService."""

    def __init__(self, history: History) -> None:
        self._history = history

    async def ListHistory(self, request: Request, context: Context) -> Response:
        return await self._page(request, ALL)

    async def ListConversationHistory(self, request: Request, context: Context) -> Response:
        return await self._page(request, ("turn",))

    async def ListCallHistory(self, request: Request, context: Context) -> Response:
        return await self._page(request, ("call",))

    async def ListSmsHistory(self, request: Request, context: Context) -> Response:
        return await self._page(request, ("message", "decision"))

    async def _page(self, request: Request, kinds: Sequence[Kind]) -> Response:
        size, name = page_size(request.page_size), f"history:{','.join(kinds)}"
        found = await self._history.read(
            kinds, user_id=_own_id(request), limit=size + 1, before=place_in(name, request.page_token)
        )
        page, token = cut_page(found, size, list_name=name, key=lambda one: key_of(one.time, one.id))
        return Response(entries=map(to_entry, page), next_page_token=token)


def _own_id(request: Request) -> str:
    """The caller's id. The contract's rule has let administrators name another user: whose history it is, is not theirs."""
    user_id = current_user_id()
    if request.user_id not in {_ME, user_id}:
        raise PermissionDenied(
            "A history is read by the person whose it is: use your own id or `me`.", reasons.ERROR_REASON_ACCESS_DENIED
        )
    return user_id
