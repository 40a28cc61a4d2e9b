"""The RPCs of auth: who calls, what they ask, and the answer as messages."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from parley.auth.v1 import auth_pb2, auth_pb2_grpc
from services.auth.accounts import Accounts
from services.auth.callers import Origins, own_session
from services.auth.ended_sessions import EndedSessions
from services.auth.messages import user_message
from services.auth.phones import Phones
from services.auth.records import OpenSession
from services.auth.sessions import Sessions, Tokens
from services.auth.signing_keys import SigningKey, SigningKeys, public_value
from services.auth.tokens import SERVICE_TOKEN_SECONDS, TokenMint
from services.auth.workloads import AUDIENCES, ON_BEHALF_AUDIENCES, Workloads, require_audience
from services.runtime.calls import current_caller, current_metadata
from services.runtime.paging import cut_page, decode_page_token, page_size

Context = grpc.aio.ServicerContext[Any, Any]
_SESSIONS = "sessions"


class AuthServicer(auth_pb2_grpc.AuthServiceServicer):
    """parley.auth.v1.AuthService."""

    def __init__(self, accounts: Accounts, phones: Phones, sessions: Sessions, keys: SigningKeys, origins: Origins) -> None:
        self._accounts = accounts
        self._phones = phones
        self._sessions = sessions
        self._keys = keys
        self._origins = origins

    async def Register(self, request: auth_pb2.RegisterRequest, context: Context) -> auth_pb2.RegisterResponse:
        account, tokens = await self._accounts.register(
            username=request.username,
            email=request.email,
            password=request.password,
            user_agent=_user_agent(),
            origin=self._origins.of(context.peer()),
        )
        return auth_pb2.RegisterResponse(user=user_message(account), tokens=_token_pair(tokens))

    async def Login(self, request: auth_pb2.LoginRequest, context: Context) -> auth_pb2.LoginResponse:
        account, tokens = await self._accounts.sign_in(
            name=request.username,
            password=request.password,
            user_agent=_user_agent(),
            origin=self._origins.of(context.peer()),
        )
        return auth_pb2.LoginResponse(user=user_message(account), tokens=_token_pair(tokens))

    async def RefreshTokens(
        self, request: auth_pb2.RefreshTokensRequest, context: Context
    ) -> auth_pb2.RefreshTokensResponse:
        tokens = await self._sessions.refresh(request.refresh_token, self._origins.of(context.peer()))
        return auth_pb2.RefreshTokensResponse(tokens=_token_pair(tokens))

    async def Logout(self, request: auth_pb2.LogoutRequest, context: Context) -> auth_pb2.LogoutResponse:
        user_id, session_id = own_session()
        if request.all_sessions:
            return auth_pb2.LogoutResponse(ended_sessions=await self._sessions.log_out_everywhere(user_id))
        return auth_pb2.LogoutResponse(ended_sessions=await self._sessions.log_out(user_id, session_id))

    async def VerifyCredentials(
        self, request: auth_pb2.VerifyCredentialsRequest, context: Context
    ) -> auth_pb2.VerifyCredentialsResponse:
        account = await self._accounts.own_account(*own_session())
        expire_time = Timestamp(seconds=int(current_caller().expire_time))
        return auth_pb2.VerifyCredentialsResponse(valid=True, user=user_message(account), expire_time=expire_time)

    async def GetMe(self, request: auth_pb2.GetMeRequest, context: Context) -> auth_pb2.User:
        return user_message(await self._accounts.own_account(*own_session()))

    async def ChangePassword(
        self, request: auth_pb2.ChangePasswordRequest, context: Context
    ) -> auth_pb2.ChangePasswordResponse:
        ended = await self._accounts.change_password(
            *own_session(),
            current_password=request.current_password,
            new_password=request.new_password,
            origin=self._origins.of(context.peer()),
        )
        return auth_pb2.ChangePasswordResponse(ended_sessions=ended)

    async def SetPassword(self, request: auth_pb2.SetPasswordRequest, context: Context) -> auth_pb2.SetPasswordResponse:
        origin = self._origins.of(context.peer())
        await self._accounts.set_password(request.token, new_password=request.new_password, origin=origin)
        return auth_pb2.SetPasswordResponse()

    async def StartPhoneVerification(
        self, request: auth_pb2.StartPhoneVerificationRequest, context: Context
    ) -> auth_pb2.StartPhoneVerificationResponse:
        user_id, _ = own_session()
        waiting = await self._phones.start(user_id, request.phone_number)
        answer = auth_pb2.StartPhoneVerificationResponse(resend_after_seconds=round(waiting.wait_seconds))
        answer.expire_time.FromDatetime(waiting.expire_time)
        return answer

    async def VerifyPhone(self, request: auth_pb2.VerifyPhoneRequest, context: Context) -> auth_pb2.User:
        user_id, _ = own_session()
        return user_message(await self._phones.verify(user_id, request.code, self._origins.of(context.peer())))

    async def ListSessions(self, request: auth_pb2.ListSessionsRequest, context: Context) -> auth_pb2.ListSessionsResponse:
        size = page_size(request.page_size)
        key = decode_page_token(_SESSIONS, request.page_token, kinds=(str,))
        before_id = None if key is None else str(key[0])
        user_id, _ = own_session()
        found = await self._sessions.list_open(user_id, before_id=before_id, limit=size + 1)
        page, next_token = cut_page(found, size, list_name=_SESSIONS, key=lambda session: (session.id,))
        return auth_pb2.ListSessionsResponse(sessions=[_session(one) for one in page], next_page_token=next_token)

    async def RevokeSession(
        self, request: auth_pb2.RevokeSessionRequest, context: Context
    ) -> auth_pb2.RevokeSessionResponse:
        user_id, _ = own_session()
        await self._sessions.revoke(user_id, request.session_id)
        return auth_pb2.RevokeSessionResponse()

    async def GetJwks(self, request: auth_pb2.GetJwksRequest, context: Context) -> auth_pb2.GetJwksResponse:
        return auth_pb2.GetJwksResponse(keys=[_json_web_key(key) for key in self._keys.published()])


class TokenServicer(auth_pb2_grpc.TokenServiceServicer):
    """parley.auth.v1.TokenService."""

    def __init__(self, workloads: Workloads, accounts: Accounts, mint: TokenMint, ended: EndedSessions) -> None:
        self._workloads = workloads
        self._accounts = accounts
        self._mint = mint
        self._ended = ended

    async def IssueServiceToken(
        self, request: auth_pb2.IssueServiceTokenRequest, context: Context
    ) -> auth_pb2.IssueServiceTokenResponse:
        self._workloads.identify(request.workload, request.credential)
        require_audience(request.workload, request.audience, AUDIENCES)
        answer = auth_pb2.IssueServiceTokenResponse(token=self._mint.service_token(request.workload, request.audience))
        answer.lifetime.FromSeconds(SERVICE_TOKEN_SECONDS)
        return answer

    async def ExchangeForUser(
        self, request: auth_pb2.ExchangeForUserRequest, context: Context
    ) -> auth_pb2.ExchangeForUserResponse:
        workload = current_caller().service or ""
        require_audience(workload, request.audience, ON_BEHALF_AUDIENCES)
        account = await self._accounts.require_active(request.user_id)
        answer = auth_pb2.ExchangeForUserResponse(token=self._mint.on_behalf_token(account, workload, request.audience))
        answer.lifetime.FromSeconds(SERVICE_TOKEN_SECONDS)
        return answer

    async def WatchEndedSessions(
        self, request: auth_pb2.WatchEndedSessionsRequest, context: Context
    ) -> AsyncIterator[auth_pb2.WatchEndedSessionsResponse]:
        async with aclosing(self._ended.follow()) as batches:
            async for session_ids in batches:
                yield auth_pb2.WatchEndedSessionsResponse(session_ids=session_ids)


def _user_agent() -> str:
    return current_metadata().get("user-agent", "")


def _token_pair(tokens: Tokens) -> auth_pb2.TokenPair:
    pair = auth_pb2.TokenPair(
        access_token=tokens.access_token,
        refresh_token=tokens.refresh_token,
        token_type="Bearer",  # noqa: S106 - the type of the token, not a token
        expires_in=tokens.expires_in_seconds,
    )
    pair.refresh_expire_time.FromDatetime(tokens.refresh_expire_time)
    return pair


def _session(session: OpenSession) -> auth_pb2.Session:
    message = auth_pb2.Session(
        id=session.id, user_agent=session.user_agent, is_current=session.id == current_caller().session_id
    )
    message.create_time.FromDatetime(session.create_time)
    message.last_used_time.FromDatetime(session.last_used_time)
    message.expire_time.FromDatetime(session.expire_time)
    return message


def _json_web_key(key: SigningKey) -> auth_pb2.JsonWebKey:
    return auth_pb2.JsonWebKey(kty="OKP", crv="Ed25519", x=public_value(key.public_key), kid=key.kid, alg="EdDSA", use="sig")
