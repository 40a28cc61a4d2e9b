"""The Responses API on the wire: a response object and the events that build it.

Owns the choreography of a response, event by event as OpenAI emits it, and the response object, whole at every moment.
Invariant: sequence numbers start at 0 without holes, an item's id never changes, the deltas of a text concatenate to its
final text, and a run has at most one terminal event.
"""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from simulator.answers import Answer
from simulator.frames import Frame, FrameKind
from simulator.items import ItemWriter, Limits, Step
from simulator.requests import JsonObject, ResponsesRequest

Ending = Literal["incomplete", "failed", "error"]


@dataclass(frozen=True, slots=True)
class Stop:
    """An end before the answer's own: after so many tokens, in which way, and what the error says."""

    after_tokens: int
    ending: Ending
    message: str = "The server had an error while processing your request. Sorry about that!"
    code: str = "server_error"


class ResponseRun:
    """One response in the making. `frames()` runs it, once; `snapshot()` shows it at any time."""

    def __init__(
        self,
        request: ResponsesRequest,
        answer: Answer,
        *,
        tools: Sequence[JsonObject],
        input_tokens: tuple[int, int],
        stop: Stop | None,
    ) -> None:
        self.response = new_response(request, tools)
        self._answer = answer
        self._input_tokens = input_tokens
        self._stop = stop
        self._sequence = 0
        limits = Limits(
            tokens=request.max_output_tokens,
            deltas=stop.after_tokens if stop else None,
            leaves_item_open=stop is not None and stop.ending != "incomplete",
        )
        self._writer = ItemWriter(limits, include=frozenset(request.include or ()))

    @property
    def finished(self) -> bool:
        """True once the response has reached a final status."""
        return self.response["status"] not in ("queued", "in_progress")

    def frames(self) -> Iterator[Frame]:
        """Every event of the response, in order."""
        yield self._lifecycle("response.created")
        if self.response["background"]:
            yield self._lifecycle("response.queued")
            self.response["status"] = "in_progress"
        yield self._lifecycle("response.in_progress")
        for step in self._writer.steps(self._answer, self.response["output"]):
            yield self._frame(step)
        yield self._end()

    @property
    def refusal(self) -> JsonObject | None:
        """The error body that a caller who does not stream gets instead of the response."""
        if self._stop is None or self.response["status"] != "failed" or self._stop.ending != "error":
            return None
        shown = {"message": self._stop.message, "type": "server_error", "param": None, "code": self._stop.code}
        return {"error": shown}

    def snapshot(self) -> JsonObject:
        """The response object as a GET shows it now."""
        self._writer.settle()
        return self.response

    def cancel(self) -> None:
        """Close the response as cancelled, with the output so far. No event tells it: the stream just ends."""
        self.response["status"] = "cancelled"

    def _end(self) -> Frame:
        if self._writer.cut == "tokens":
            return self._incomplete()
        if self._stop is None:
            return self._complete()
        return self._incomplete() if self._stop.ending == "incomplete" else self._fail(self._stop)

    def _complete(self) -> Frame:
        self.response.update(status="completed", completed_at=_now(), usage=self._usage())
        return self._lifecycle("response.completed")

    def _incomplete(self) -> Frame:
        self.response.update(status="incomplete", incomplete_details={"reason": "max_output_tokens"}, usage=self._usage())
        return self._lifecycle("response.incomplete")

    def _fail(self, stop: Stop) -> Frame:
        self.response.update(status="failed", error={"code": stop.code, "message": stop.message})
        if stop.ending == "failed":
            return self._lifecycle("response.failed")
        event = {"type": "error", "code": stop.code, "message": stop.message, "param": None}
        return self._frame(Step(event), terminal=True)

    def _lifecycle(self, kind: str) -> Frame:
        terminal = kind not in ("response.created", "response.queued", "response.in_progress")
        return self._frame(Step({"type": kind, "response": self.snapshot()}), opening=not terminal, terminal=terminal)

    def _frame(self, step: Step, *, opening: bool = False, terminal: bool = False) -> Frame:
        event = {**step.event, "sequence_number": self._sequence}
        self._sequence += 1
        kind = FrameKind.TOKEN if step.is_token else FrameKind.STEP
        kind = FrameKind.OPENING if opening else FrameKind.TERMINAL if terminal else kind
        return Frame(kind, b"event: %b\ndata: %b\n\n" % (step.event["type"].encode(), orjson.dumps(event)))

    def _usage(self) -> JsonObject:
        total, cached = self._input_tokens
        produced = self._writer.tokens
        return {
            "input_tokens": total,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": produced,
            "output_tokens_details": {"reasoning_tokens": self._writer.reasoning_tokens},
            "total_tokens": total + produced,
        }


def new_response(request: ResponsesRequest, tools: Sequence[JsonObject]) -> JsonObject:
    """The response object before its first token: the request's parameters, with OpenAI's defaults."""
    reasoning = request.reasoning
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": _now(),
        "status": "queued" if request.background else "in_progress",
        "background": bool(request.background),
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "model": request.model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "prompt_cache_retention": request.prompt_cache_retention,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": (reasoning.summary or reasoning.generate_summary) if reasoning else None,
        },
        "safety_identifier": request.safety_identifier,
        "service_tier": "default" if request.service_tier in (None, "auto") else request.service_tier,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "text": _text_options(request),
        "tool_choice": request.tool_choice or "auto",
        "tools": list(tools),
        "top_logprobs": request.top_logprobs or 0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "truncation": request.truncation or "disabled",
        "usage": None,
        "user": request.user,
    }


def _text_options(request: ResponsesRequest) -> JsonObject:
    text = request.text
    wanted = text.format if text else None
    shape: dict[str, Any] = {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True, exclude_none=True)
    return {"format": shape, "verbosity": (text.verbosity if text else None) or "medium"}


def _now() -> int:
    return int(time.time())
