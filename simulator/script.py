"""What a test dictates and what it may look at: scripted answers and the journal of requests.

Owns the queue of scripted answers (each serves `times` matching requests, oldest first) and the bounded journal.
Invariant: a scripted answer is consumed by the request it served and by nothing else; what was not consumed, and what an
exhaustive script did not foresee, can be asked for.
"""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from simulator.answers import Answer, Citation, FunctionCall, Reasoning, Text
from simulator.errors import ApiError
from simulator.plan import MAX_TOKENS, Fault, Pace
from simulator.requests import JsonObject
from simulator.tokens import tokenize

MAX_ANSWERS = 10_000
JOURNAL_REQUESTS = 2_000
JOURNAL_BYTES = 64 * 1024 * 1024

Endpoint = Literal[
    "responses",
    "chat.completions",
    "embeddings",
    "responses.retrieve",
    "responses.cancel",
    "responses.delete",
]
GENERATING = frozenset({"responses", "chat.completions"})
Outcome = Literal["running", "completed", "refused", "broken", "disconnected"]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Match(_Shape):
    """Which requests an answer is for: by default those that generate, but for those that ask for a conversation's title.

    `text`: contained in the user's last message, whatever its case.
    """

    text: str | None = None
    model: str | None = None
    endpoint: Endpoint | None = None
    asks_title: bool = False


class ScriptedCall(_Shape):
    """A function call to make; `arguments` as an object or as the JSON text to send, valid or not."""

    name: str
    arguments: JsonObject | str = Field(default_factory=dict)
    call_id: str | None = None


class ScriptedCitation(_Shape):
    """A source and the characters of the text that it supports."""

    url: str
    title: str
    start: int = Field(ge=0)
    end: int = Field(ge=0)


class ScriptedAnswer(_Shape):
    """One answer to give. Without text, deltas or calls the rules answer, with this pace, hold and fault."""

    match: Match = Match()
    times: int = Field(default=1, ge=1, le=100_000)
    for_seconds: float | None = Field(default=None, gt=0, le=3600)
    text: str | None = None
    deltas: list[str] | None = Field(default=None, max_length=MAX_TOKENS)
    citations: list[ScriptedCitation] = Field(default_factory=list)
    citation_markers: bool = False
    function_calls: list[ScriptedCall] = Field(default_factory=list)
    reasoning: str | None = None
    pace: Pace | None = None
    fault: Fault | None = None
    hold_after_tokens: int | None = Field(default=None, ge=0, le=MAX_TOKENS)

    @model_validator(mode="after")
    def _text_comes_once(self) -> Self:
        if self.text is not None and self.deltas is not None:
            raise ValueError("give `text` or `deltas`, not both")
        if self.for_seconds is not None and self.times != 1:
            raise ValueError("give `times` or `for_seconds`, not both")
        if self.citations and self.text is None and self.deltas is None:
            raise ValueError("`citations` need a `text` or `deltas`")
        return self

    def answer(self) -> Answer | None:
        """The dictated answer; None where the rules are to answer."""
        if self.text is None and self.deltas is None and not self.function_calls:
            return None
        thinking = (Reasoning(tokenize(self.reasoning), 0),) if self.reasoning else ()
        calls = (_function_call(call) for call in self.function_calls)
        return (*thinking, *self._texts(), *calls)

    def _texts(self) -> Answer:
        if self.text is None and self.deltas is None:
            return ()
        tokens = tuple(self.deltas) if self.deltas is not None else tokenize(self.text or "")
        return (Text(tokens, tuple(Citation(one.url, one.title, one.start, one.end) for one in self.citations)),)


class RecordedRequest(BaseModel):
    """A request as it was received, and how its reply ended (`outcome`). The Authorization header is left out."""

    number: int
    endpoint: Endpoint
    headers: dict[str, str]
    body: JsonObject
    scripted: bool = False
    asks_title: bool = False
    outcome: Outcome = "running"


class ScriptRequest(_Shape):
    """The body of POST /_control/script."""

    answers: list[ScriptedAnswer] = Field(max_length=MAX_ANSWERS)
    exhaustive: bool = False


class ScriptStatus(BaseModel):
    """What GET /_control/status tells. `held`: replies waiting for a release; `running`: replies not ended yet."""

    unconsumed: list[ScriptedAnswer]
    unexpected: list[int]
    running: int
    held: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What answers are matched with."""

    endpoint: Endpoint
    model: str = ""
    text: str = ""
    asks_title: bool = False


@dataclass(slots=True)
class _Queued:
    answer: ScriptedAnswer
    left: int
    first_seconds: float | None = None

    def is_over(self, now_seconds: float) -> bool:
        """Whether the time for which it was to serve has passed since it first did."""
        span = self.answer.for_seconds
        return span is not None and self.first_seconds is not None and now_seconds - self.first_seconds > span

    def serve(self, now_seconds: float) -> None:
        """Note that it serves a request."""
        self.first_seconds = now_seconds if self.first_seconds is None else self.first_seconds
        self.left -= self.answer.for_seconds is None


class Script:
    """The queue of scripted answers. An exhaustive script refuses generation requests that it has no answer for."""

    def __init__(self) -> None:
        self._queue: list[_Queued] = []
        self._exhaustive = False
        self.unexpected: list[int] = []

    def add(self, request: ScriptRequest) -> None:
        """Queue answers behind those that wait. Raises ApiError (400) when too many would wait."""
        if len(self._queue) + len(request.answers) > MAX_ANSWERS:
            raise ApiError(400, f"More than {MAX_ANSWERS} scripted answers would wait: reset first.")
        self._queue += [_Queued(answer, answer.times) for answer in request.answers]
        self._exhaustive = self._exhaustive or request.exhaustive

    def take(self, asked: Asked, *, number: int) -> ScriptedAnswer | None:
        """The next answer for this request, consumed. Raises ApiError (400) where an exhaustive script has none."""
        now_seconds = time.monotonic()
        self._queue = [queued for queued in self._queue if not queued.is_over(now_seconds)]
        for queued in self._queue:
            if _fits(queued.answer.match, asked):
                queued.serve(now_seconds)
                if not queued.left:
                    self._queue.remove(queued)
                return queued.answer
        if self._exhaustive and asked.endpoint in GENERATING and not asked.asks_title:
            self.unexpected = [*self.unexpected[-99:], number]
            raise ApiError(400, "The script has no answer for this request.", code="no_scripted_answer")
        return None

    def unconsumed(self) -> list[ScriptedAnswer]:
        """The answers that still wait, `times` being what is left of them."""
        waiting = [queued for queued in self._queue if queued.answer.for_seconds is None or queued.first_seconds is None]
        return [queued.answer.model_copy(update={"times": queued.left}) for queued in waiting]

    def reset(self) -> None:
        """Forget every answer."""
        self._queue.clear()
        self._exhaustive = False
        self.unexpected = []


@dataclass(slots=True)
class Journal:
    """The newest requests, bounded in number and bytes. `count` is of all since the last reset."""

    keeps: bool
    count: int = 0
    _kept: deque[tuple[int, RecordedRequest]] = field(default_factory=deque)
    _bytes: int = 0

    def record(self, endpoint: Endpoint, *, headers: dict[str, str], body: JsonObject) -> RecordedRequest:
        """Note a request; kept only where there is a control door to ask for it."""
        self.count += 1
        recorded = RecordedRequest.model_construct(number=self.count, endpoint=endpoint, headers=headers, body=body)
        if self.keeps:
            size = len(orjson.dumps(body))
            self._kept.append((size, recorded))
            self._bytes += size
            while self._kept and (len(self._kept) > JOURNAL_REQUESTS or self._bytes > JOURNAL_BYTES):
                self._bytes -= self._kept.popleft()[0]
        return recorded

    def requests(self) -> list[RecordedRequest]:
        """The kept requests, oldest first."""
        return [recorded for _, recorded in self._kept]

    def reset(self) -> None:
        """Forget every request and count from 0 again."""
        self._kept.clear()
        self.count = self._bytes = 0


def _fits(match: Match, asked: Asked) -> bool:
    if match.endpoint != asked.endpoint and (match.endpoint is not None or asked.endpoint not in GENERATING):
        return False
    if match.asks_title != asked.asks_title or match.model not in (None, asked.model):
        return False
    return match.text is None or match.text.casefold() in asked.text.casefold()


def _function_call(call: ScriptedCall) -> FunctionCall:
    arguments = call.arguments if isinstance(call.arguments, str) else orjson.dumps(call.arguments).decode()
    return FunctionCall(call.name, arguments, call.call_id)
