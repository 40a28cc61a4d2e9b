"""The seam to the model: a reply of the Responses API as it is written.

Owns the request as the provider gets it and the reading of its stream: raw bytes, split into events here, of which only
those that carry text or the end are parsed. Invariant: a reply ends with exactly one ReplyEnd or with a ServiceError; a
stream that is cut, falls silent, is malformed or ends without a terminal event is an error, never a short answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import orjson
import structlog
from openai import AsyncOpenAI, omit
from openai.types.responses import EasyInputMessageParam

from services.chat.records import ContextMessage, Usage
from services.runtime.errors import ServiceError
from services.runtime.openai import (
    OpenAISettings,
    ReasoningEffort,
    from_error_code,
    retry_wait_seconds,
    translated,
    unavailable,
)
from services.runtime.rules import CONTROL_CHARACTERS

log = structlog.get_logger(__name__)

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
MAX_DRAIN_SECONDS: Final = 0.25
_TEXT_KINDS: Final = frozenset(("response.output_text.delta", "response.refusal.delta"))
_END_KINDS: Final = frozenset(("response.completed", "response.incomplete", "response.failed", "error"))
_READ_NAMES: Final = frozenset(kind.encode() for kind in _TEXT_KINDS | _END_KINDS)
_INCOMPLETE: Final = {"max_output_tokens": "MAX_OUTPUT_TOKENS", "content_filter": "CONTENT_FILTER"}


@dataclass(frozen=True, slots=True)
class ReplyRequest:
    """How a reply is to be written."""

    instructions: str
    reasoning_effort: ReasoningEffort | None
    max_output_tokens: int | None
    temperature: float | None
    user_digest: str


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What is asked of the model. What is None is left to the provider."""

    model: str
    instructions: str
    messages: Sequence[ContextMessage]
    reasoning_effort: ReasoningEffort | None
    max_output_tokens: int | None
    temperature: float | None
    conversation_id: str
    user_digest: str


@dataclass(frozen=True, slots=True)
class ReplyEnd:
    """The end of a reply: what it cost, and why it is incomplete, if it is."""

    usage: Usage | None
    incomplete_reason: str | None


class Model:
    """Writes replies. Holds no state of any of them."""

    def __init__(self, client: AsyncOpenAI, settings: OpenAISettings) -> None:
        self._client = client
        self._settings = settings

    async def reply(self, request: ModelRequest, *, deadline: float) -> AsyncGenerator[str | ReplyEnd, None]:
        """Pieces of text, then one ReplyEnd. Raises ServiceError.

        What fails before the first piece is tried again where that helps and the wait ends before `deadline` (on the
        loop's clock). The caller enforces the deadline itself, awaits nothing between two pieces, and closes the generator.
        """
        retries = 0
        while True:
            has_text = False
            try:
                async for piece in self._attempt(request):
                    has_text = True
                    yield piece
            except ServiceError as error:
                wait_seconds = retry_wait_seconds(error, retries=retries, settings=self._settings)
                if has_text or wait_seconds is None or asyncio.get_running_loop().time() + wait_seconds >= deadline:
                    raise
                log.warning("model.call_retried", model=request.model, wait_seconds=round(wait_seconds, 3))
            else:
                return
            retries += 1
            await asyncio.sleep(wait_seconds)

    async def _attempt(self, request: ModelRequest) -> AsyncGenerator[str | ReplyEnd, None]:
        with translated(request.model):
            silence = Silence(self._settings.openai_timeout_seconds)
            async with silence, self._opened(request) as response:
                splitter = FrameSplitter(request.model)
                chunks = response.iter_bytes()
                async for chunk in chunks:
                    silence.heard()
                    read = _read(splitter.split(chunk), request.model)
                    if read.text:
                        yield read.text
                    if read.error is not None:
                        raise read.error
                    if read.end is not None:
                        await _drain(chunks, request.model)
                        yield read.end
                        return
        raise unavailable(request.model)

    def _opened(self, request: ModelRequest) -> Any:
        return self._client.responses.with_streaming_response.create(
            model=request.model,
            instructions=request.instructions,
            input=[_input(message) for message in request.messages],
            reasoning={"effort": request.reasoning_effort} if request.reasoning_effort else omit,
            max_output_tokens=omit if request.max_output_tokens is None else request.max_output_tokens,
            temperature=omit if request.temperature is None else request.temperature,
            prompt_cache_key=request.conversation_id,
            safety_identifier=request.user_digest,
            store=False,
            stream=True,
            stream_options={"include_obfuscation": False},
        )


class Silence:
    """Raises TimeoutError inside its block when nothing was heard for so many seconds.

    One timer for as long as something is heard, instead of one for every read.
    """

    def __init__(self, limit_seconds: float) -> None:
        self._limit_seconds = limit_seconds
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._timeout = asyncio.timeout(None)
        self._timer = self._loop.call_later(limit_seconds, self._check)

    def heard(self) -> None:
        """Something came."""
        self._heard = self._loop.time()

    def _check(self) -> None:
        due = self._heard + self._limit_seconds
        if due <= self._loop.time():
            self._timeout.reschedule(self._loop.time())
        else:
            self._timer = self._loop.call_at(due, self._check)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        # Raises TimeoutError by itself where it was the cause.
        await self._timeout.__aexit__(kind, error, trace)


class FrameSplitter:
    """Cuts the bytes of an event stream into events, whatever the boundaries of the reads. Bounded."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._rest = b""

    def split(self, chunk: bytes) -> list[bytes]:
        """The events that are whole now. Raises Unavailable for one that never ends."""
        data = self._rest + chunk if self._rest else chunk
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        frames = data.split(b"\n\n")
        self._rest = frames.pop()
        if len(self._rest) > MAX_FRAME_BYTES:
            raise unavailable(self._model)
        return frames


def _input(message: ContextMessage) -> EasyInputMessageParam:
    role: Any = message.role
    return {"role": role, "content": message.text}


@dataclass(frozen=True, slots=True)
class _Read:
    """What one read of the socket brought: text, and then the end, good or bad, if it is among it."""

    text: str
    end: ReplyEnd | None = None
    error: ServiceError | None = None


def _read(frames: Sequence[bytes], model: str) -> _Read:
    texts: list[str] = []
    try:
        for frame in frames:
            event = _parsed(frame, model)
            kind = None if event is None else event.get("type")
            if event is None or kind is None:
                continue
            if kind in _TEXT_KINDS:
                texts.append(_checked(event.get("delta"), model))
            elif kind in _END_KINDS:
                return _Read("".join(texts), end=_end(kind, event, model))
    except ServiceError as error:
        # The text before it came whole, and is told first.
        return _Read("".join(texts), error=error)
    except (AttributeError, TypeError, ValueError):
        # Valid JSON of another shape than the API's.
        return _Read("".join(texts), error=unavailable(model))
    return _Read("".join(texts))


def _parsed(frame: bytes, model: str) -> dict[str, Any] | None:
    """The event of a frame; None for one that carries neither text nor the end, which is most of them.

    Where the server names its events, the name alone decides whether the rest is parsed at all.
    """
    name, data = b"", []
    for line in frame.split(b"\n"):
        if line.startswith(b"data:"):
            data.append(line[5:])
        elif line.startswith(b"event:"):
            name = line[6:].strip()
    body = b"\n".join(data).strip()
    if not body or body == b"[DONE]" or (name and name not in _READ_NAMES):
        return None
    try:
        event = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise unavailable(model) from error
    if not isinstance(event, dict):
        raise unavailable(model)
    return event


def _checked(delta: object, model: str) -> str:
    if not isinstance(delta, str):
        raise unavailable(model)
    # Postgres stores no NUL, and memory takes none of the others: no caller sends them either.
    return delta if delta.isprintable() else CONTROL_CHARACTERS.sub("", delta)


def _end(kind: str, event: dict[str, Any], model: str) -> ReplyEnd:
    response = event.get("response") or {}
    if kind in ("response.failed", "error"):
        told = response.get("error") or event.get("error") or event
        raise from_error_code(told.get("code"), told.get("param"), model)
    incomplete = None
    if kind == "response.incomplete":
        stated = (response.get("incomplete_details") or {}).get("reason")
        incomplete = _INCOMPLETE.get(str(stated), "MAX_OUTPUT_TOKENS")
    return ReplyEnd(_usage(response.get("usage")), incomplete)


def _usage(stated: dict[str, Any] | None) -> Usage | None:
    if not stated:
        return None
    return Usage(
        input_tokens=int(stated.get("input_tokens") or 0),
        cached_tokens=int((stated.get("input_tokens_details") or {}).get("cached_tokens") or 0),
        output_tokens=int(stated.get("output_tokens") or 0),
        reasoning_tokens=int((stated.get("output_tokens_details") or {}).get("reasoning_tokens") or 0),
    )


async def _drain(chunks: AsyncIterator[bytes], model: str) -> None:
    """Reads what follows the end, so that the connection can carry the next reply."""
    with contextlib.suppress(ServiceError), translated(model):
        async with asyncio.timeout(MAX_DRAIN_SECONDS):
            async for _ in chunks:
                pass
