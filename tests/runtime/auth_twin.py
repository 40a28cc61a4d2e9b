"""What the runtime needs of auth, on a real server: keys, tokens, the feed of ended sessions. It counts."""

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.protobuf.duration_pb2 import Duration

from parley.auth.v1 import auth_pb2, auth_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.calls import current_caller, current_request_id
from services.runtime.errors import PermissionDenied, Unauthenticated
from services.runtime.peers import ServiceTokens
from services.runtime.server import GrpcServer, Mount
from tests.issuer import Issuer

CREDENTIAL = "the-workload-credential"


class AuthTwin(auth_pb2_grpc.TokenServiceServicer):
    """TokenService, with tokens that the issuer signs."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.calls: Counter[str] = Counter()
        self.request_ids: list[str] = []
        self.lifetime_seconds = 300
        self.delay_seconds = 0.0
        self.sessions: asyncio.Queue[list[str] | None] = asyncio.Queue()
        self.followers = 0

    async def IssueServiceToken(
        self, request: auth_pb2.IssueServiceTokenRequest, _context: Any
    ) -> auth_pb2.IssueServiceTokenResponse:
        self.calls[f"issue {request.audience}"] += 1
        self.request_ids.append(current_request_id())
        await asyncio.sleep(self.delay_seconds)
        if request.credential != CREDENTIAL:
            raise Unauthenticated("Wrong credential.", reasons.ERROR_REASON_WORKLOAD_CREDENTIAL_WRONG)
        token = self.issuer.service_token(request.workload, audience=request.audience)
        return auth_pb2.IssueServiceTokenResponse(token=token, lifetime=Duration(seconds=self.lifetime_seconds))

    async def ExchangeForUser(
        self, request: auth_pb2.ExchangeForUserRequest, _context: Any
    ) -> auth_pb2.ExchangeForUserResponse:
        self.calls[f"exchange {request.audience}"] += 1
        await asyncio.sleep(self.delay_seconds)
        service = current_caller().service
        if service is None or request.audience == "forbidden":
            raise PermissionDenied("Not for that audience.", reasons.ERROR_REASON_AUDIENCE_NOT_ALLOWED)
        token = self.issuer.on_behalf_token(request.user_id, service=service, audience=request.audience)
        return auth_pb2.ExchangeForUserResponse(token=token, lifetime=Duration(seconds=self.lifetime_seconds))

    async def WatchEndedSessions(
        self, _request: auth_pb2.WatchEndedSessionsRequest, _context: Any
    ) -> AsyncIterator[auth_pb2.WatchEndedSessionsResponse]:
        self.calls["watch"] += 1
        self.followers += 1
        try:
            while (ended := await self.sessions.get()) is not None:
                yield auth_pb2.WatchEndedSessionsResponse(session_ids=ended)
        finally:
            self.followers -= 1


class KeyTwin:
    """GetJwks of AuthService; the rest of that service is not needed here."""

    def __init__(self, twin: AuthTwin) -> None:
        self._twin = twin

    async def GetJwks(self, _request: auth_pb2.GetJwksRequest, _context: Any) -> auth_pb2.GetJwksResponse:
        self._twin.calls["keys"] += 1
        await asyncio.sleep(self._twin.delay_seconds)
        answer = auth_pb2.GetJwksResponse()
        for kid, key in (await self._twin.issuer.public_keys()).items():
            raw = base64.urlsafe_b64encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).rstrip(b"=")
            answer.keys.add(kty="OKP", crv="Ed25519", x=raw.decode(), kid=kid, alg="EdDSA", use="sig")
        answer.keys.add(kty="RSA", kid="of-another-kind", alg="RS256")
        return answer

    def __getattr__(self, name: str) -> Any:
        async def unused(_request: Any, _context: Any) -> Any:
            raise AssertionError(f"{name} was not expected")

        if name.startswith("_"):
            raise AttributeError(name)
        return unused


def auth_server(twin: AuthTwin, address: str) -> GrpcServer:
    services = auth_pb2.DESCRIPTOR.services_by_name
    mounts = [
        Mount(auth_pb2_grpc.add_TokenServiceServicer_to_server, twin, services["TokenService"]),
        Mount(_add_keys, KeyTwin(twin), services["AuthService"]),
    ]
    return GrpcServer(address=address, mounts=mounts, verifier=twin.issuer.verifier("auth"))


def _add_keys(servicer: Any, server: grpc.aio.Server) -> None:
    auth_pb2_grpc.add_AuthServiceServicer_to_server(servicer, server)


@dataclass
class Auth:
    """The twin, its server, and a channel to it."""

    twin: AuthTwin
    server: GrpcServer
    port: int
    channel: grpc.aio.Channel

    def tokens(self, credential: str = CREDENTIAL) -> ServiceTokens:
        return ServiceTokens(self.channel, workload="chat", credential=credential)

    async def go(self) -> None:
        await self.server.stop(wait_seconds=0, drain_seconds=0)

    async def come_back(self) -> None:
        self.server = auth_server(self.twin, f"127.0.0.1:{self.port}")
        await self.server.start()
