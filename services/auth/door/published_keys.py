"""The keys that another issuer publishes: fetched when needed, kept for minutes, fetched anew for one that is not there.

Bounds: one fetch at a time and one in ten seconds, 64 KiB, five seconds, no redirects. An issuer that does not answer, or
answers with what is no key set, is believed by the keys at hand.
"""

import asyncio
import json
import time
from typing import Final

import aiohttp
import jwt
import structlog

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import Unauthenticated, Unavailable

log = structlog.get_logger(__name__)
_KEEP_SECONDS: Final = 300.0
_LEAST_SECONDS_BETWEEN_FETCHES: Final = 10.0
_FETCH_SECONDS: Final = 5.0
_MOST_BYTES: Final = 64 * 1024
_OK: Final = 200


class PublishedKeys:
    """The keys of one URL, by their ids."""

    def __init__(self, url: str, *, least_seconds_between_fetches: float = _LEAST_SECONDS_BETWEEN_FETCHES) -> None:
        self._url = url
        self._pause = least_seconds_between_fetches
        self._keys: dict[str, jwt.PyJWK] = {}
        self._asked_at = float("-inf")
        self._answered_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, key_id: str) -> jwt.PyJWK:
        """The key. Raises Unauthenticated (TOKEN_INVALID) for one that is not there, Unavailable while that is not known."""
        if key_id not in self._keys or time.monotonic() - self._answered_at > _KEEP_SECONDS:
            await self._refresh()
        if key_id in self._keys:
            return self._keys[key_id]
        if self._answered_at < self._asked_at or self._answered_at == float("-inf"):
            raise Unavailable(
                "The keys of the token's issuer cannot be had at the moment: try again.",
                reasons.ERROR_REASON_IDENTITY_UNAVAILABLE,
                retry_delay_seconds=1,
            )
        raise Unauthenticated("The token is not valid here: sign in again.", reasons.ERROR_REASON_TOKEN_INVALID)

    async def _refresh(self) -> None:
        if self._fetching is None:
            if time.monotonic() - self._asked_at < self._pause:
                return
            self._asked_at = time.monotonic()
            self._fetching = asyncio.create_task(self._learn())
            self._fetching.add_done_callback(self._ended)
        # Shielded: a caller who leaves must not take the keys from the others, who may not ask again so soon.
        await asyncio.shield(self._fetching)

    async def _learn(self) -> None:
        try:
            self._keys = _read(await self._fetch())
            self._answered_at = time.monotonic()
        except (aiohttp.ClientError, TimeoutError, jwt.PyJWKSetError, ValueError, RecursionError) as error:
            log.warning("auth.issuer_keys_not_read", error=type(error).__name__)

    def _ended(self, _task: "asyncio.Task[None]") -> None:
        self._fetching = None

    async def _fetch(self) -> bytes:
        timeout = aiohttp.ClientTimeout(total=_FETCH_SECONDS)
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.get(self._url, allow_redirects=False) as answer,
        ):
            body = await _body(answer.content)
        if answer.status != _OK or len(body) > _MOST_BYTES:
            raise ValueError("no key set")
        return body


async def _body(content: aiohttp.StreamReader) -> bytes:
    """All of an answer, or a byte more than may be: a read gives only what has arrived."""
    body = b""
    while len(body) <= _MOST_BYTES and (part := await content.read(_MOST_BYTES + 1 - len(body))):
        body += part
    return body


def _read(body: bytes) -> dict[str, jwt.PyJWK]:
    """A symmetric key has no business in a published set: it is left out."""
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError("no key set")  # noqa: TRY004 - as all else that is not understood
    keys = jwt.PyJWKSet.from_dict(document).keys
    return {key.key_id: key for key in keys if key.key_id is not None and key.key_type != "oct"}
