"""The keys that sign the suite's tokens: which one signs now, which are published, when the next one comes.

A key is published before it signs (so that every verifier's cache has it by then) and for as long after as a token of its
lifetime may live. Several auth processes share the keys through the database, which decides when the next one is due. A
process that cannot reach the database goes on with the keys it knows. At rest the private keys are sealed
(runtime/sealing.py).
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import orjson
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from services.auth.key_store import KeyPlan, KeyStore
from services.auth.records import StoredKey
from services.runtime.database import DATABASE_FAILURES
from services.runtime.sealing import Seal, SealError

log = structlog.get_logger(__name__)

# The first byte of a key in plain form: an ASN.1 sequence. What is sealed begins with another.
_DER = b"\x30"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs from `activate_time` on, until its successor does."""

    kid: str
    activate_time: datetime
    private_key: Ed25519PrivateKey = field(repr=False)

    @property
    def public_key(self) -> Ed25519PublicKey:
        """What verifies its signatures."""
        return self.private_key.public_key()


class SigningKeys:
    """The keys as this process knows them. `refresh` before the first use, and then every minute or so."""

    def __init__(self, store: KeyStore, plan: KeyPlan, seal: Seal) -> None:
        self._store = store
        self._plan = plan
        self._seal = seal
        self._keys: Sequence[SigningKey] = ()

    async def refresh(self) -> None:
        """Adds the next key when it is due, lets old ones go, and learns what other processes did."""
        if await self._store.is_key_due(self._plan):
            await self._rotate()
        await self._learn()
        await self._reseal()

    def signing_key(self) -> tuple[str, Ed25519PrivateKey]:
        """The key that signs now."""
        now = datetime.now(UTC)
        # The first key's time is the database's now, which this machine's clock may not have reached yet.
        active = [key for key in self._keys if key.activate_time <= now] or self._keys[:1]
        if not active:
            raise RuntimeError("no signing key is known: refresh() comes before the first use")
        return active[-1].kid, active[-1].private_key

    def published(self) -> Sequence[SigningKey]:
        """Every key that verifiers should know."""
        return self._keys

    async def public_keys(self) -> Mapping[str, Ed25519PublicKey]:
        """What verifies tokens, by kid, fresh from the database if it answers: the KeySource of our own verifier."""
        try:
            await self._learn()
        except DATABASE_FAILURES as error:
            log.warning("auth.signing_keys_not_read", error=type(error).__name__)
        return {key.kid: key.public_key for key in self._keys}

    async def _learn(self) -> None:
        """Reads the keys. Raises SealError for one that is new to this process and that it cannot open."""
        # By its kid a key is known for what it is: another process may have sealed it anew, with a key of the next release.
        known = {key.kid: key.private_key for key in self._keys}
        self._keys = [
            SigningKey(stored.kid, stored.activate_time, known.get(stored.kid) or self._opened(stored))
            for stored in await self._store.load_keys()
        ]

    async def _reseal(self) -> None:
        """Seals, with the first sealing key, what an earlier release kept in plain form or an earlier sealing key sealed."""
        for stored in await self._store.load_keys():
            if self._seal.is_newest(stored.private_key, context=_context(stored.kid)):
                continue
            try:
                secret = self._der(stored)
            except SealError:
                # Whoever sealed it has a newer key. In ours it would be of no use to those who have that one only.
                log.warning("auth.signing_key_sealed_otherwise", kid=stored.kid)
                continue
            sealed = self._seal.seal(secret, context=_context(stored.kid))
            if await self._store.replace_form(stored.kid, held=stored.private_key, sealed=sealed):
                log.info("auth.signing_key_sealed", kid=stored.kid)

    def _der(self, stored: StoredKey) -> bytes:
        """The key as PKCS#8 DER. Raises SealError where none of the sealing keys opens it."""
        if stored.private_key[:1] == _DER:
            return stored.private_key
        return self._seal.open(stored.private_key, context=_context(stored.kid))

    def _opened(self, stored: StoredKey) -> Ed25519PrivateKey:
        key = load_der_private_key(self._der(stored), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise TypeError(f"signing key {stored.kid} is not an Ed25519 key")
        return key

    async def _rotate(self) -> None:
        key = Ed25519PrivateKey.generate()
        kid = thumbprint(key.public_key())
        secret = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        sealed = self._seal.seal(secret, context=_context(kid))
        if await self._store.add_key(kid=kid, private_key=sealed, plan=self._plan):
            log.info("auth.signing_key_rotated", kid=kid)


def public_value(key: Ed25519PublicKey) -> str:
    """The `x` of the key's JWK: base64url without padding (RFC 8037)."""
    return _base64url(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def thumbprint(key: Ed25519PublicKey) -> str:
    """The key's id: the SHA-256 thumbprint of its JWK (RFC 7638)."""
    jwk = {"crv": "Ed25519", "kty": "OKP", "x": public_value(key)}
    return _base64url(hashlib.sha256(orjson.dumps(jwk, option=orjson.OPT_SORT_KEYS)).digest())


def _context(kid: str) -> bytes:
    """What a sealed key is bound to: its own row."""
    return f"signing key {kid}".encode()


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
