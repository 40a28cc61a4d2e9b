"""The bounds of the response store: number, age, and what becomes of an evicted run."""

import asyncio

import pytest

from simulator.errors import ApiError
from simulator.plan import Pace
from simulator.requests import ResponsesRequest
from simulator.responses import ResponseRun
from simulator.rules import numbered
from simulator.store import ResponseStore, StoredResponse
from tests.work import PATIENCE_SECONDS


def stored() -> StoredResponse:
    request = ResponsesRequest(model="m", input="go", background=True)
    return StoredResponse(ResponseRun(request, numbered(1000), tools=[], input_tokens=(1, 0), stop=None), [], streamed=True)


def identity(one: StoredResponse) -> str:
    return str(one.run.response["id"])


async def test_the_least_recently_used_goes_first_and_its_run_is_stopped() -> None:
    store, kept = ResponseStore(limit=2), [stored() for _ in range(3)]
    kept[1].start(Pace(interval_ms=300_000), None)
    store.put(kept[0])
    store.put(kept[1])
    store.get(identity(kept[0]))
    store.put(kept[2])
    assert store.get(identity(kept[0])) is kept[0]
    with pytest.raises(ApiError):
        store.get(identity(kept[1]))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await kept[1].finish()
    assert not kept[1].run.finished


async def test_an_expired_response_is_not_found() -> None:
    store, one = ResponseStore(ttl_seconds=60), stored()
    store.put(one)
    assert store.get(identity(one)) is one
    one.created_seconds -= 61
    with pytest.raises(ApiError):
        store.get(identity(one))
    with pytest.raises(ApiError) as caught:
        store.history(identity(one))
    assert caught.value.body["error"]["code"] == "previous_response_not_found"
