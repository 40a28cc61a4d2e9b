"""Twilio, through its SDK.

Owns what Twilio's answers and the failures on the way to it mean: what surely did not arrive, what is refused for good,
and what is not known. The SDK's own HTTP client would block the loop and has no deadline; ours is aiohttp, bounded in
time, and says whether a request has left. Redirects are not followed: a text would be posted twice.
"""

import base64
import datetime as dt
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from twilio.base.exceptions import TwilioException, TwilioRestException, TwilioServiceException
from twilio.http import AsyncHttpClient
from twilio.http.response import Response
from twilio.rest import Client

from services.sms.provider.provider import NotTakenError, RefusedError, Taken, Text, UnansweredError

_MOST_CONNECTIONS: Final = 50
_MOST_ANSWER_BYTES: Final = 1_048_576
_MOST_FOUND: Final = 100
# Our clock and Twilio's.
_SKEW: Final = dt.timedelta(seconds=30)
_STATUSES: Final[Mapping[str, str]] = {
    "accepted": "sent", "scheduled": "sent", "queued": "sent", "sending": "sent", "sent": "sent",
    "delivered": "delivered", "read": "delivered", "undelivered": "undelivered", "failed": "failed", "canceled": "failed",
}  # fmt: skip
_FIRST_BAD, _FIRST_FAULT = 400, 500
# Not now (a limit) or not with these credentials (which an operator mends): in either case nothing was taken.
_NOT_TAKEN: Final = (401, 403, 429)
_GONE: Final = ("20404", "404")


def status_of(twilio: str) -> str | None:
    """Our word for a status of Twilio's; None for one that says nothing of a text that we sent."""
    return _STATUSES.get(twilio)


@dataclass(frozen=True, slots=True)
class TwilioAccount:
    """The account, and what texts are sent from: a messaging service, or a number."""

    account_sid: str
    auth_token: str
    base_url: str
    number: str
    messaging_service_sid: str


class TwilioProvider:
    """Texts by Twilio. `status_url` is where it tells of the delivery of the text with this id."""

    def __init__(self, account: TwilioAccount, *, status_url: str, timeout_seconds: float) -> None:
        self._http = _HttpClient(account.base_url, timeout_seconds=timeout_seconds)
        self._client = Client(  # type: ignore[no-untyped-call]
            account.account_sid, account.auth_token, http_client=self._http
        )
        self._account = account
        self._status_url = status_url

    async def send(self, text: Text) -> Taken:
        """Gives it to Twilio. Raises NotTakenError, RefusedError, UnansweredError."""
        account = self._account
        sender = (
            {"messaging_service_sid": account.messaging_service_sid}
            if account.messaging_service_sid
            else {"from_": account.number}
        )
        with _translated():
            made = await self._client.messages.create_async(
                to=text.phone_number,
                body=text.text,
                status_callback=f"{self._status_url}/{text.message_id}",
                **sender,
            )
            return _taken(made)

    async def find(self, phone_number: str, text: str, *, since: dt.datetime) -> Sequence[Taken]:
        """What Twilio has of this text to this number since then. Raises UnansweredError."""
        begin = since - _SKEW
        with _translated(is_reading=True):
            # The latest first. Not by their date of sending, which those have not that wait at Twilio.
            listed = await self._client.messages.list_async(to=phone_number, limit=_MOST_FOUND, page_size=_MOST_FOUND)
            ours = [
                one for one in listed
                if one.body == text and str(one.direction).startswith("outbound") and _is_since(one.date_created, begin)
            ]  # fmt: skip
            return [_taken(one) for one in reversed(ours)]

    async def forget(self, provider_message_id: str) -> None:
        """Deletes the message at Twilio, text and numbers. Idempotent. Raises UnansweredError, as while it is under way."""
        try:
            with _translated():
                await self._client.messages(provider_message_id).delete_async()
        except NotTakenError as error:
            raise UnansweredError(str(error)) from None
        except RefusedError as error:
            if error.code not in _GONE:
                raise UnansweredError(error.code) from None

    async def close(self) -> None:
        """Closes its connections."""
        await self._http.close()


def _taken(made: Any) -> Taken:
    status = status_of(str(made.status)) or "sent"
    if not made.sid:
        raise UnansweredError("no id")
    code = "" if made.error_code is None else str(made.error_code)
    return Taken(str(made.sid), status, code)  # type: ignore[arg-type]


def _is_since(created: dt.datetime | None, begin: dt.datetime) -> bool:
    return created is None or created >= begin


@contextmanager
def _translated(*, is_reading: bool = False) -> Iterator[None]:
    """What the SDK and the way to Twilio raise, in the words of the seam. No text of an error goes on: it quotes numbers."""
    try:
        yield
    except (TwilioRestException, TwilioServiceException) as error:
        status, code = int(error.status), str(error.code or error.status)
        if is_reading or status >= _FIRST_FAULT:
            raise UnansweredError(code) from None
        if status in _NOT_TAKEN:
            raise NotTakenError(code) from None
        raise RefusedError(code) from None
    except (TwilioException, json.JSONDecodeError, UnicodeDecodeError) as error:
        # An answer that is none of Twilio's: a proxy's, say.
        raise UnansweredError(type(error).__name__) from None
    except NotTakenError:
        if is_reading:
            raise UnansweredError("not reached") from None
        raise


class _HttpClient(AsyncHttpClient):
    """The SDK's way to HTTP: at another address where one is set, with a deadline, without a redirect."""

    def __init__(self, base_url: str, *, timeout_seconds: float) -> None:
        super().__init__(logging.getLogger("twilio"), is_async=True, timeout=timeout_seconds)
        self._base_url = base_url.rstrip("/")
        self._deadline = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def request(  # type: ignore[override]  # noqa: PLR0913, PLR0917 - as the SDK's own asynchronous client
        self,
        method: str,
        uri: str,
        params: dict[str, object] | None = None,
        data: dict[str, object] | None = None,
        headers: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        timeout: float | None = None,  # noqa: ARG002, ASYNC109 - the one of this client holds
        allow_redirects: bool = False,  # noqa: ARG002, FBT001, FBT002
    ) -> Response:
        """Asks Twilio. Raises NotTakenError where nothing has left, UnansweredError where no answer came."""
        parts = urlsplit(uri)
        url = f"{self._base_url}{parts.path}" + (f"?{parts.query}" if parts.query else "")
        named = {} if auth is None else {"Authorization": _basic(*auth)}
        asked: dict[str, Any] = {"params": params, "data": data, "headers": {**(headers or {}), **named}}
        try:
            async with self._open().request(method, url, allow_redirects=False, **asked) as answer:
                body = await _read(answer.content)
                return Response(answer.status, body.decode(errors="replace"), dict(answer.headers))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotTakenError(type(error).__name__) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnansweredError(type(error).__name__) from None

    def _open(self) -> aiohttp.ClientSession:
        # Made where it is used: a session belongs to a running loop.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=self._deadline, connector=aiohttp.TCPConnector(limit=_MOST_CONNECTIONS), trust_env=True
            )
        return self._session

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()


async def _read(content: aiohttp.StreamReader) -> bytes:
    """All of an answer, up to the bound: a read gives only what has arrived."""
    body = b""
    while len(body) < _MOST_ANSWER_BYTES and (part := await content.read(_MOST_ANSWER_BYTES - len(body))):
        body += part
    return body


def _basic(name: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"
