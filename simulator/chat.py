"""Chat Completions on the wire: the completion object and its chunks.

Owns the choreography of a completion as OpenAI emits it: role, content or tool calls, finish reason, usage where asked
for, `[DONE]`. A stop that is no length limit ends the stream with an error object, as OpenAI's does.
"""

import time
import uuid
from collections.abc import Iterator

import orjson

from simulator.answers import Answer, FunctionCall, Reasoning, Text
from simulator.frames import Frame, FrameKind
from simulator.requests import ChatRequest, JsonObject
from simulator.responses import Stop
from simulator.tokens import tokenize


class ChatRun:
    """One completion in the making; `frames()` runs it, once, and `snapshot()` is the whole completion after that."""

    def __init__(self, request: ChatRequest, answer: Answer, *, input_tokens: tuple[int, int], stop: Stop | None) -> None:
        self._request = request
        self._answer = answer
        self._input_tokens = input_tokens
        self._stop = stop
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}
        self._said: list[str] = []
        self._calls: list[JsonObject] = []
        self._finish = "stop"
        self._deltas = 0
        limit = request.max_completion_tokens or request.max_tokens
        thought = sum(item.hidden_tokens for item in answer if isinstance(item, Reasoning))
        self._reasoning_tokens = thought if limit is None else min(thought, limit)
        self._budget = None if limit is None else limit - self._reasoning_tokens

    @property
    def refusal(self) -> JsonObject | None:
        """The error body that the run ended in, if it did."""
        if self._stop is None or self._stop.ending == "incomplete" or self._finish == "length":
            return None
        shown = {"message": self._stop.message, "type": "server_error", "param": None, "code": self._stop.code}
        return {"error": shown}

    def frames(self) -> Iterator[Frame]:
        """Every chunk of the completion, in order."""
        yield self._chunk({"role": "assistant", "content": "", "refusal": None}, kind=FrameKind.OPENING)
        for item in self._answer:
            match item:
                case Text(tokens=tokens):
                    yield from self._text(tokens)
                case FunctionCall():
                    yield from self._call(item)
                case _:
                    continue
        yield self._ending()

    def snapshot(self) -> JsonObject:
        """The completion object."""
        message: JsonObject = {"role": "assistant", "content": "".join(self._said), "refusal": None, "annotations": []}
        if self._calls:
            message.update(content="".join(self._said) or None, tool_calls=self._calls)
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage(), **self._tail()}

    def _text(self, tokens: tuple[str, ...]) -> Iterator[Frame]:
        for token in self._take(tokens):
            self._said.append(token)
            yield self._chunk({"content": token}, kind=FrameKind.TOKEN)

    def _call(self, item: FunctionCall) -> Iterator[Frame]:
        index, call_id = len(self._calls), item.call_id or f"call_{uuid.uuid4().hex}"
        self._finish = "tool_calls"
        function: JsonObject = {"name": item.name, "arguments": ""}
        opened = {"index": index, "id": call_id, "type": "function", "function": function}
        yield self._chunk({"tool_calls": [opened]})
        said = []
        for token in self._take(tokenize(item.arguments)):
            said.append(token)
            yield self._chunk({"tool_calls": [{"index": index, "function": {"arguments": token}}]}, kind=FrameKind.TOKEN)
        function["arguments"] = "".join(said)
        self._calls.append({"id": call_id, "type": "function", "function": function})

    def _take(self, tokens: tuple[str, ...]) -> Iterator[str]:
        """The tokens that budget and fault leave; being out of budget is a finish by length."""
        left_by_fault = len(tokens) if self._stop is None else max(self._stop.after_tokens - self._deltas, 0)
        for token in tokens[:left_by_fault]:
            if self._budget is not None and self._deltas >= self._budget:
                self._finish = "length"
                return
            self._deltas += 1
            yield token

    def _ending(self) -> Frame:
        if self.refusal:
            return Frame(FrameKind.TERMINAL, b"data: %b\n\n" % orjson.dumps(self.refusal))
        if self._stop:
            self._finish = "length"
        closing = self._chunk({}, kind=FrameKind.TERMINAL, finish=self._finish).payload
        options = self._request.stream_options
        if options and options.include_usage:
            closing += self._encode({"choices": [], "usage": self._usage()})
        return Frame(FrameKind.TERMINAL, closing + b"data: [DONE]\n\n")

    def _chunk(self, delta: JsonObject, *, kind: FrameKind = FrameKind.STEP, finish: str | None = None) -> Frame:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        options = self._request.stream_options
        usage = {"usage": None} if options and options.include_usage else {}
        return Frame(kind, self._encode({"choices": [choice], **usage}))

    def _encode(self, rest: JsonObject) -> bytes:
        chunk = {**self._head, "object": "chat.completion.chunk", **self._tail(), **rest}
        return b"data: %b\n\n" % orjson.dumps(chunk)

    def _tail(self) -> JsonObject:
        tier = self._request.service_tier
        return {"service_tier": "default" if tier in (None, "auto") else tier, "system_fingerprint": "fp_simulator"}

    def _usage(self) -> JsonObject:
        total, cached = self._input_tokens
        produced = self._deltas + self._reasoning_tokens
        return {
            "prompt_tokens": total,
            "completion_tokens": produced,
            "total_tokens": total + produced,
            "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": self._reasoning_tokens,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }
