"""A whole suite under test, as `make run` starts it, and a REST client for it that checks the shape of every error."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx2
from psycopg.conninfo import make_conninfo

from tests.suite_process import ROOT, start_command, suite_environment

READY = b"Parley is ready"
START_SECONDS = 90.0
STOP_SECONDS = 40.0
PASSWORD = "correct horse battery"

Json = dict[str, Any]


class Suite:
    """A running suite on ports of its own."""

    def __init__(self, environment: Mapping[str, str], process: asyncio.subprocess.Process) -> None:
        self.environment = environment
        self.process = process
        self.url = f"http://127.0.0.1:{environment['PARLEY_EDGE_PORT']}"
        self.output: list[bytes] = []
        self._reading = asyncio.create_task(self._read())
        self._ready = asyncio.Event()

    @classmethod
    async def start(cls, environment: Mapping[str, str]) -> Suite:
        suite = cls(environment, await start_command(environment, ROOT))
        waits = [asyncio.create_task(suite._ready.wait()), asyncio.create_task(suite.process.wait())]
        await asyncio.wait(waits, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        assert suite._ready.is_set(), b"".join(suite.output[-40:]).decode()
        return suite

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.output = [*self.output[-500:], line]
            if line.startswith(READY):
                self._ready.set()

    @property
    def data(self) -> Path:
        return Path(self.environment["PARLEY_DATA"])

    def port(self, name: str) -> int:
        return int(self.environment[f"PARLEY_{name}_PORT"])

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.terminate()
        code = await asyncio.wait_for(self.process.wait(), STOP_SECONDS)
        await self._reading
        return code


def environment(data: Path, **more: str) -> dict[str, str]:
    """Fast children: the simulator without delays, short patience with it, small password hashes, a short drain."""
    simulator = {"SIMULATOR_CONTROL": "true", "SIMULATOR_FIRST_TOKEN_MS": "0", "SIMULATOR_INTERVAL_MS": "0"}
    provider = {"OPENAI_TIMEOUT_SECONDS": "2", "OPENAI_MAX_RETRIES": "1", "OPENAI_RETRY_DELAY_SECONDS": "0.1"}
    hashes = {"ARGON2_TIME_COST": "1", "ARGON2_MEMORY_KIB": "1024", "ARGON2_PARALLELISM": "1"}
    stop = {"DRAIN_SECONDS": "2", "DRAIN_WAIT_SECONDS": "0.1"}
    return suite_environment(data, **{**simulator, **provider, **hashes, **stop, **more})


def database_of(data: Path, service: str) -> str:
    """Where a service's database of an embedded suite is, for its superuser."""
    password = (data / "postgres" / "admin-password").read_text().strip()
    socket = (data / "postgres" / "postgres.socket").resolve()
    return make_conninfo(host=str(socket), user="postgres", password=password, dbname=f"parley_{service}")


@dataclass(frozen=True)
class Event:
    """One frame of a stream: the `id:` line and the decoded JSON. A comment has neither."""

    id: int | None
    data: Json

    @property
    def kind(self) -> str:
        return next(name for name in self.data if name != "sequence")


class Client:
    """One person's way into the suite over REST."""

    def __init__(self, url: str) -> None:
        self.http = httpx2.AsyncClient(base_url=url, timeout=30)
        self.username = f"u{uuid.uuid4().hex[:12]}"
        self.tokens: Json = {}
        self.user: Json = {}

    async def register(self) -> Client:
        answer = await self.call(
            "POST", "/api/v1/auth/register", username=self.username, email=f"{self.username}@example.com", password=PASSWORD
        )
        self.tokens, self.user = answer["tokens"], answer["user"]
        return self

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.tokens['access_token']}"} if self.tokens else {}

    async def call(self, method: str, path: str, **body: Any) -> Json:
        answer = await self.http.request(method, path, json=body or None, headers=self.headers)
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    async def refusal(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, content: bytes | None = None, **body: Any
    ) -> tuple[int, str]:
        """Status and reason of a call that must be refused, its body checked against the one error shape."""
        sent = json.dumps(body).encode() if content is None and body else content
        typed = {"content-type": "application/json"} if sent is not None else {}
        answer = await self.http.request(
            method, path, content=sent, headers={**typed, **(self.headers if headers is None else headers)}
        )
        return answer.status_code, reason_of(answer)

    def stream(self, message: str, **body: Any) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """A turn as it is written."""
        return self.events("POST", "/api/v1/chat/stream", json={"message": message, **body})

    async def streamed(self, message: str, **body: Any) -> list[Event]:
        async with self.stream(message, **body) as events:
            return [event async for event in events]

    @asynccontextmanager
    async def events(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **request: Any
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Any stream, frame by frame; no content is a stream without a frame."""
        sent = self.headers if headers is None else headers
        async with self.http.stream(method, path, headers=sent, timeout=120, **request) as answer:
            if answer.status_code == 204:
                assert await answer.aread() == b""
            elif answer.status_code != 200:
                await answer.aread()
            assert answer.status_code in {200, 204}, answer.text
            assert answer.status_code == 204 or answer.headers["content-type"].startswith("text/event-stream")
            yield events_of(answer)

    async def rest_of(self, generation: str, after: int = 0, *, last_event_id: str = "") -> list[Event] | None:
        """Every event of a generation after one, to the end; None where the edge says that there is nothing any more."""
        query = f"?after_sequence={after}" if after else ""
        path = f"/api/v1/chat/generations/{generation}/events{query}"
        place = {"last-event-id": last_event_id} if last_event_id else {}
        async with self.events("GET", path, headers={**self.headers, **place}) as events:
            return [event async for event in events] or None

    async def close(self) -> None:
        await self.http.aclose()


async def events_of(answer: httpx2.Response) -> AsyncIterator[Event]:
    frame: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(":")
            assert name in {"id", "data"}, line
            frame[name] = value.strip()
        elif frame:
            yield Event(int(frame["id"]) if "id" in frame else None, json.loads(frame["data"]))
            frame = {}


def reason_of(answer: httpx2.Response) -> str:
    """The reason in an error body, which must have the one shape and nothing else."""
    body = answer.json()
    assert set(body) == {"code", "message", "details"}, body
    assert isinstance(body["code"], int)
    assert body["message"]
    infos = [detail for detail in body["details"] if detail["@type"].endswith("google.rpc.ErrorInfo")]
    assert len(infos) == 1, body
    assert infos[0]["domain"] == "parley"
    assert not [name for name in answer.headers if name.startswith("grpc-")]
    return str(infos[0]["reason"])


def generation_of(events: list[Event]) -> str:
    return str(events[0].data["started"]["generation_id"])


def kinds_of(events: list[Event]) -> list[str]:
    """What happened, in order, without repetitions in a row."""
    return [kind for kind, _ in groupby(event.kind for event in events)]


def of_kind(events: list[Event], kind: str) -> list[Json]:
    return [event.data[kind] for event in events if event.kind == kind]


def saved(events: list[Event]) -> Json:
    """The reply as the terminal event of a stream that went well carries it."""
    message: Json = events[-1].data["completed"]["message"]
    return message


def text_of(events: list[Event]) -> str:
    return "".join(event.data["text_delta"]["text"] for event in events if event.kind == "text_delta")


def check_sequence(events: list[Event]) -> None:
    """1, 2, 3 … without holes, the same in the frame and in the JSON, and exactly one terminal event, last."""
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert [event.data["sequence"] for event in events] == [event.id for event in events]
    terminal = [event.kind in {"completed", "failed", "cancelled"} for event in events]
    assert terminal == [False] * (len(events) - 1) + [True]
