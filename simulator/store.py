"""The stored responses: those that GET, cancel, DELETE and previous_response_id can find.

Owns stored responses and the tasks of background ones. Invariant: at most `limit` responses, the least recently used
going first, none older than `ttl_seconds`; an evicted or deleted background run is stopped; a reader never changes a run.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence

from simulator.errors import ApiError, invalid
from simulator.frames import BATCH_LIMIT, Frame, Hold, paced
from simulator.plan import Pace
from simulator.requests import JsonObject
from simulator.responses import ResponseRun

MAX_RESPONSES = 5_000
TTL_SECONDS = 3600.0


class StoredResponse:
    """A response, the items it was asked with, and for a background one its run and every event so far."""

    def __init__(self, run: ResponseRun, items: Sequence[JsonObject], *, streamed: bool) -> None:
        self.run = run
        self.items = tuple(items)
        self.streamed = streamed
        self.created_seconds = time.monotonic()
        self._frames: list[Frame] = []
        self._grown = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, pace: Pace, hold: Hold | None) -> None:
        """Let a background run go on by itself."""
        self._task = asyncio.create_task(self._proceed(pace, hold), name=self.run.response["id"])

    def stop(self) -> None:
        """Stop a background run where it is; readers come to an end. Idempotent."""
        if self._task:
            self._task.cancel()

    async def finish(self) -> None:
        """Wait until the background run has ended or was stopped."""
        if self._task:
            await asyncio.wait({self._task})

    async def follow(self, after: int) -> AsyncIterator[list[Frame]]:
        """Every event after a sequence number: those so far, then those to come, until the run has ended."""
        index = after + 1
        while True:
            grown, over = self._grown, self._task is None or self._task.done()
            batch = self._frames[index : index + BATCH_LIMIT]
            if batch:
                index += len(batch)
                yield batch
            elif over:
                return
            else:
                await grown.wait()

    async def _proceed(self, pace: Pace, hold: Hold | None) -> None:
        try:
            async for batch in paced(self.run.frames(), pace, hold):
                self._frames += batch
                self._wake()
        finally:
            # Readers look again once the task is done, which it is only after this frame has returned.
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()


class ResponseStore:
    """Stored responses by id."""

    def __init__(self, *, limit: int = MAX_RESPONSES, ttl_seconds: float = TTL_SECONDS) -> None:
        self._limit = limit
        self._ttl_seconds = ttl_seconds
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()

    def put(self, stored: StoredResponse) -> None:
        """Keep a response, dropping the oldest and the expired."""
        self._responses[stored.run.response["id"]] = stored
        while len(self._responses) > self._limit or self._oldest_is_expired():
            self._responses.popitem(last=False)[1].stop()

    def get(self, response_id: str) -> StoredResponse:
        """A stored response. Raises ApiError (404)."""
        stored = self._responses.get(response_id)
        if stored is None or self._is_expired(stored):
            raise ApiError(404, f"Response with id '{response_id}' not found.")
        self._responses.move_to_end(response_id)
        return stored

    def history(self, previous_response_id: str) -> list[JsonObject]:
        """The items that a continued response starts from. Raises ApiError (400)."""
        param = "previous_response_id"
        try:
            stored = self.get(previous_response_id)
        except ApiError as error:
            message = f"Previous response with id '{previous_response_id}' not found."
            raise invalid(message, param=param, code="previous_response_not_found") from error
        return [*stored.items, *stored.run.snapshot()["output"]]

    def delete(self, response_id: str) -> None:
        """Forget a response, stopping its run. Raises ApiError (404)."""
        self.get(response_id).stop()
        del self._responses[response_id]

    def discard(self, response_id: str) -> None:
        """Forget a response that its caller never got whole. Idempotent."""
        self._responses.pop(response_id, None)

    async def clear(self) -> None:
        """Stop every run and forget every response."""
        dropped, self._responses = list(self._responses.values()), OrderedDict()
        for stored in dropped:
            stored.stop()
        for stored in dropped:
            await stored.finish()

    def _oldest_is_expired(self) -> bool:
        return bool(self._responses) and self._is_expired(next(iter(self._responses.values())))

    def _is_expired(self, stored: StoredResponse) -> bool:
        return time.monotonic() - stored.created_seconds > self._ttl_seconds
