"""Providers made by hand, on real sockets: bytes as a test dictates them, for what the simulator is too well-behaved for."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from services.chat.model import Model, ModelRequest, open_model
from services.chat.options import ReplyOptions
from services.chat.pieces import Piece, Position, RoundEnd
from services.chat.records import ContextMessage
from services.runtime.errors import ServiceError
from services.runtime.openai import OpenAISettings

USAGE = {"input_tokens": 3, "input_tokens_details": {"cached_tokens": 1}, "output_tokens": 2}
EVENT_STREAM = {"content-type": "text/event-stream"}


@dataclass(frozen=True)
class Request:
    """What the provider was asked."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Answer:
    """What it answers; `then` is close, cut (the connection breaks) or stall (nothing more comes)."""

    chunks: Sequence[bytes] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: EVENT_STREAM)
    then: str = "close"


@dataclass
class Provider:
    """A provider on a socket: each request takes the next answer. `requests` are those so far."""

    url: str
    answers: list[Answer]
    requests: list[Request] = field(default_factory=list)


def sse(*events: Mapping[str, Any]) -> bytes:
    """Named events, numbered from where they say, as OpenAI writes them."""
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


def numbered(*events: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def delta(text: object) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "delta": text}


def created(response_id: str = "resp_1") -> dict[str, Any]:
    return {"type": "response.created", "response": {"id": response_id, "status": "in_progress", "output": []}}


def completed(*output: Mapping[str, Any], response_id: str = "resp_1") -> dict[str, Any]:
    response = {"id": response_id, "status": "completed", "output": list(output), "usage": USAGE}
    return {"type": "response.completed", "response": response}


def message(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}


def refusal(status: int, *, headers: Mapping[str, str] | None = None, **error: Any) -> Answer:
    """An error as OpenAI's API gives it."""
    body = json.dumps({"error": {"message": "x", "type": "x", "param": None, "code": None, **error}}).encode()
    return Answer([body], status, {"content-type": "application/json", **(headers or {})})


def whole(body: Mapping[str, Any]) -> Answer:
    return Answer([json.dumps(body).encode()], headers={"content-type": "application/json"})


@asynccontextmanager
async def provider(*answers: Answer) -> AsyncIterator[Provider]:
    """A provider with these answers; all of them must be asked for."""
    told = Provider("", list(answers))
    stopped = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            told.requests.append(await _received(reader))
            answer = told.answers.pop(0) if told.answers else refusal(500, message="no answer is left")
            head = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
            length = "content-length: 1000000\r\n" if answer.then == "cut" else ""
            writer.write(f"HTTP/1.1 {answer.status} X\r\n{head}{length}connection: close\r\n\r\n".encode())
            for chunk in answer.chunks:
                writer.write(chunk)
                await writer.drain()
                await asyncio.sleep(0)
            if answer.then == "stall":
                await stopped.wait()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        told.url = f"http://{host}:{port}/v1"
        try:
            yield told
        finally:
            stopped.set()
    assert not told.answers, "answers were not asked for"


async def _received(reader: asyncio.StreamReader) -> Request:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    method, path, _ = first.split(" ")
    return Request(method, path, headers, json.loads(body) if body else None)


def options(**changed: Any) -> ReplyOptions:
    plain: dict[str, Any] = {
        "instructions": "Be brief.",
        "reasoning_effort": None,
        "max_output_tokens": None,
        "temperature": None,
        "user_digest": "digest",
    }
    return ReplyOptions(**{**plain, **changed})


def request(text: str = "Hi", *, model: str = "gpt-5-mini", **changed: Any) -> ModelRequest:
    """A round; what belongs to the options may be named beside what belongs to the request."""
    own = {name: changed.pop(name) for name in list(changed) if name in ModelRequest.__dataclass_fields__}
    said = [ContextMessage(sequence=1, role="user", text=text, revision=1)]
    asked: dict[str, Any] = {"messages": said, "options": options(**changed), **own}
    return ModelRequest(model=model, conversation_id="c0ffee", **asked)


@asynccontextmanager
async def opened(url: str, **changed: Any) -> AsyncIterator[Model]:
    """The model behind a provider's address."""
    settings = {"openai_api_key": "any", "openai_base_url": url, "openai_max_retries": 0, "openai_retry_delay_seconds": 0.02}
    async with open_model(OpenAISettings.model_validate({**settings, **changed})) as model:
        yield model


def in_seconds(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def written(model: Model, asked: ModelRequest, *, within_seconds: float = 10) -> list[Piece | RoundEnd]:
    """All pieces of a round."""
    async with contextlib.aclosing(model.round(asked, deadline=in_seconds(within_seconds))) as round_:
        return [piece async for piece in round_]


async def written_until_it_fails(
    model: Model, asked: ModelRequest, *, within_seconds: float = 10
) -> tuple[list[Piece | RoundEnd], ServiceError]:
    """The pieces of a round that must fail, and how it did."""
    pieces: list[Piece | RoundEnd] = []
    try:
        async with contextlib.aclosing(model.round(asked, deadline=in_seconds(within_seconds))) as round_:
            async for piece in round_:
                pieces.append(piece)  # noqa: PERF401 - what came before the failure is wanted, too
    except ServiceError as error:
        return pieces, error
    raise AssertionError("the round did not fail")


def text_of(pieces: Sequence[Piece | RoundEnd]) -> str:
    return "".join(piece for piece in pieces if isinstance(piece, str))


def end_of(pieces: Sequence[Piece | RoundEnd]) -> RoundEnd:
    """The end, of which there must be one, last."""
    ends = [piece for piece in pieces if isinstance(piece, RoundEnd)]
    assert len(ends) == 1
    assert pieces[-1] is ends[0]
    return ends[0]


def without_positions(pieces: Sequence[Piece | RoundEnd]) -> list[Piece | RoundEnd]:
    return [piece for piece in pieces if not isinstance(piece, Position)]
