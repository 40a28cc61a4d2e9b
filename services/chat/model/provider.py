"""The seam to the model: one round of it as it is written, and small jobs.

Owns trying again, the resumption of a run that the provider keeps, and the choice of the API. Invariant: a round ends with
exactly one RoundEnd or with a ServiceError; a stream that is cut, falls silent, is malformed or ends without a terminal
event is an error, never a short answer. It refuses to run tools and to remember anything of a reply.
"""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any, Final
from urllib.parse import quote

import httpx2
from openai import AsyncOpenAI

from services.chat.model.amendments import Amendments, Round
from services.chat.model.completion_body import completion_body
from services.chat.model.completion_stream import CompletionStream
from services.chat.model.patience import Patience
from services.chat.model.request import ModelRequest
from services.chat.model.response_body import response_body
from services.chat.model.response_stream import ResponseStream
from services.chat.model.whole_response import UNFINISHED
from services.chat.model.wire import Wire
from services.chat.options import ReplyOptions
from services.chat.pieces import Piece, Position, RoundEnd
from services.chat.records import Usage
from services.runtime.errors import DeadlineExceeded, InvalidArgument, ServiceError, Unavailable
from services.runtime.openai import OpenAISettings, Refusal, open_client, unavailable
from services.runtime.small_jobs import SmallJobs

CONTROL_TIMEOUT_SECONDS: Final = 10
Pieces = AsyncGenerator[Piece | RoundEnd, None]


class Model:
    """Writes replies, round by round. Holds no state of any of them."""

    def __init__(self, client: AsyncOpenAI, wire: Wire, settings: OpenAISettings) -> None:
        self._jobs = SmallJobs(client, settings)
        self._wire = wire
        self._settings = settings
        self._speaks_responses = settings.openai_api == "responses"
        self._amendments = Amendments()

    def runs_in_background(self, options: ReplyOptions) -> bool:
        """Whether a reply with these options is to run at the provider by itself, as far as is known of the provider."""
        use = self._settings.openai_background
        if not self._speaks_responses or use == "off" or self._amendments.refuses_background:
            return False
        works_long = options.use_web_search or options.use_code_interpreter or bool(options.mcp_servers)
        return use == "on" or works_long or options.reasoning_effort == "high"

    async def round(self, request: ModelRequest, *, deadline: float) -> Pieces:
        """Pieces, then one RoundEnd. Raises ServiceError.

        What fails before the first piece is tried again where that helps and the wait ends before `deadline` (on the loop's
        clock); a background run that is cut is read on. The caller enforces the deadline itself, and closes the generator.
        """
        asked, patience = self._amendments.first(request), Patience(self._settings, model=request.model, deadline=deadline)
        while True:
            stream = self._new_stream(asked)
            try:
                # Closed here and not by the garbage collector: it holds a connection.
                async with contextlib.aclosing(self._attempt(asked, stream, patience)) as pieces:
                    async for piece in pieces:
                        yield piece
            except ServiceError as error:
                is_amended = self._amendments.amended(asked, error, has_text=stream.has_text)
                if not is_amended and stream.has_told:
                    raise
                if not is_amended:
                    await patience.before_retry(error)
            else:
                return
            for told in [*stream.abandon(), *asked.told]:
                yield told
            asked.told.clear()

    async def resume(self, request: ModelRequest, position: Position, *, deadline: float) -> Pieces:
        """The rest of a background run that another process began, after `position`; RoundEnd as if it were read whole.

        The provider's stream is read again from its beginning, so that spans and markers are what they would have been;
        nothing is generated anew. Raises ServiceError.
        """
        patience = Patience(self._settings, model=request.model, deadline=deadline)
        stream = ResponseStream(request.model, resumed=position)
        async with contextlib.aclosing(self._followed(stream, "GET", None, patience, request.model)) as pieces:
            async for piece in pieces:
                yield piece

    async def cancel(self, response_id: str) -> None:
        """Ends a background run. Idempotent: one that has ended, or is not known, is none. Raises ServiceError."""
        await self._control("POST", f"{_path(response_id)}/cancel")

    async def forget(self, response_id: str) -> None:
        """Has the provider delete what it keeps of a run. Idempotent. Raises ServiceError."""
        await self._control("DELETE", _path(response_id))

    async def complete(
        self, *, model: str, instructions: str, text: str, max_output_tokens: int
    ) -> tuple[str, Usage | None]:
        """A small job as a whole: the answer (which its bound may have cut) and its cost. Raises ServiceError."""
        answer = await self._jobs.complete(
            model=model, instructions=instructions, text=text, max_output_tokens=max_output_tokens
        )
        cost = answer.usage
        if cost is None:
            return answer.text, None
        return answer.text, Usage(cost.input_tokens, cost.cached_tokens, cost.output_tokens, cost.reasoning_tokens)

    def _new_stream(self, asked: Round) -> ResponseStream | CompletionStream:
        if not self._speaks_responses:
            return CompletionStream(asked.request.model)
        return ResponseStream(asked.request.model, is_kept=asked.is_background)

    def _attempt(self, asked: Round, stream: ResponseStream | CompletionStream, patience: Patience) -> Pieces:
        if isinstance(stream, CompletionStream):
            return self._read(stream, "POST", "/chat/completions", completion_body(asked.request), asked.request.model)
        body = response_body(asked.request, is_background=asked.is_background, without=asked.without)
        return self._followed(stream, "POST", body, patience, asked.request.model)

    async def _read(
        self, stream: ResponseStream | CompletionStream, method: str, path: str, body: bytes | None, model: str
    ) -> Pieces:
        """One connection, until the round has ended. Raises ServiceError: Unavailable where it ended without."""
        async with self._wire.stream(method, path, model=model, body=body) as incoming:
            while True:
                chunk = await incoming.read()
                for piece in stream.read(chunk):
                    if type(piece) is RoundEnd:
                        await incoming.drain()
                    yield piece
                if stream.has_ended:
                    return
                if stream.error is not None:
                    raise stream.error
                if not chunk:
                    raise unavailable(model)

    async def _followed(
        self, stream: ResponseStream, method: str, body: bytes | None, patience: Patience, model: str
    ) -> Pieces:
        """A run over as many connections as it takes, where the provider keeps it."""
        while not stream.has_ended:
            before = stream.position
            path = "/responses" if method == "POST" else _stream_path(stream.position)
            try:
                async with contextlib.aclosing(self._read(stream, method, path, body, model)) as pieces:
                    async for piece in pieces:
                        yield piece
            except ServiceError as error:
                position = stream.position
                if position is None or not _is_cut(error, is_resumed=method == "GET"):
                    raise
                if _is_gone(error):
                    raise unavailable(model) from error
                if position != before:
                    patience.take_heart()
                elif method == "GET" and not stream.is_behind and (rest := await self._whole(position, model, patience)):
                    for piece in stream.settle(rest):
                        yield piece
                    if stream.error is not None:
                        raise stream.error from stream.error.__cause__
                    return
                await patience.before_resumption(error)
                stream.restart()
                method, body = "GET", None

    async def _whole(self, position: Position, model: str, patience: Patience) -> dict[str, Any] | None:
        """The whole response where it has ended; None where it runs, or cannot be asked now."""
        try:
            response = await self._wire.fetch(
                "GET", _path(position.response_id), model=model, timeout_seconds=CONTROL_TIMEOUT_SECONDS
            )
        except (DeadlineExceeded, Unavailable):
            return None
        patience.take_heart()
        return None if response.get("status") in UNFINISHED else response

    async def _control(self, method: str, path: str) -> None:
        if not self._speaks_responses:
            return
        with contextlib.suppress(InvalidArgument):
            await self._wire.fetch(method, path, model=self._settings.openai_model, timeout_seconds=CONTROL_TIMEOUT_SECONDS)


@contextlib.asynccontextmanager
async def open_model(settings: OpenAISettings) -> AsyncGenerator[Model, None]:
    """The model that these settings name, with its connections."""
    tls = httpx2.create_ssl_context()
    async with open_client(settings, tls=tls) as client:
        wire = Wire(settings, tls)
        try:
            yield Model(client, wire, settings)
        finally:
            await wire.close()


def _is_cut(error: ServiceError, *, is_resumed: bool) -> bool:
    """Whether the way to the run broke, and not the run; a stream that is refused while it is read on is a broken way."""
    refusal = error.__cause__
    return not isinstance(refusal, Refusal) or (is_resumed and refusal.status is not None)


def _is_gone(error: ServiceError) -> bool:
    """Whether the provider keeps the run no longer."""
    return isinstance(error.__cause__, Refusal) and error.__cause__.status == httpx2.codes.NOT_FOUND


def _path(response_id: str) -> str:
    return f"/responses/{quote(response_id, safe='')}"


def _stream_path(position: Position | None) -> str:
    if position is None:
        raise ValueError("a run that is not known cannot be read on")
    after = f"&starting_after={position.sequence}" if position.sequence >= 0 else ""
    return f"{_path(position.response_id)}?stream=true{after}"
