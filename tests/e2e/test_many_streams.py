"""Two hundred streams at once through the edge: no token lost, doubled or out of order."""

import asyncio

from tests.e2e.harness import Client, check_sequence, text_of

STREAMS, TOKENS = 200, 100


async def test_two_hundred_streams_of_a_hundred_tokens(client: Client) -> None:
    wanted = " ".join(f"tok{number}" for number in range(TOKENS))
    streams = await asyncio.gather(
        *(client.streamed(f"stream {number}", model=f"sim-{TOKENS}-20-50") for number in range(STREAMS))
    )
    assert len(streams) == STREAMS
    for events in streams:
        check_sequence(events)
        assert text_of(events) == wanted
        assert events[-1].data["completed"]["message"]["text"] == wanted
    assert len({events[0].data["started"]["conversation_id"] for events in streams}) == STREAMS
