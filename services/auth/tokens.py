"""What is written into a token. Three kinds, one signature (EdDSA), told apart by audience and claims.

    access       aud "parley", sub a user, sid a session, roles: for users, 15 minutes
    service      aud one service, sub "service:<name>": for a service itself, 5 minutes
    on behalf    aud one service, sub a user, act {"sub": "service:<name>"}, std the user's standing: for a service that
                 acts for a user, 5 minutes, and not beyond a deactivation

Refresh tokens are no JWTs: 256 random bits that mean nothing outside auth's database, which keeps their digest only.
"""

import hashlib
import math
import secrets
import time
import uuid
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.auth.records import Account
from services.runtime.identity import ISSUER, SERVICE_SUBJECT, USER_AUDIENCE

SERVICE_TOKEN_SECONDS = 300
LEEWAY_SECONDS = 60
"""For how long past its expiry somebody's slow clock may still take a token for good."""


class Signer(Protocol):
    """Who knows the key that signs now."""

    def signing_key(self) -> tuple[str, Ed25519PrivateKey]:
        """The key's id and the key."""


class TokenMint:
    """Makes tokens, in process, with the current signing key."""

    def __init__(self, signer: Signer, *, access_seconds: int) -> None:
        self._signer = signer
        self.access_seconds = access_seconds

    def access_token(self, account: Account, session_id: str, *, most_seconds: float = math.inf) -> str:
        """A user's token for one session, which lives `most_seconds` at most."""
        roles = ["user", "admin"] if account.is_admin else ["user"]
        seconds = int(min(self.access_seconds, most_seconds))
        return self._sign(USER_AUDIENCE, account.id, seconds, {"sid": session_id, "roles": roles})

    def service_token(self, workload: str, audience: str) -> str:
        """A service's token for itself, towards one other service."""
        return self._sign(audience, f"{SERVICE_SUBJECT}{workload}", SERVICE_TOKEN_SECONDS, {})

    def on_behalf_token(self, account: Account, workload: str, audience: str) -> str:
        """A service's token to act for a user, towards one other service."""
        claims = {"act": {"sub": f"{SERVICE_SUBJECT}{workload}"}, "std": account.standing_id}
        return self._sign(audience, account.id, SERVICE_TOKEN_SECONDS, claims)

    def _sign(self, audience: str, subject: str, seconds: int, claims: dict[str, Any]) -> str:
        kid, key = self._signer.signing_key()
        now = int(time.time())
        standing = {"iss": ISSUER, "aud": audience, "sub": subject, "iat": now, "exp": now + seconds}
        return jwt.encode({**standing, "jti": uuid.uuid4().hex, **claims}, key, algorithm="EdDSA", headers={"kid": kid})


def new_refresh_token() -> str:
    """A fresh refresh token: 256 random bits, base64url."""
    return secrets.token_urlsafe(32)


def refresh_digest(token: str) -> bytes:
    """What the database knows a refresh token by. No salt: the token is random and long."""
    return hashlib.sha256(token.encode()).digest()
