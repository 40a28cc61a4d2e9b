"""One request id is one turn, whichever of the two chat processes gets the call, however often and however close."""

import asyncio
import uuid

from simulator.control import Control
from tests.e2e.harness import Client, check_sequence, text_of


async def test_twenty_streams_at_once_with_one_request_id_are_one_turn(client: Client, control: Control) -> None:
    request_id = str(uuid.uuid4())
    streams = await asyncio.gather(
        *(client.streamed("once, please", request_id=request_id, model="sim-30-5-20") for _ in range(20))
    )
    for events in streams:
        check_sequence(events)
    assert {text_of(events) for events in streams} == {" ".join(f"tok{number}" for number in range(30))}
    assert len({events[0].data["started"]["generation_id"] for events in streams}) == 1
    assert len(await control.requests("responses")) == 1
    listed = await client.call("GET", "/api/v1/chat/conversations")
    assert [row["message_count"] for row in listed["conversations"]] == [2]


async def test_a_repeat_later_by_the_header_gets_the_same_answer(client: Client, control: Control) -> None:
    key = {"idempotency-key": str(uuid.uuid4())}
    first, second = [
        await client.http.post("/api/v1/chat/completions", json={"message": "once"}, headers={**client.headers, **key})
        for _ in range(2)
    ]
    assert first.json() == second.json()
    assert len(await control.requests("responses")) == 1


async def test_another_message_under_the_same_request_id_is_refused(client: Client) -> None:
    request_id = str(uuid.uuid4())
    await client.call("POST", "/api/v1/chat/completions", message="one", request_id=request_id)
    refused = await client.refusal("POST", "/api/v1/chat/completions", message="two", request_id=request_id)
    assert refused == (409, "REQUEST_ID_REUSED")


async def test_the_same_request_id_of_two_users_is_two_turns(client: Client, stranger: Client) -> None:
    request_id = str(uuid.uuid4())
    mine = await client.call("POST", "/api/v1/chat/completions", message="one", request_id=request_id)
    theirs = await stranger.call("POST", "/api/v1/chat/completions", message="one", request_id=request_id)
    assert mine["conversation_id"] != theirs["conversation_id"]
