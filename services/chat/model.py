"""The seam to the model: a reply of the Responses API as it is written.

Owns the request as the provider gets it, trying again, and the watch over silence; model_stream.py reads the bytes.
Invariant: a reply ends with exactly one ReplyEnd or with a ServiceError; a stream that is cut, falls silent, is malformed or
ends without a terminal event is an error, never a short answer.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import structlog
from openai import AsyncOpenAI, omit
from openai.types.responses import EasyInputMessageParam

from services.chat.model_stream import ModelStream, ReplyEnd
from services.chat.records import ContextMessage
from services.runtime.errors import ServiceError
from services.runtime.openai import OpenAISettings, ReasoningEffort, retry_wait_seconds, translated, unavailable

log = structlog.get_logger(__name__)

MAX_DRAIN_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """How a reply is to be written. What is None is left to the provider."""

    instructions: str
    reasoning_effort: ReasoningEffort | None
    max_output_tokens: int | None
    temperature: float | None
    user_digest: str


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What is asked of the model."""

    model: str
    conversation_id: str
    messages: Sequence[ContextMessage]
    options: ReplyOptions


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
                # Closed here and not by the garbage collector: it holds a connection.
                async with contextlib.aclosing(self._attempt(request)) as pieces:
                    async for piece in pieces:
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
                stream = ModelStream(request.model)
                chunks = response.iter_bytes()
                async for chunk in chunks:
                    silence.heard()
                    read = stream.read(chunk)
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
        options = request.options
        return self._client.responses.with_streaming_response.create(
            model=request.model,
            instructions=options.instructions,
            input=[_input(message) for message in request.messages],
            reasoning={"effort": options.reasoning_effort} if options.reasoning_effort else omit,
            max_output_tokens=omit if options.max_output_tokens is None else options.max_output_tokens,
            temperature=omit if options.temperature is None else options.temperature,
            prompt_cache_key=request.conversation_id,
            safety_identifier=options.user_digest,
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


def _input(message: ContextMessage) -> EasyInputMessageParam:
    role: Any = message.role
    return {"role": role, "content": message.text}


async def _drain(chunks: AsyncIterator[bytes], model: str) -> None:
    """Reads what follows the end, so that the connection can carry the next reply."""
    with contextlib.suppress(ServiceError), translated(model):
        async with asyncio.timeout(MAX_DRAIN_SECONDS):
            async for _ in chunks:
                pass
