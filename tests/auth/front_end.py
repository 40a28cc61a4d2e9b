"""A Better Auth front end, as another issuer of tokens: its published keys on a real socket, its session cookies."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import OKPAlgorithm

from tests.auth.harness import new_name

ISSUER, AUDIENCE = "https://app.example.com", "https://app.example.com/api"
SECRET = "a secret of a Better Auth front end, long enough"


class FrontEnd:
    """A Better Auth front end: an EdDSA key set on a real socket, and session cookies signed with its secret."""

    def __init__(self) -> None:
        self.keys = {"one": Ed25519PrivateKey.generate()}
        self.extra_keys: list[dict[str, Any]] = []
        self.url = ""
        self.fetches = 0
        self.is_away = False
        self.body: bytes | None = None
        """Sent in the place of the keys."""
        self.pieces = 1
        """In so many writes, one after the other."""
        self.was_asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.fetches += 1
        self.was_asked.set()
        await self.may_answer.wait()
        if self.is_away:
            return web.Response(status=500)
        body = self.key_set() if self.body is None else self.body
        answer = web.StreamResponse(headers={"content-length": str(len(body)), "content-type": "application/json"})
        await answer.prepare(request)
        size = -(-len(body) // self.pieces)
        for start in range(0, len(body), size):
            await answer.write(body[start : start + size])
            await asyncio.sleep(0.05 if self.pieces > 1 else 0)
        return answer

    def key_set(self) -> bytes:
        public = [
            {**json.loads(OKPAlgorithm.to_jwk(key.public_key())), "kid": name, "alg": "EdDSA"}
            for name, key in self.keys.items()
        ]
        return json.dumps({"keys": [*public, *self.extra_keys]}).encode()

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        standing = {"iss": ISSUER, "aud": AUDIENCE, "sub": uuid.uuid4().hex, "iat": now, "exp": now + 600}
        return {**standing, **changes}

    def sign(self, claims: dict[str, Any], *, made_up: str = "") -> str:
        return "Bearer " + jwt.encode(claims, self.keys["one"], "EdDSA", {"kid": made_up or "one"})

    def session(self, *, secret: str = SECRET, seconds: int = 300, **user: Any) -> str:
        """What `cookieCache.strategy: "jwt"` puts into `session_data`."""
        now = int(time.time())
        who = {"id": uuid.uuid4().hex, "email": f"{new_name()}@example.com", "emailVerified": True, "name": "Ana", **user}
        claims = {"session": {"id": "s"}, "user": who, "updatedAt": now * 1000, "version": "1"}
        return "Bearer " + jwt.encode({**claims, "iat": now, "exp": now + seconds}, secret, "HS256")


@asynccontextmanager
async def running_front_end() -> AsyncIterator[FrontEnd]:
    """Serves its key set until the block ends."""
    served = FrontEnd()
    app = web.Application()
    app.router.add_get("/jwks", served.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    try:
        yield served
    finally:
        await runner.cleanup()


def raw(front_end: FrontEnd, kid: str = "one") -> bytes:
    return front_end.keys[kid].public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def pem(front_end: FrontEnd) -> bytes:
    return front_end.keys["one"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def forged(claims: dict[str, Any], secret: bytes, header: dict[str, Any]) -> str:
    """HS256 by hand: PyJWT does not lend itself to signing with a public key."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    signed = b".".join(parts)
    signature = base64.urlsafe_b64encode(hmac.digest(secret, signed, hashlib.sha256)).rstrip(b"=")
    return "Bearer " + (signed + b"." + signature).decode()
