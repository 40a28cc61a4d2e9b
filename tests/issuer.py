"""Tokens for tests, signed as auth signs them, and the verifier that trusts them."""

import time
import uuid
from collections.abc import Mapping

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.runtime.identity import ISSUER, USER_AUDIENCE, TokenVerifier

Metadata = tuple[tuple[str, str], ...]


class Issuer:
    """A key of its own, and what it says of sessions: it is the KeySource and the EndedSessions of a test."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.key_id = "test-key"
        self.ended: set[str] = set()
        self.current = True

    async def public_keys(self) -> Mapping[str, Ed25519PublicKey]:
        return {self.key_id: self.key.public_key()}

    def is_ended(self, session_id: str) -> bool:
        return session_id in self.ended

    def is_current(self) -> bool:
        return self.current

    def verifier(self, audience: str) -> TokenVerifier:
        return TokenVerifier(audience=audience, keys=self, ended=self)

    def sign(self, claims: Mapping[str, object], *, expires_in: float = 300, **header: object) -> str:
        now = time.time()
        everything = {"iss": ISSUER, "iat": int(now), "exp": int(now + expires_in), "jti": str(uuid.uuid4())}
        return jwt.encode({**everything, **claims}, self.key, algorithm="EdDSA", headers={"kid": self.key_id, **header})

    def user_token(self, user_id: str, *, session_id: str | None = None, roles: tuple[str, ...] = ("user",)) -> str:
        sid = session_id or str(uuid.uuid4())
        return self.sign({"aud": USER_AUDIENCE, "sub": user_id, "sid": sid, "roles": list(roles)})

    def service_token(self, service: str, *, audience: str) -> str:
        return self.sign({"aud": audience, "sub": f"service:{service}"})

    def on_behalf_token(self, user_id: str, *, service: str, audience: str) -> str:
        return self.sign({"aud": audience, "sub": user_id, "act": {"sub": f"service:{service}"}})

    def as_user(self, user_id: str) -> Metadata:
        """Call metadata of a signed-in user."""
        return (("authorization", f"Bearer {self.user_token(user_id)}"),)

    def as_service(self, service: str, *, audience: str, user_id: str | None = None) -> Metadata:
        """Call metadata of a service, on behalf of a user if one is named."""
        metadata = (("x-parley-service-authorization", f"Bearer {self.service_token(service, audience=audience)}"),)
        if user_id is None:
            return metadata
        token = self.on_behalf_token(user_id, service=service, audience=audience)
        return (*metadata, ("authorization", f"Bearer {token}"))
