"""What a service needs of auth: the public keys, the feed of ended sessions, and tokens to call other services with.

While auth is away a service goes on with the keys and tokens that it has, and without the feed for a grace time; after that
it refuses identities rather than guess whether their sessions have ended.
"""

import asyncio
import base64
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import grpc
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from parley.auth.v1 import auth_pb2, auth_pb2_grpc
from services.runtime.errors import ServiceError, peer_errors
from services.runtime.identity import SERVICE_AUTHORIZATION

log = structlog.get_logger(__name__)

_AUTH = "auth"
_CALL_SECONDS = 5.0
# The feed brings a message a second, empty or not.
_FEED_SILENCE_SECONDS = 5.0
_RECONNECT_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0)
# An ended session matters for as long as its access tokens may live: 15 minutes by default, an hour at most.
_REMEMBER_SECONDS = 3_600
_CACHED_USER_TOKENS = 10_000
_RENEW_BEFORE_SECONDS = 30


def read_credential(path: str) -> str:
    """The workload credential in a file. Raises OSError when it cannot be read."""
    return Path(path).read_text(encoding="utf-8").strip()


class RemoteKeys:
    """The public keys as auth publishes them (KeySource)."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._auth = auth_pb2_grpc.AuthServiceStub(channel)

    async def public_keys(self) -> Mapping[str, Ed25519PublicKey]:
        """The keys by their id. Raises Unavailable when auth does not answer."""
        with peer_errors():
            answer = await self._auth.GetJwks(auth_pb2.GetJwksRequest(), timeout=_CALL_SECONDS)
        return {key.kid: _public_key(key.x) for key in answer.keys if key.alg == "EdDSA"}


def _public_key(x: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(x + "=" * (-len(x) % 4)))


class ServiceTokens:
    """Tokens of this service for the others: for itself, and on behalf of a user. Kept until shortly before they expire."""

    def __init__(self, channel: grpc.aio.Channel, *, workload: str, credential: str) -> None:
        self._auth = auth_pb2_grpc.TokenServiceStub(channel)
        self._workload = workload
        self._credential = credential
        self._tokens: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()
        self._fetching: dict[tuple[str, str], asyncio.Task[str]] = {}

    async def for_audience(self, audience: str) -> str:
        """A token of this service that `audience` accepts. Raises ServiceError when auth refuses or does not answer."""
        return await self._cached(("", audience), self._issue)

    async def for_user(self, user_id: str, audience: str) -> str:
        """A token with which this service acts for the user towards `audience`. Raises ServiceError."""
        return await self._cached((user_id, audience), self._exchange)

    async def _cached(self, key: tuple[str, str], fetch: Callable[[str, str], Awaitable[tuple[str, float]]]) -> str:
        token, renew_time = self._tokens.get(key, ("", 0.0))
        if time.monotonic() < renew_time:
            return token
        task = self._fetching.get(key)
        if task is None:
            task = self._fetching[key] = asyncio.create_task(self._fetched(key, fetch))
            task.add_done_callback(lambda _: self._fetching.pop(key, None))
        # Shielded: one caller that gives up must not take the token from the others that wait for it.
        return await asyncio.shield(task)

    async def _fetched(self, key: tuple[str, str], fetch: Callable[[str, str], Awaitable[tuple[str, float]]]) -> str:
        with peer_errors():
            token, lifetime_seconds = await fetch(*key)
        self._tokens[key] = (token, time.monotonic() + lifetime_seconds - _RENEW_BEFORE_SECONDS)
        self._tokens.move_to_end(key)
        if len(self._tokens) > _CACHED_USER_TOKENS:
            self._tokens.popitem(last=False)
        return token

    async def _issue(self, _user_id: str, audience: str) -> tuple[str, float]:
        answer = await self._auth.IssueServiceToken(
            auth_pb2.IssueServiceTokenRequest(workload=self._workload, credential=self._credential, audience=audience),
            timeout=_CALL_SECONDS,
        )
        return answer.token, answer.lifetime.ToTimedelta().total_seconds()

    async def _exchange(self, user_id: str, audience: str) -> tuple[str, float]:
        answer = await self._auth.ExchangeForUser(
            auth_pb2.ExchangeForUserRequest(user_id=user_id, audience=audience),
            metadata=await self.as_metadata(_AUTH),
            timeout=_CALL_SECONDS,
        )
        return answer.token, answer.lifetime.ToTimedelta().total_seconds()

    async def as_metadata(self, audience: str) -> tuple[tuple[str, str], ...]:
        """The metadata by which this service proves itself to `audience`."""
        return ((SERVICE_AUTHORIZATION, f"Bearer {await self.for_audience(audience)}"),)


class EndedSessionsFeed:
    """What auth's feed has told of ended sessions (EndedSessions). `follow` is a standing duty of the process."""

    def __init__(self, channel: grpc.aio.Channel, tokens: ServiceTokens, *, grace_seconds: float) -> None:
        self._auth = auth_pb2_grpc.TokenServiceStub(channel)
        self._tokens = tokens
        self._grace_seconds = grace_seconds
        self._ended: OrderedDict[str, float] = OrderedDict()
        self._heard_at = float("-inf")

    def is_ended(self, session_id: str) -> bool:
        """Whether auth said that this session has ended."""
        return session_id in self._ended

    def is_current(self) -> bool:
        """Whether auth was heard within the grace time."""
        return time.monotonic() - self._heard_at <= self._grace_seconds

    async def follow(self) -> None:
        """Follows the feed for ever, and again whenever it is lost."""
        failures = 0
        while True:
            heard_at = self._heard_at
            try:
                await self._read()
            except (grpc.aio.AioRpcError, ServiceError, TimeoutError) as error:
                failures = 0 if self._heard_at > heard_at else failures + 1
                log.warning("identity.feed_lost", error=type(error).__name__, failures=failures)
            await asyncio.sleep(_RECONNECT_SECONDS[min(failures, len(_RECONNECT_SECONDS) - 1)])

    async def _read(self) -> None:
        # No deadline on the stream, which never ends: silence is what ends it.
        stream = self._auth.WatchEndedSessions(
            auth_pb2.WatchEndedSessionsRequest(), metadata=await self._tokens.as_metadata(_AUTH)
        )
        messages = aiter(stream)
        try:
            while True:
                async with asyncio.timeout(_FEED_SILENCE_SECONDS):
                    message = await anext(messages, None)
                if message is None:
                    return
                self._learn(message)
        finally:
            stream.cancel()

    def _learn(self, message: auth_pb2.WatchEndedSessionsResponse) -> None:
        now = self._heard_at = time.monotonic()
        for session_id in message.session_ids:
            self._ended[session_id] = now
            self._ended.move_to_end(session_id)
        while self._ended and now - next(iter(self._ended.values())) > _REMEMBER_SECONDS:
            self._ended.popitem(last=False)
