"""The containers in which the code interpreter runs: which there are, and which have gone.

Owns their ids. Invariant: at most `limit` are remembered, the oldest going first; one that nobody used for `ttl_seconds`, or
that the control door expired, is refused as OpenAI refuses it, and so is one that never was.
"""

import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from simulator.answers import Answer, AnswerItem, CodeRun
from simulator.errors import ApiError, invalid
from simulator.requests import JsonObject

MAX_CONTAINERS = 10_000
TTL_SECONDS = 1200.0


class Containers:
    """Containers by id."""

    def __init__(self, *, limit: int = MAX_CONTAINERS, ttl_seconds: float = TTL_SECONDS) -> None:
        self._limit = limit
        self._ttl_seconds = ttl_seconds
        self._used_seconds: OrderedDict[str, float] = OrderedDict()

    def check(self, tools: Sequence[JsonObject], items: Iterable[JsonObject]) -> None:
        """Raises ApiError where a tool or an earlier call names a container that is not there (404) or expired (400)."""
        for tool in tools:
            if tool.get("type") == "code_interpreter" and isinstance(tool.get("container"), str):
                self._check(tool["container"])
        for item in items:
            if item.get("type") == "code_interpreter_call":
                self._check(str(item.get("container_id")))

    def assign(self, answer: Answer, tools: Sequence[JsonObject]) -> Answer:
        """The answer with a container for each run of code: the one that its tool names, else one new for all."""
        named = [tool.get("container") for tool in tools if tool.get("type") == "code_interpreter"]
        container = next((each for each in named if isinstance(each, str)), None) or f"cntr_{uuid.uuid4().hex}"
        if any(isinstance(item, CodeRun) for item in answer):
            self._note(container)
        return tuple(_within(item, container) for item in answer)

    def expire(self) -> int:
        """Let every container go; returns how many there were."""
        for container in self._used_seconds:
            self._used_seconds[container] = -self._ttl_seconds
        return len(self._used_seconds)

    def _note(self, container: str) -> None:
        self._used_seconds[container] = time.monotonic()
        self._used_seconds.move_to_end(container)
        while len(self._used_seconds) > self._limit:
            self._used_seconds.popitem(last=False)

    def _check(self, container: str) -> None:
        if container not in self._used_seconds:
            raise ApiError(404, f"Container with id '{container}' not found.")
        if time.monotonic() - self._used_seconds[container] > self._ttl_seconds:
            raise invalid("Container is expired.", code=None)
        self._note(container)


def _within(item: AnswerItem, container: str) -> AnswerItem:
    return replace(item, container_id=container) if isinstance(item, CodeRun) else item
