"""The HTTP face of the simulator: the routes of the OpenAI API that it serves.

Owns authentication, bodies, and which part answers what. Invariant: every refusal, also of an unknown path, has OpenAI's
error shape. State between requests: the stored responses, the script and the journal; the rules see none of it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from simulator import writers
from simulator.chat import ChatRun
from simulator.containers import Containers
from simulator.delivery import PLAN_HEADER, Delivery, plan_delivery
from simulator.door import Door
from simulator.embedders import Embedder, HashEmbedder
from simulator.embeddings import embeddings_reply, texts_of
from simulator.errors import ApiError, invalid
from simulator.frames import Gate
from simulator.markers import with_markers
from simulator.plan import Fault, Pace
from simulator.prompt import Prompt, read_chat, read_responses
from simulator.reply import Reply, Writer, common_headers
from simulator.requests import (
    ChatRequest,
    EmbeddingsRequest,
    JsonObject,
    ResponsesRequest,
    parse_body,
    parse_json,
    parse_tools,
)
from simulator.responses import ResponseRun
from simulator.rules import answer_for, asks_title, reasoning_for
from simulator.script import Asked, Endpoint, Journal, Outcome, RecordedRequest, Script
from simulator.store import ResponseStore, StoredResponse

MAX_BODY_BYTES = 32 * 1024 * 1024
MODELS = ("gpt-6-astra", "gpt-5.6", "sim", "text-embedding-3-small", "text-embedding-3-large")
_MODELS_CREATED = 1_767_225_600

Handler = Callable[[Request], Awaitable[Response]]


class Simulator:
    """One simulated provider: its state, and `app`, the ASGI application."""

    def __init__(self, *, control: bool, pace: Pace, embedder: Embedder | None = None) -> None:
        self.script = Script()
        self.journal = Journal(keeps=control)
        self.store = ResponseStore()
        self.containers = Containers()
        self.gate = Gate()
        self._live: set[asyncio.Task[None]] = set()
        self._pace = pace
        self._embedder = embedder or HashEmbedder()
        door = Door(self.script, self.journal, self.gate, self.containers, running=lambda: len(self._live))
        routes = [*self._routes(), *(door.routes() if control else ())]
        handlers = {ApiError: _refuse, HTTPException: _refuse_unknown}
        self.app = Starlette(routes=routes, exception_handlers=handlers)

    async def close(self) -> None:
        """End every reply and every background run. Idempotent."""
        for task in list(self._live):
            task.cancel()
        await self.store.clear()

    def _routes(self) -> list[Route]:
        return [
            Route("/v1/responses", _authenticated(self._create_response), methods=["POST"]),
            Route("/v1/responses/{id}", _authenticated(self._get_response), methods=["GET"]),
            Route("/v1/responses/{id}", _authenticated(self._delete_response), methods=["DELETE"]),
            Route("/v1/responses/{id}/cancel", _authenticated(self._cancel_response), methods=["POST"]),
            Route("/v1/chat/completions", _authenticated(self._create_completion), methods=["POST"]),
            Route("/v1/embeddings", _authenticated(self._create_embeddings), methods=["POST"]),
            Route("/v1/models", _authenticated(_list_models), methods=["GET"]),
        ]

    async def _create_response(self, request: Request) -> Response:
        body, recorded = await self._receive(request, "responses")
        with _refusal_recorded(recorded):
            asked = parse_body(ResponsesRequest, body)
            stored, delivery = self._plan_response(request, asked, recorded)
        streams = asked.stream is True
        if asked.store is not False:
            self.store.put(stored)
        if asked.background:
            stored.start(delivery.pace, delivery.hold)
            return self._reply(writers.background(stored, delivery, stream=streams), recorded)
        write = writers.foreground(stored.run, delivery, stream=streams)
        return self._reply(write, recorded, response_id=stored.run.response["id"])

    def _plan_response(
        self, request: Request, asked: ResponsesRequest, recorded: RecordedRequest
    ) -> tuple[StoredResponse, Delivery]:
        if asked.background and asked.store is False:
            raise invalid("A background response must be stored: 'store' cannot be false.", param="store")
        tools = parse_tools(asked.tools or [])
        before = self.store.history(asked.previous_response_id) if asked.previous_response_id else []
        own = [{"role": "user", "content": asked.input}] if isinstance(asked.input, str) else asked.input
        prompt = read_responses(asked, tools, before=before)
        self.containers.check(tools, own)
        delivery = self._deliver(request, recorded, prompt, model=asked.model)
        answer = delivery.answer
        if answer is None:
            answer = (*_thinking(asked, prompt), *answer_for(prompt))
        if delivery.marks_citations:
            answer = with_markers(answer)
        answer = self.containers.assign(answer, tools)
        run = ResponseRun(asked, answer, tools=tools, input_tokens=prompt.input_tokens(), stop=delivery.stop)
        streamed = asked.stream is True and asked.background is True
        return StoredResponse(run, [*before, *own], streamed=streamed), delivery

    async def _get_response(self, request: Request) -> Response:
        recorded, transport = self._receive_about(request, "responses.retrieve")
        stored = self.store.get(request.path_params["id"])
        if request.query_params.get("stream", "false").lower() != "true":
            recorded.outcome = "completed"
            return _json(stored.run.snapshot())
        if not stored.streamed:
            raise invalid("Only a background response that was created with stream=true can be streamed.", param="stream")
        after = request.query_params.get("starting_after", "-1")
        if not after.removeprefix("-").isdigit():
            raise invalid("Invalid value for 'starting_after': expected an integer.", param="starting_after")
        write = writers.resumed(stored, after=max(int(after), -1), transport=transport)
        return self._reply(write, recorded)

    async def _cancel_response(self, request: Request) -> Response:
        recorded, _ = self._receive_about(request, "responses.cancel")
        stored = self.store.get(request.path_params["id"])
        if not stored.run.response["background"]:
            raise invalid("Cannot cancel a synchronous response.", code=None)
        stored.stop()
        await stored.finish()
        if not stored.run.finished:
            stored.run.cancel()
        status = stored.run.response["status"]
        if status != "cancelled":
            raise invalid(f"Cannot cancel a {status} response.", code=None)
        recorded.outcome = "completed"
        return _json(stored.run.snapshot())

    async def _delete_response(self, request: Request) -> Response:
        recorded, _ = self._receive_about(request, "responses.delete")
        self.store.delete(request.path_params["id"])
        recorded.outcome = "completed"
        return _json({"id": request.path_params["id"], "object": "response", "deleted": True})

    async def _create_completion(self, request: Request) -> Response:
        body, recorded = await self._receive(request, "chat.completions")
        with _refusal_recorded(recorded):
            asked = parse_body(ChatRequest, body)
            prompt = read_chat(asked)
            delivery = self._deliver(request, recorded, prompt, model=asked.model)
            answer = delivery.answer
            if answer is None:
                effort = asked.reasoning_effort or "none"
                answer = (*reasoning_for(prompt, effort=effort, wants_summary=False), *answer_for(prompt))
            run = ChatRun(asked, answer, input_tokens=prompt.input_tokens(), stop=delivery.stop)
        return self._reply(writers.foreground(run, delivery, stream=asked.stream is True), recorded)

    async def _create_embeddings(self, request: Request) -> Response:
        body, recorded = await self._receive(request, "embeddings")
        with _refusal_recorded(recorded):
            asked = parse_body(EmbeddingsRequest, body)
            delivery = self._deliver(request, recorded, Prompt(()), model=asked.model)
            texts = texts_of(asked)
            vectors = await self._embedder.embed(texts, model=asked.model, dimensions=asked.dimensions)
            encoded = orjson.dumps(embeddings_reply(asked, texts, vectors))
        return self._reply(writers.whole(encoded, delivery), recorded)

    async def _receive(self, request: Request, endpoint: Endpoint) -> tuple[JsonObject, RecordedRequest]:
        """The JSON body, noted in the journal. Raises ApiError (400, 413)."""
        received = bytearray()
        async for chunk in request.stream():
            received += chunk
            if len(received) > MAX_BODY_BYTES:
                raise ApiError(413, f"The body of the request is larger than {MAX_BODY_BYTES} bytes.")
        body = parse_json(bytes(received))
        return body, self.journal.record(endpoint, headers=_shown(request), body=body)

    def _receive_about(self, request: Request, endpoint: Endpoint) -> tuple[RecordedRequest, Fault | None]:
        """A request about a stored response, noted in the journal as refused until it is not; the fault scripted for it."""
        body: JsonObject = {"id": request.path_params["id"], **request.query_params}
        recorded = self.journal.record(endpoint, headers=_shown(request), body=body)
        recorded.outcome = "refused"
        delivery = self._deliver(request, recorded, Prompt(()), model="")
        return recorded, delivery.transport

    def _deliver(self, request: Request, recorded: RecordedRequest, prompt: Prompt, *, model: str) -> Delivery:
        asked = Asked(recorded.endpoint, model=model, text=prompt.last_user.text, asks_title=asks_title(prompt))
        scripted = self.script.take(asked, number=recorded.number)
        recorded.scripted, recorded.asks_title = scripted is not None, asked.asks_title
        header = request.headers.get(PLAN_HEADER)
        return plan_delivery(scripted, model=model, header=header, default_pace=self._pace, gate=self.gate)

    def _reply(self, write: Writer, recorded: RecordedRequest, *, response_id: str | None = None) -> Reply:
        def ended(outcome: Outcome) -> None:
            recorded.outcome = outcome
            if response_id and outcome != "completed":
                self.store.discard(response_id)

        return Reply(write, live=self._live, ended=ended)


def _shown(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name != "authorization"}


def _thinking(asked: ResponsesRequest, prompt: Prompt) -> Any:
    options = asked.reasoning
    if options is None:
        return ()
    return reasoning_for(prompt, effort=options.effort or "medium", wants_summary=options.wants_summary)


def _authenticated(handle: Handler) -> Handler:
    async def authenticated(request: Request) -> Response:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise ApiError(401, "You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'.")
        if "invalid" in key:
            raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
        return await handle(request)

    return authenticated


@contextmanager
def _refusal_recorded(recorded: RecordedRequest) -> Iterator[None]:
    try:
        yield
    except ApiError:
        recorded.outcome = "refused"
        raise


async def _list_models(_request: Request) -> Response:
    listed = [{"id": name, "object": "model", "created": _MODELS_CREATED, "owned_by": "simulator"} for name in MODELS]
    return _json({"object": "list", "data": listed})


async def _refuse(_request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return _json(error.body, status=error.status, headers=error.headers)


async def _refuse_unknown(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    message = f"Invalid URL ({request.method} {request.url.path})"
    return _json(ApiError(error.status_code, message).body, status=error.status_code)


def _json(content: JsonObject, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    shown = {**common_headers(time.monotonic()), **(headers or {})}
    return Response(orjson.dumps(content), status, shown, media_type="application/json")
