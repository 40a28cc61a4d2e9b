"""When the provider fails, through the edge: what the person sees, and what is kept."""

from dataclasses import dataclass

import pytest

from tests.e2e.harness import Client, check_sequence, reason_of, text_of


@dataclass(frozen=True)
class Failure:
    """A model of the simulator that misbehaves as its name says, and what a person gets of it."""

    model: str
    status: int
    reason: str
    partial: str = ""


FAILURES = [
    Failure("sim-20-0-0-status-429-150", 429, "MODEL_RATE_LIMITED"),
    Failure("sim-20-0-0-status-500", 503, "MODEL_UNAVAILABLE"),
    Failure("sim-20-0-0-cut-3", 503, "MODEL_UNAVAILABLE", "tok0 tok1 tok2"),
    Failure("sim-20-0-0-malformed-3", 503, "MODEL_UNAVAILABLE", "tok0 tok1 tok2"),
    Failure("sim-20-0-0-end-3", 503, "MODEL_UNAVAILABLE", "tok0 tok1 tok2"),
    Failure("sim-20-0-0-stall-3", 504, "MODEL_TIMED_OUT", "tok0 tok1 tok2"),
]
each_failure = pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.model)


@each_failure
async def test_a_stream_ends_with_a_failed_event(client: Client, failure: Failure) -> None:
    events = await client.streamed("tell me", model=failure.model)
    check_sequence(events)
    failed = events[-1].data["failed"]
    assert failed["reason"] == failure.reason
    assert failed["retry_delay"].endswith("s")
    assert text_of(events) == failure.partial
    await _check_kept(client, events[0].data["started"]["conversation_id"], failure)


@each_failure
async def test_a_unary_call_gets_the_status_and_a_retry_delay(client: Client, failure: Failure) -> None:
    body = {"message": "tell me", "model": failure.model}
    answer = await client.http.post("/api/v1/chat/completions", json=body, headers=client.headers)
    assert (answer.status_code, reason_of(answer)) == (failure.status, failure.reason)
    assert [detail for detail in answer.json()["details"] if detail["@type"].endswith("RetryInfo")]
    if failure.status in {429, 503}:
        assert int(answer.headers["retry-after"]) >= 1
    listed = await client.call("GET", "/api/v1/chat/conversations")
    await _check_kept(client, listed["conversations"][0]["id"], failure)


async def _check_kept(client: Client, conversation_id: str, failure: Failure) -> None:
    """What the user wrote is there, and the partial reply, marked."""
    full = await client.call("GET", f"/api/v1/chat/conversations/{conversation_id}/full")
    user, reply = full["messages"]
    assert (user["role"], user["text"], user["status"]) == ("user", "tell me", "complete")
    assert (reply["status"], reply["incomplete_reason"]) == ("incomplete", failure.reason)
    assert reply["text"] == failure.partial
