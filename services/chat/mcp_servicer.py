"""McpServerService: the MCP servers that users keep, over gRPC.

Owns the conversion at the door and the checks that no field rule can say. Invariant: no value of a header is in an answer.
"""

import datetime as dt
import re
from collections.abc import Sequence
from typing import Any, Final

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from parley.chat.v1 import mcp_server_pb2, mcp_server_pb2_grpc
from services.chat.mcp.addresses import Addresses, wrong_headers
from services.chat.mcp.records import McpServer, ServerChanges, ServerDraft
from services.chat.mcp.store import McpServerStore
from services.chat.request.reading import check
from services.runtime.calls import current_metadata, current_user_id
from services.runtime.errors import FieldViolation
from services.runtime.paging import bad_page_token, cut_page, decode_page_token, page_size
from services.runtime.request_ids import request_id_of

Context = grpc.aio.ServicerContext[Any, Any]

_SERVERS: Final = "mcp_servers"
_NEVER: Final = "never"
_LABEL: Final = re.compile(r"[a-z0-9_-]{1,32}")
# In the order of the contract.
_TEXTS: Final = ("label", "url", "approval")
_LISTS: Final = ("headers", "allowed_tools")
_CHANGEABLE: Final = (*_TEXTS, *_LISTS, "enabled")


class McpServerServicer(mcp_server_pb2_grpc.McpServerServiceServicer):
    """The caller's MCP servers."""

    def __init__(self, store: McpServerStore, addresses: Addresses) -> None:
        self._store = store
        self._addresses = addresses

    async def CreateMcpServer(
        self, request: mcp_server_pb2.CreateMcpServerRequest, context: Context
    ) -> mcp_server_pb2.McpServer:
        check(wrong_headers(request.headers))
        await self._addresses.check_url(request.url)
        draft = ServerDraft(
            label=request.label,
            url=request.url,
            headers=dict(request.headers),
            allowed_tools=list(request.allowed_tools),
            approval=request.approval or _NEVER,
            is_enabled=request.enabled if request.HasField("enabled") else True,
        )
        request_id = request_id_of(request, current_metadata())
        kept = await self._store.keep_server(
            draft, user_id=current_user_id(), request_id=request_id, request=_without_request_id(request)
        )
        return _to_server(kept)

    async def ListMcpServers(
        self, request: mcp_server_pb2.ListMcpServersRequest, context: Context
    ) -> mcp_server_pb2.ListMcpServersResponse:
        size = page_size(request.page_size)
        key = decode_page_token(_SERVERS, request.page_token, kinds=(str,))
        found = await self._store.list_servers(user_id=current_user_id(), limit=size + 1, after=_label_key(key))
        page, next_token = cut_page(found, size, list_name=_SERVERS, key=lambda one: (one.label.lower(),))
        return mcp_server_pb2.ListMcpServersResponse(
            mcp_servers=[_to_server(one) for one in page], next_page_token=next_token
        )

    async def GetMcpServer(self, request: mcp_server_pb2.GetMcpServerRequest, context: Context) -> mcp_server_pb2.McpServer:
        return _to_server(await self._store.read_server(request.mcp_server_id, user_id=current_user_id()))

    async def UpdateMcpServer(
        self, request: mcp_server_pb2.UpdateMcpServerRequest, context: Context
    ) -> mcp_server_pb2.McpServer:
        check(_wrong_mask(request))
        changes = _changes(request)
        check(wrong_headers(changes.headers or {}))
        if changes.url is not None:
            await self._addresses.check_url(changes.url)
        changed = await self._store.change_server(request.mcp_server_id, changes, user_id=current_user_id())
        return _to_server(changed)

    async def DeleteMcpServer(
        self, request: mcp_server_pb2.DeleteMcpServerRequest, context: Context
    ) -> mcp_server_pb2.DeleteMcpServerResponse:
        await self._store.delete_server(request.mcp_server_id, user_id=current_user_id())
        return mcp_server_pb2.DeleteMcpServerResponse()


def _label_key(key: list[str | int] | None) -> str | None:
    """The label in a token; what a client made up is refused here and not by the database."""
    if key is None:
        return None
    if not _LABEL.fullmatch(str(key[0])):
        raise bad_page_token()
    return str(key[0])


def _without_request_id(request: mcp_server_pb2.CreateMcpServerRequest) -> bytes:
    counted = mcp_server_pb2.CreateMcpServerRequest()
    counted.CopyFrom(request)
    counted.ClearField("request_id")
    return counted.SerializeToString(deterministic=True)


def _named(request: mcp_server_pb2.UpdateMcpServerRequest) -> Sequence[str]:
    """The fields to change: those of the mask, or without one those that are set."""
    if request.update_mask.paths:
        return request.update_mask.paths
    is_set = [name for name in (*_TEXTS, *_LISTS) if getattr(request, name)]
    return [*is_set, "enabled"] if request.HasField("enabled") else is_set


def _wrong_mask(request: mcp_server_pb2.UpdateMcpServerRequest) -> list[FieldViolation]:
    paths = request.update_mask.paths
    unknown = sorted(set(paths) - set(_CHANGEABLE))
    found = [FieldViolation("update_mask", f"`{path}` cannot be changed") for path in unknown]
    found += [FieldViolation(name, "is required") for name in _TEXTS if name in paths and not getattr(request, name)]
    if "enabled" in paths and not request.HasField("enabled"):
        found.append(FieldViolation("enabled", "is required"))
    return found


def _changes(request: mcp_server_pb2.UpdateMcpServerRequest) -> ServerChanges:
    named = _named(request)
    return ServerChanges(
        label=request.label if "label" in named else None,
        url=request.url if "url" in named else None,
        headers=dict(request.headers) if "headers" in named else None,
        allowed_tools=list(request.allowed_tools) if "allowed_tools" in named else None,
        approval=request.approval if "approval" in named else None,
        is_enabled=request.enabled if "enabled" in named else None,
    )


def _to_server(server: McpServer) -> mcp_server_pb2.McpServer:
    return mcp_server_pb2.McpServer(
        id=server.id,
        label=server.label,
        url=server.url,
        header_names=server.header_names,
        allowed_tools=server.allowed_tools,
        approval=server.approval,
        enabled=server.is_enabled,
        create_time=_time(server.create_time),
        update_time=_time(server.update_time),
    )


def _time(value: dt.datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp
