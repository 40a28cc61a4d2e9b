"""Secrets at rest: what users entrust to a service, encrypted before it reaches a row.

AES-256-GCM. Invariant: a sealed value opens only with one of the keys and with the context that it was sealed with (the row
and the user, say), so that a value copied to another row is of no use there. It refuses to say what was wrong.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Annotated, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_FORM: Final = b"\x01"
"""First byte of everything sealed: the form of the rest, so that another one can follow."""


class SealError(Exception):
    """The value was not sealed with these keys and this context, or was changed since."""


def sealing_keys(text: str) -> list[bytes]:
    """The keys in a setting: base64 of 32 bytes each, separated by commas. Raises ValueError."""
    return [_key(one.strip()) for one in text.split(",")]


def _key(text: str) -> bytes:
    try:
        key = base64.b64decode(text, altchars=b"-_" if {"-", "_"} & set(text) else None, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError("must be base64 of 32 bytes, several separated by commas: make one by `openssl rand -base64 32`")
    return key


def _checked(value: SecretStr) -> SecretStr:
    sealing_keys(value.get_secret_value())
    return value


class SealingSettings(BaseSettings):
    """The keys that secrets of users are kept under."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    sealing_key: Annotated[SecretStr, AfterValidator(_checked)] = Field()
    """Base64 of 32 bytes; several separated by commas: the first seals, all open.

    It is changed in three deployments: `old,new`, `new,old`, `new`.
    """


class Seal:
    """Seals and opens. The first key seals; all of them open."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise ValueError("a seal needs a key")
        self._ciphers = [AESGCM(key) for key in keys]
        self._fingerprint_keys = [hmac.digest(key, b"parley fingerprint", hashlib.sha256) for key in keys]

    @classmethod
    def from_settings(cls, settings: SealingSettings) -> "Seal":
        """The seal of the setting's keys."""
        return cls(sealing_keys(settings.sealing_key.get_secret_value()))

    def seal(self, plain: bytes, *, context: bytes) -> bytes:
        """The value, encrypted and bound to the context. Never the same twice."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _FORM + nonce + self._ciphers[0].encrypt(nonce, plain, _FORM + context)

    def open(self, sealed: bytes, *, context: bytes) -> bytes:
        """The value that was sealed with this context. Raises SealError."""
        return _opened(self._ciphers, sealed, context)

    def is_newest(self, sealed: bytes, *, context: bytes) -> bool:
        """Whether the first key opens it: anything else is to be sealed anew before an old key is taken away."""
        try:
            _opened(self._ciphers[:1], sealed, context)
        except SealError:
            return False
        return True

    def fingerprint(self, plain: bytes) -> bytes:
        """What tells a value from others and, unlike a plain digest, does not let a short secret in it be guessed."""
        return hmac.digest(self._fingerprint_keys[0], plain, hashlib.sha256)

    def is_fingerprint(self, fingerprint: bytes, plain: bytes) -> bool:
        """Whether the fingerprint, made with any of the keys, is that of this value."""
        made = (hmac.digest(key, plain, hashlib.sha256) for key in self._fingerprint_keys)
        return any(hmac.compare_digest(fingerprint, one) for one in made)


def _opened(ciphers: Sequence[AESGCM], sealed: bytes, context: bytes) -> bytes:
    form, nonce, rest = sealed[:1], sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
    if form != _FORM or len(nonce) < _NONCE_BYTES:
        raise SealError("not a sealed value")
    for cipher in ciphers:
        try:
            return cipher.decrypt(nonce, rest, _FORM + context)
        except InvalidTag:
            continue
    raise SealError("sealed with another key or for another place")
