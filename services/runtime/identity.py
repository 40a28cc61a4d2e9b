"""Who calls: tokens verified offline, with the public keys of auth.

A token is accepted when a key of auth signed it, its audience is the suite or this service, it has not expired and its
session has not ended. Every service verifies by itself, so a call that bypasses the edge is no weaker. Only EdDSA is
accepted, whatever a token's header says.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.calls import NOBODY, Caller
from services.runtime.errors import ServiceError, Unauthenticated, Unavailable

ISSUER = "parley"
USER_AUDIENCE = "parley"
SERVICE_SUBJECT = "service:"
AUTHORIZATION = "authorization"
SERVICE_AUTHORIZATION = "x-parley-service-authorization"
_BEARER = "bearer "
_KEYS_LIFETIME_SECONDS = 300
# Tokens with made-up key ids must not become a load on auth.
_LEAST_SECONDS_BETWEEN_FETCHES = 1
_CACHED_TOKENS = 10_000
_LONGEST_TOKEN = 4_096
# A stream may outlive its token by this: longer than a reply takes.
EXPIRED_STREAM_SECONDS = 300


class KeySource(Protocol):
    """Where the public keys come from: auth's own table in auth, its JWKS elsewhere."""

    async def public_keys(self) -> Mapping[str, Ed25519PublicKey]:
        """The keys by their id. Raises a ServiceError (Unavailable, DeadlineExceeded) when they cannot be had."""


class EndedSessions(Protocol):
    """What is known of sessions that ended before their tokens did."""

    def is_ended(self, session_id: str) -> bool:
        """Whether this session has ended."""

    def is_current(self) -> bool:
        """Whether that knowledge is fresh enough to rely on."""


class TokenVerifier:
    """Verifies the tokens of a call. Verified tokens are remembered until they expire, at most 10,000."""

    def __init__(self, *, audience: str, keys: KeySource, ended: EndedSessions) -> None:
        self._audience = audience
        self._source = keys
        self._ended = ended
        self._keys: Mapping[str, Ed25519PublicKey] = {}
        self._fetch_time = float("-inf")
        self._is_stale = False
        self._fetching = asyncio.Lock()
        self._verified: OrderedDict[str, dict[str, Any]] = OrderedDict()

    async def verify(self, metadata: Mapping[str, str]) -> Caller:
        """The caller that the metadata proves; nobody without a token.

        Raises Unauthenticated for a token that is not good, and Unavailable while it cannot be known.
        """
        bearer, service_bearer = metadata.get(AUTHORIZATION), metadata.get(SERVICE_AUTHORIZATION)
        if bearer is None and service_bearer is None:
            return NOBODY
        service = None if service_bearer is None else self._service(await self._claims(_token(service_bearer)))
        if bearer is None:
            return Caller(service=service)
        token = _token(bearer)
        return self._caller(await self._claims(token), token, service)

    def check_standing(self, caller: Caller) -> None:
        """Whether a stream that this caller opened may go on. Raises Unauthenticated when it may not.

        A session that has ended ends its streams. A token that has expired does so a while later: a reply is not cut in the
        middle, and who follows for longer shows a new one.
        """
        if caller.session_id is not None and self._ended.is_ended(caller.session_id):
            raise _session_ended()
        if caller.expire_time and time.time() > caller.expire_time + EXPIRED_STREAM_SECONDS:
            raise _expired()

    def _service(self, claims: Mapping[str, Any]) -> str:
        subject = str(claims["sub"])
        if claims["aud"] != self._audience or not subject.startswith(SERVICE_SUBJECT):
            raise _invalid()
        return subject.removeprefix(SERVICE_SUBJECT)

    def _caller(self, claims: Mapping[str, Any], token: str, service: str | None) -> Caller:
        session_id = claims.get("sid")
        actor = claims.get("act")
        if claims["aud"] == USER_AUDIENCE and isinstance(session_id, str):
            self._check_session(session_id)
        elif claims["aud"] == self._audience and isinstance(actor, dict):
            service = _actor(actor, service)
            standing_id = claims.get("std")
            if isinstance(standing_id, str):
                # Ends with the user's right to be acted for, as a session does.
                self._check_session(standing_id)
        else:
            # A service token where a user's belongs, or a token for another service.
            raise _invalid()
        return Caller(
            user_id=str(claims["sub"]),
            session_id=session_id,
            roles=frozenset(claims.get("roles", ())),
            service=service,
            token=token,
            expire_time=float(claims["exp"]),
        )

    def _check_session(self, session_id: str) -> None:
        if self._ended.is_ended(session_id):
            raise _session_ended()
        if not self._ended.is_current():
            raise _unavailable()

    async def _claims(self, token: str) -> Mapping[str, Any]:
        claims = self._verified.get(token)
        if claims is None:
            claims = await self._verified_claims(token)
            self._verified[token] = claims
            if len(self._verified) > _CACHED_TOKENS:
                self._verified.popitem(last=False)
        elif claims["exp"] <= time.time():
            del self._verified[token]
            raise _expired()
        return claims

    async def _verified_claims(self, token: str) -> dict[str, Any]:
        if len(token) > _LONGEST_TOKEN:
            raise _invalid()
        try:
            key = await self._key(jwt.get_unverified_header(token).get("kid"))
            return jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],
                issuer=ISSUER,
                audience=[USER_AUDIENCE, self._audience],
                # When it was signed is auth's clock against ours, and says nothing that its expiry does not.
                options={"require": ["exp", "iat", "sub", "aud", "iss"], "verify_iat": False},
            )
        except jwt.ExpiredSignatureError:
            raise _expired() from None
        except jwt.InvalidTokenError:
            raise _invalid() from None

    async def _key(self, key_id: object) -> Ed25519PublicKey:
        if not isinstance(key_id, str):
            raise _invalid()
        age = time.monotonic() - self._fetch_time
        if age > _KEYS_LIFETIME_SECONDS or (key_id not in self._keys and age > _LEAST_SECONDS_BETWEEN_FETCHES):
            await self._fetch(asked_at=time.monotonic())
        if key_id in self._keys:
            return self._keys[key_id]
        # Auth did not answer: the key may be a new one.
        raise _unavailable() if self._is_stale else _invalid()

    async def _fetch(self, *, asked_at: float) -> None:
        async with self._fetching:
            if self._fetch_time >= asked_at:
                return  # another call fetched them while this one waited
            try:
                self._keys = await self._source.public_keys()
                self._is_stale = False
            except ServiceError:
                # The keys at hand go on serving: a key leaves only when its last token has expired.
                self._is_stale = True
            self._fetch_time = time.monotonic()


def _actor(actor: Mapping[str, object], service: str | None) -> str:
    """The service that acts for a user. A token that auth gave to one service is of no use to another."""
    name = str(actor.get("sub", "")).removeprefix(SERVICE_SUBJECT)
    if not name or service not in {None, name}:
        raise _invalid()
    return name


def _token(authorization: str) -> str:
    if authorization[: len(_BEARER)].lower() != _BEARER:
        raise Unauthenticated(
            "Send the access token as `authorization: Bearer <token>`.", reasons.ERROR_REASON_TOKEN_INVALID
        )
    return authorization[len(_BEARER) :].strip()


def _invalid() -> Unauthenticated:
    return Unauthenticated("The token is not valid here: sign in again.", reasons.ERROR_REASON_TOKEN_INVALID)


def _session_ended() -> Unauthenticated:
    return Unauthenticated("The session has ended: sign in again.", reasons.ERROR_REASON_SESSION_ENDED)


def _expired() -> Unauthenticated:
    return Unauthenticated("The token has expired: refresh it.", reasons.ERROR_REASON_TOKEN_EXPIRED)


def _unavailable() -> Unavailable:
    return Unavailable(
        "Your identity cannot be checked right now. Try again.",
        reasons.ERROR_REASON_IDENTITY_UNAVAILABLE,
        retry_delay_seconds=1,
    )
