"""Cuts streams at random points and resumes them elsewhere, until each has ended, and checks that nothing shows.

Owns the cutting and the checks; it works on a running suite whose model is the simulator. A stream begins over REST or gRPC
and goes on over the other, through the edge or straight at one of chat's replicas, always with the last sequence that its
reader had. Of each stream: no sequence twice, none missing, exactly one terminal event, the text that the model was told to
say, and the same events when all are read again after the end. It ends at the first stream that is not so.

    PARLEY_CHAT_PROCESSES=2 LIMIT_GENERAL=off LIMIT_MODEL=off make run

and, in another terminal:

    .venv/bin/python -m bench.cut_streams --streams 1000 --at-once 100
"""

import argparse
import asyncio
import json
import random
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

import grpc
import httpx2
from google.protobuf import json_format

from parley.chat.v1 import chat_pb2, chat_pb2_grpc

TERMINAL = frozenset({"completed", "failed", "cancelled"})
CALL_SECONDS = 120.0
PASSWORD = "correct horse battery"  # noqa: S105  # of a user made for this run

Event = chat_pb2.CompletionEvent
# The generated asynchronous type exists for type checkers only, and not under this name.
ChatStub: TypeAlias = Any


class BrokenStreamError(Exception):
    """A reader saw something else than one unbroken stream; the message says what."""


@dataclass(frozen=True, slots=True)
class Load:
    """A stream of `tokens` pieces, one each `interval_ms`, cut after at most `greatest_bite` events."""

    tokens: int = 60
    interval_ms: int = 10
    greatest_bite: int = 20

    @property
    def model(self) -> str:
        """The simulator's model of that pace."""
        return f"sim-{self.tokens}-{self.interval_ms}-{self.interval_ms}"

    @property
    def text(self) -> str:
        """What that model says."""
        return " ".join(f"tok{number}" for number in range(self.tokens))


@dataclass(slots=True)
class Figures:
    """What happened, summed up over streams."""

    streams: int = 0
    events: int = 0
    cuts: int = 0
    resumed: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line."""
        ways = ", ".join(f"{count} by {way}" for way, count in sorted(self.resumed.items()))
        return f"{self.streams} streams, {self.events} events, {self.cuts} cuts; resumed {ways}"


class Cutter:
    """One user's readers of a suite: over REST at `edge`, over gRPC at the edge and at each of `replicas` (host:port)."""

    def __init__(self, edge: str, replicas: Sequence[str], *, load: Load, seed: int = 0) -> None:
        self.figures = Figures()
        self._edge = edge
        self._load = load
        self._random = random.Random(seed)  # noqa: S311  # where to cut
        self._opened = AsyncExitStack()
        self._targets = {"gRPC at the edge": edge.partition("://")[2]}
        self._targets |= {f"gRPC at replica {number}": target for number, target in enumerate(replicas)}
        self._stubs: dict[str, ChatStub] = {}
        self._headers: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=200)
        client = httpx2.AsyncClient(base_url=self._edge, timeout=CALL_SECONDS, limits=limits, trust_env=False)
        self._http = await self._opened.enter_async_context(client)
        for way, target in self._targets.items():
            channel = await self._opened.enter_async_context(grpc.aio.insecure_channel(target))
            self._stubs[way] = chat_pb2_grpc.ChatServiceStub(channel)
        self._headers = {"authorization": f"Bearer {await self._register()}"}
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    async def run(self, streams: int, *, at_once: int) -> None:
        """Cuts so many streams, at most `at_once` at a time. Raises BrokenStreamError, or what a call refused with."""
        room = asyncio.Semaphore(at_once)

        async def one() -> None:
            async with room:
                await self._cut_one()

        async with asyncio.TaskGroup() as group:
            for _ in range(streams):
                group.create_task(one())

    async def _register(self) -> str:
        name = f"c{uuid.uuid4().hex[:12]}"
        body = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
        answer = await self._http.post("/api/v1/auth/register", json=body)
        answer.raise_for_status()
        return str(answer.json()["tokens"]["access_token"])

    async def _cut_one(self) -> None:
        seen = await self._bite(self._began())
        generation = seen[0].started.generation_id
        is_rest = self._random.random() < 0.5  # noqa: PLR2004
        while seen[-1].WhichOneof("event") not in TERMINAL:
            after = seen[-1].sequence
            way = "REST" if is_rest else self._random.choice(list(self._stubs))
            self.figures.cuts += 1
            self.figures.resumed[way] = self.figures.resumed.get(way, 0) + 1
            seen += await self._bite(self._followed(way, generation, after))
            is_rest = not is_rest
        await self._check(generation, seen)
        self.figures.streams += 1
        self.figures.events += len(seen)

    async def _bite(self, events: AsyncIterator[Event]) -> list[Event]:
        """The next few events, and the connection is gone."""
        bite: list[Event] = []
        wanted = self._random.randint(1, self._load.greatest_bite)
        async for event in events:
            if event.sequence:
                bite.append(event)
            if len(bite) == wanted:
                break
        await events.aclose()  # type: ignore[attr-defined]  # a generator
        if not bite:
            raise BrokenStreamError("a stream ended without an event before the terminal one")
        return bite

    def _began(self) -> AsyncIterator[Event]:
        request = chat_pb2.CompletionRequest(message="cut me", model=self._load.model)
        if self._random.random() < 0.5:  # noqa: PLR2004
            return self._sse("POST", "/api/v1/chat/stream", json={"message": request.message, "model": request.model})
        return self._grpc(self._stub().StreamCompletion(request, metadata=self._metadata, timeout=CALL_SECONDS))

    def _followed(self, way: str, generation: str, after: int) -> AsyncIterator[Event]:
        if way == "REST":
            path = f"/api/v1/chat/generations/{generation}/events"
            if self._random.random() < 0.5:  # noqa: PLR2004
                return self._sse("GET", path, headers={"last-event-id": str(after)})
            return self._sse("GET", f"{path}?after_sequence={after}")
        request = chat_pb2.SubscribeGenerationRequest(generation_id=generation, after_sequence=after)
        return self._grpc(self._stubs[way].SubscribeGeneration(request, metadata=self._metadata, timeout=CALL_SECONDS))

    def _stub(self) -> ChatStub:
        return self._random.choice(list(self._stubs.values()))

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple(self._headers.items())

    async def _sse(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **request: Any
    ) -> AsyncIterator[Event]:
        async with self._http.stream(method, path, headers={**self._headers, **(headers or {})}, **request) as answer:
            if answer.status_code not in {200, 204}:
                raise BrokenStreamError(f"{method} {path}: {answer.status_code} {(await answer.aread()).decode()}")
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    yield json_format.ParseDict(json.loads(line.removeprefix("data: ")), Event())

    async def _grpc(self, call: Any) -> AsyncIterator[Event]:
        try:
            async for event in call:
                yield event
        finally:
            call.cancel()

    async def _check(self, generation: str, seen: Sequence[Event]) -> None:
        sequences = [event.sequence for event in seen]
        if sequences != list(range(1, len(seen) + 1)):
            raise BrokenStreamError(f"{generation}: the sequences are {sequences}")
        kinds = [event.WhichOneof("event") for event in seen]
        if kinds[-1] != "completed" or TERMINAL & {str(kind) for kind in kinds[:-1]}:
            raise BrokenStreamError(f"{generation}: the events are {kinds}: {seen[-1]}")
        text = "".join(event.text_delta.text for event in seen if event.WhichOneof("event") == "text_delta")
        if not text == seen[-1].completed.message.text == self._load.text:
            raise BrokenStreamError(f"{generation}: the text is {text!r}, saved is {seen[-1].completed.message.text!r}")
        for way in ("REST", self._random.choice(list(self._stubs))):
            again = [event async for event in self._followed(way, generation, 0)]
            if again != list(seen):
                raise BrokenStreamError(f"{generation}: read again by {way} after the end, it is {again}, not {list(seen)}")
            if [event async for event in self._followed(way, generation, len(seen))]:
                raise BrokenStreamError(f"{generation}: there is something behind its terminal event")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.cut_streams", description=__doc__.split("\n")[0] if __doc__ else ""
    )
    parser.add_argument("--edge", default="http://127.0.0.1:8080")
    parser.add_argument("--replicas", default="127.0.0.1:50061,127.0.0.1:50062", help="host:port of each process of chat")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--interval-ms", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


async def _main(arguments: argparse.Namespace) -> None:
    load = Load(tokens=arguments.tokens, interval_ms=arguments.interval_ms)
    began = time.monotonic()
    async with Cutter(arguments.edge, arguments.replicas.split(","), load=load, seed=arguments.seed) as cutter:
        await cutter.run(arguments.streams, at_once=arguments.at_once)
    print(f"{cutter.figures}; in {time.monotonic() - began:.1f} s; every one whole")


def _first_cause(error: BaseException) -> BaseException:
    return _first_cause(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


if __name__ == "__main__":
    try:
        asyncio.run(_main(_arguments()))
    except* (BrokenStreamError, httpx2.HTTPError, grpc.aio.AioRpcError) as group:
        sys.exit(f"broken: {_first_cause(group)}")
