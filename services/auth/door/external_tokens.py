"""Tokens of other issuers, verified: each issuer by its own keys and its own algorithms, whatever a token's header says."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import jwt

from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.door.published_keys import PublishedKeys
from services.auth.door.records import ExternalIdentity
from services.auth.issuers import JwksIssuer, SessionIssuer
from services.runtime.errors import Unauthenticated

_LONGEST_TOKEN: Final = 8_192
_LONGEST_SUBJECT: Final = 255
_LEEWAY_SECONDS: Final = 5


class ExternalTokens:
    """Says who somebody is by a token of one of these issuers."""

    def __init__(self, issuers: Sequence[JwksIssuer | SessionIssuer]) -> None:
        self._published = {
            issuer.issuer: (issuer, PublishedKeys(issuer.jwks_url)) for issuer in issuers if isinstance(issuer, JwksIssuer)
        }
        self._sessions = [(issuer, issuer.secret()) for issuer in issuers if isinstance(issuer, SessionIssuer)]

    async def verify(self, token: str) -> tuple[ExternalIdentity, JwksIssuer | SessionIssuer]:
        """Who the token speaks of, and who says so.

        Raises Unauthenticated (TOKEN_INVALID, TOKEN_EXPIRED), and Unavailable while the issuer's keys cannot be had.
        """
        if len(token) > _LONGEST_TOKEN:
            raise _invalid()
        try:
            return await self._verified(token)
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("The token has expired: get a new one.", reasons.ERROR_REASON_TOKEN_EXPIRED) from None
        except (jwt.InvalidTokenError, jwt.PyJWKError):
            raise _invalid() from None

    async def _verified(self, token: str) -> tuple[ExternalIdentity, JwksIssuer | SessionIssuer]:
        # Only to know whom to ask: nothing of it is believed before the signature is.
        claimed = jwt.decode(token, options={"verify_signature": False, "verify_exp": False, "verify_aud": False})
        name = claimed.get("iss")
        if name is None and self._sessions:
            issuer, secret = self._sessions[0]
            return _of_session(issuer, _decode(token, secret, ["HS256"])), issuer
        if not isinstance(name, str) or name not in self._published:
            raise _invalid()
        published, keys = self._published[name]
        key_id = jwt.get_unverified_header(token).get("kid")
        if not isinstance(key_id, str):
            raise _invalid()
        key = await keys.key(key_id)
        claims = _decode(token, key.key, published.algorithms, audience=published.audiences, issuer=published.issuer)
        return _of_claims(published, claims), published


def _decode(token: str, key: Any, algorithms: Sequence[str], **expected: Any) -> Mapping[str, Any]:
    options: Any = {"require": ["exp"]}
    try:
        return jwt.decode(token, key, algorithms=list(algorithms), leeway=_LEEWAY_SECONDS, options=options, **expected)
    except (jwt.InvalidKeyError, TypeError):
        # The header chose an algorithm, of those that are taken, which is not for this kind of key.
        raise _invalid() from None


def _of_claims(issuer: JwksIssuer, claims: Mapping[str, Any]) -> ExternalIdentity:
    is_verified = claims.get("email_verified", claims.get("emailVerified")) is True
    return _identity(issuer.issuer, claims.get("sub"), claims.get("email") if is_verified else None, claims["exp"])


def _of_session(issuer: SessionIssuer, claims: Mapping[str, Any]) -> ExternalIdentity:
    user = claims.get("user")
    if not isinstance(user, dict):
        raise _invalid()
    email = user.get("email") if user.get("emailVerified") is True else None
    return _identity(issuer.issuer, user.get("id"), email, claims["exp"])


def _identity(issuer: str, subject: object, email: object, expire_time: float) -> ExternalIdentity:
    if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_SUBJECT or not subject.isprintable():
        raise _invalid()
    if expire_time <= time.time():
        # Within the leeway: too short a life for a token of ours.
        raise jwt.ExpiredSignatureError
    return ExternalIdentity(issuer, subject, email if isinstance(email, str) and email else None, float(expire_time))


def _invalid() -> Unauthenticated:
    return Unauthenticated("The token is not valid here: sign in again.", reasons.ERROR_REASON_TOKEN_INVALID)
