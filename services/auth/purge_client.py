"""The services that hold things of users, asked to delete all of it: the seam to their PurgeUser.

Auth proves itself by tokens that it signs. Each call has a deadline; what a service refuses comes out as a ServiceError.
"""

from collections.abc import Mapping
from typing import Any, Final

import grpc

from parley.chat.v1 import chat_pb2, chat_pb2_grpc
from parley.memory.v1 import memory_pb2, memory_pb2_grpc
from parley.sms.v1 import sms_pb2, sms_pb2_grpc
from services.auth.tokens import TokenMint
from services.runtime.errors import peer_errors
from services.runtime.identity import SERVICE_AUTHORIZATION

_AUTH: Final = "auth"
_STUBS: Final[Mapping[str, tuple[Any, Any]]] = {
    "chat": (chat_pb2_grpc.ChatServiceStub, chat_pb2.PurgeUserRequest),
    "memory": (memory_pb2_grpc.MemoryServiceStub, memory_pb2.PurgeUserRequest),
    "sms": (sms_pb2_grpc.SmsServiceStub, sms_pb2.PurgeUserRequest),
}


class PurgeClient:
    """The services of `channels`, by name. `timeout_seconds` is what one call may take."""

    def __init__(self, channels: Mapping[str, grpc.aio.Channel], mint: TokenMint, *, timeout_seconds: float) -> None:
        self._calls = {name: (_STUBS[name][0](channel).PurgeUser, _STUBS[name][1]) for name, channel in channels.items()}
        self._mint = mint
        self._timeout_seconds = timeout_seconds

    @property
    def services(self) -> tuple[str, ...]:
        """Those that must confirm."""
        return tuple(sorted(self._calls))

    async def purge(self, service: str, user_id: str) -> None:
        """Returns once nothing of the user is left in the service. Raises ServiceError."""
        call, request = self._calls[service]
        token = self._mint.service_token(_AUTH, service)
        with peer_errors():
            await call(
                request(user_id=user_id),
                metadata=((SERVICE_AUTHORIZATION, f"Bearer {token}"),),
                timeout=self._timeout_seconds,
            )
