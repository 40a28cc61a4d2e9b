"""The provider's stream, byte by byte: every framing that server-sent events allow, and none that they do not."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from tests.chat.conftest import Start
from tests.chat.service import refusal, text_of

USAGE = {"input_tokens": 3, "input_tokens_details": {"cached_tokens": 1}, "output_tokens": 2}
DONE = {"type": "response.completed", "response": {"status": "completed", "usage": USAGE}}


def event(body: object, *, named: bool = True, end: str = "\n") -> bytes:
    name = f"event: {body['type']}{end}" if named and isinstance(body, dict) else ""
    return f"{name}data: {json.dumps(body)}{end}{end}".encode()


def delta(text: object) -> dict[str, object]:
    return {"type": "response.output_text.delta", "delta": text}


@asynccontextmanager
async def provider(chunks: Sequence[bytes]) -> AsyncIterator[str]:
    """A server that answers every request with these bytes, a write each, and closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}/v1"


WHOLE = event(delta("Grüß")) + event(delta(" dich")) + event(DONE)
FRAMINGS = {
    "one write": [WHOLE],
    "a byte a write": [WHOLE[index : index + 1] for index in range(len(WHOLE))],
    "crlf": [event(delta("Grüß"), end="\r\n") + event(delta(" dich"), end="\r\n") + event(DONE, end="\r\n")],
    "crlf, split inside": [b"event: x\r", b"\ndata: {}\r\n\r", b"\n" + WHOLE],
    "no names": [event(delta("Grüß"), named=False), event(delta(" dich"), named=False), event(DONE, named=False)],
    "no spaces": [WHOLE.replace(b": {", b":{").replace(b"event: ", b"event:")],
    "comments and unknown events": [b": ping\n\n", event({"type": "response.new_thing"}), WHOLE],
    "data in lines": [event(delta("Grüß dich"), named=False).replace(b", ", b",\ndata:"), event(DONE)],
    "a marker after the end": [WHOLE, b"data: [DONE]\n\n"],
    "a refusal": [event({"type": "response.refusal.delta", "delta": "Grüß dich"}), event(DONE)],
    "control characters in the text": [event(delta("Grüß\x00 d\x1bich")), event(DONE)],
}  # fmt: skip


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_the_text_is_the_same_in_every_framing(start_chat: Start, framing: str) -> None:
    async with provider(FRAMINGS[framing]) as url, start_chat(openai_base_url=url) as chat:
        events = await chat.user().stream("Hi")
    assert text_of(events) == "Grüß dich"
    reply = events[-1].completed.message
    assert (reply.status, reply.usage.input_tokens, reply.usage.cached_tokens, reply.usage.output_tokens) == (
        "complete", 3, 1, 2,
    )  # fmt: skip


BROKEN = {
    "no end": [event(delta("Half"))],
    "half an end": [event(delta("Half")), event(DONE)[:-3]],
    "no json": [event(delta("Half")), b"event: response.completed\ndata: {oops\n\n"],
    "no object": [event(delta("Half")), b"event: response.completed\ndata: 7\n\n"],
    "another shape": [event(delta("Half")), event({"type": "response.completed", "response": "x"})],
    "no text in a delta": [event(delta("Half")), event(delta(7)), event(DONE)],
    "failed without a reason": [event(delta("Half")), event({"type": "response.failed", "response": {}})],
    "a bare error": [event(delta("Half")), event({"type": "error", "code": "server_error", "message": "x", "param": None})],
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_what_is_broken_is_never_a_short_answer(start_chat: Start, broken: str) -> None:
    async with provider(BROKEN[broken]) as url, start_chat(openai_base_url=url) as chat:
        events = await chat.user().stream("Hi")
    failed = events[-1].failed
    assert (failed.reason, failed.partial_message.text) == ("MODEL_UNAVAILABLE", "Half")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("rate_limit_exceeded", "MODEL_RATE_LIMITED"),
        ("insufficient_quota", "MODEL_ACCESS_REFUSED"),
        ("invalid_prompt", "MODEL_REFUSED_REQUEST"),
    ],
)
async def test_an_error_inside_a_stream_means_what_its_code_says(start_chat: Start, code: str, reason: str) -> None:
    failed = {"type": "response.failed", "response": {"error": {"code": code, "message": "vendor's words"}}}
    async with provider([event(failed)]) as url, start_chat(openai_base_url=url) as chat:
        refused = await refusal(chat.user().create("Hi"))
    assert refused.reason == reason
    assert "vendor" not in refused.message


async def test_a_content_filter_ends_the_reply_as_incomplete(start_chat: Start) -> None:
    stopped = {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}, "usage": USAGE}
    chunks = [event(delta("Half")), event({"type": "response.incomplete", "response": stopped})]
    async with provider(chunks) as url, start_chat(openai_base_url=url) as chat:
        answer = await chat.user().create("Hi")
    assert (answer.message.text, answer.message.incomplete_reason) == ("Half", "CONTENT_FILTER")
