"""A stand-in for Twilio on a real socket: it takes texts, lists them, and can be told to fail in every way that matters.

Its signatures are computed here and not by the SDK, which is what checks them.
"""

import asyncio
import base64
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Literal

from aiohttp import web

ACCOUNT = "AC" + "0" * 32
TOKEN = "the-token-of-the-account"
OWN_NUMBER = "+15005550006"
Fault = Literal["limit", "fault", "cut_before", "cut_after", "garbage", "slow", "in_pieces", "denied"] | int


def signature(url: str, form: Mapping[str, str] | list[tuple[str, str]], token: str = TOKEN) -> str:
    """X-Twilio-Signature, as Twilio documents it."""
    pairs = sorted(set(form.items() if isinstance(form, Mapping) else form))
    said = url + "".join(name + value for name, value in pairs)
    return base64.b64encode(hmac.new(token.encode(), said.encode(), hashlib.sha1).digest()).decode()


_ERRORS: dict[Any, tuple[int, int]] = {"limit": (429, 20429), "denied": (401, 20003), "fault": (503, 20500)}


@dataclass
class Taken:
    """A text that Twilio has."""

    sid: str
    to: str
    body: str
    status_url: str
    create_time: datetime
    sender: str


@dataclass
class TwilioStandIn:
    """What it was given. `faults` are the next answers, one each; `on_taken` is awaited before a text is confirmed."""

    url: str = ""
    taken: list[Taken] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    attempts: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    on_arrival: Callable[[], Awaitable[None]] | None = None
    on_taken: Callable[[Taken], Awaitable[None]] | None = None
    lists_nothing: bool = False
    deleted: list[str] = field(default_factory=list)
    keeps: bool = False
    """Whether it refuses to delete."""

    def clear(self) -> None:
        self.taken.clear()
        self.faults.clear()
        self.deleted.clear()
        self.attempts, self.on_arrival, self.on_taken, self.lists_nothing = 0, None, None, False
        self.keeps = False
        self.arrived = asyncio.Event()

    def to(self, number: str) -> list[str]:
        return [one.body for one in self.taken if one.to == number]

    async def create(self, request: web.Request) -> web.StreamResponse:
        self.attempts += 1
        self.arrived.set()
        if self.on_arrival is not None:
            await self.on_arrival()
        form = await request.post()
        fault = self.faults.pop(0) if self.faults else None
        if fault in _ERRORS:
            return _error(*_ERRORS[fault])
        if isinstance(fault, int):
            return _error(400, fault)
        return _cut(request) if fault == "cut_before" else await self._take(request, form, fault)

    async def _take(self, request: web.Request, form: Any, fault: Fault | None) -> web.StreamResponse:
        taken = Taken(
            "SM" + secrets.token_hex(16), str(form["To"]), str(form["Body"]), str(form["StatusCallback"]),
            datetime.now(UTC), str(form.get("From") or form["MessagingServiceSid"]),
        )  # fmt: skip
        self.taken.append(taken)
        if self.on_taken is not None:
            await self.on_taken(taken)
        if fault == "cut_after":
            return _cut(request)
        if fault == "slow":
            await asyncio.sleep(3)
        if fault == "garbage":
            return web.Response(status=201, text="<html>not what you think</html>", content_type="text/html")
        answer = web.json_response(_resource(taken), status=201)
        return await _in_pieces(request, answer) if fault == "in_pieces" else answer

    async def delete(self, request: web.Request) -> web.Response:
        if self.keeps:
            return _error(400, 20009)
        sid = request.match_info["sid"]
        known = [one for one in self.taken if one.sid == sid]
        self.deleted.append(sid)
        return web.Response(status=204) if known else _error(404, 20404)

    async def list(self, request: web.Request) -> web.Response:
        found = [one for one in self.taken if one.to == request.query.get("To") and not self.lists_nothing]
        page = {"messages": [_resource(one) for one in reversed(found)], "uri": "", "next_page_uri": None, "page": 0}
        return web.json_response({**page, "page_size": 100, "start": 0, "end": len(found), "first_page_uri": ""})


def _resource(taken: Taken) -> dict[str, Any]:
    when = format_datetime(taken.create_time)
    return {
        "sid": taken.sid, "to": taken.to, "from": taken.sender, "body": taken.body, "status": "queued",
        "direction": "outbound-api", "error_code": None, "account_sid": ACCOUNT, "date_created": when, "date_sent": when,
    }  # fmt: skip


def _error(status: int, code: int) -> web.Response:
    return web.json_response({"code": code, "message": "refused", "status": status}, status=status)


async def _in_pieces(request: web.Request, answer: web.Response) -> web.StreamResponse:
    """As a network may bring it: a part, and later the rest."""
    assert isinstance(answer.body, bytes)
    pieces = web.StreamResponse(status=answer.status, headers={"Content-Type": "application/json"})
    await pieces.prepare(request)
    for piece in (answer.body[:40], answer.body[40:]):
        await pieces.write(piece)
        await asyncio.sleep(0.05)
    await pieces.write_eof()
    return pieces


def _cut(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@asynccontextmanager
async def running_twilio(twilio: TwilioStandIn) -> AsyncIterator[TwilioStandIn]:
    """Serves until the block ends."""
    app = web.Application()
    path = f"/2010-04-01/Accounts/{ACCOUNT}/Messages.json"
    app.router.add_post(path, twilio.create)
    app.router.add_get(path, twilio.list)
    app.router.add_delete(path.replace(".json", "/{sid}.json"), twilio.delete)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    twilio.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield twilio
    await runner.cleanup()
