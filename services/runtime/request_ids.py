"""Request ids: what makes a call that is repeated the same call.

Owns where a request id stands, and the digest that tells whether two requests with one id are the same. The id is the
caller's, unique per user.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from google.protobuf.message import Message

from services.runtime.errors import FieldViolation, invalid_request

IDEMPOTENCY_KEY: Final = "idempotency-key"
MAX_REQUEST_ID_CHARACTERS: Final = 200


class Named(Protocol):
    """A request with a request id."""

    @property
    def request_id(self) -> str:
        """Empty for none."""


def request_id_of(request: Named, metadata: Mapping[str, str]) -> str | None:
    """The request id, from the field or the `idempotency-key` header, which must not contradict each other."""
    header = metadata.get(IDEMPOTENCY_KEY, "")
    if request.request_id and header and request.request_id != header:
        raise _wrong("differs from the Idempotency-Key header: send one, or the same twice")
    if len(header) > MAX_REQUEST_ID_CHARACTERS:
        raise _wrong(f"the Idempotency-Key header must be at most {MAX_REQUEST_ID_CHARACTERS} characters long")
    return request.request_id or header or None


def digest_of(request: Message, without: Sequence[str]) -> bytes:
    """What makes a request the same as another: everything but these fields."""
    counted = type(request)()
    counted.CopyFrom(request)
    for field in without:
        counted.ClearField(field)
    return hashlib.sha256(counted.SerializeToString(deterministic=True)).digest()


def _wrong(description: str) -> Exception:
    return invalid_request([FieldViolation("request_id", description)])
