"""Streams that are cut and resumed: over REST and gRPC, on either replica, by sequence, by Last-Event-ID, by cookie."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from bench.cut_streams import Cutter, Load
from simulator.control import Control, ScriptedAnswer
from tests.e2e.harness import Client, Event, Suite, check_sequence, generation_of, text_of

STREAMS = 60


def replicas(suite: Suite) -> list[str]:
    return [f"127.0.0.1:{suite.port('CHAT') + index}" for index in range(2)]


async def test_sixty_streams_cut_at_random_points_lose_nothing(suite: Suite) -> None:
    async with Cutter(suite.url, replicas(suite), load=Load(tokens=60, interval_ms=10), seed=7) as cutter:
        await cutter.run(STREAMS, at_once=30)
    assert cutter.figures.streams == STREAMS
    assert cutter.figures.cuts > 2 * STREAMS
    assert set(cutter.figures.resumed) == {"REST", "gRPC at the edge", "gRPC at replica 0", "gRPC at replica 1"}


async def begun(client: Client, count: int, **body: object) -> list[Event]:
    """The first events of a stream whose reader then leaves."""
    seen: list[Event] = []
    async with client.stream("tell me", **body) as events:
        async for event in events:
            seen.append(event)
            if len(seen) == count:
                break
    return seen


@pytest.mark.parametrize("is_header", [True, False], ids=["last-event-id", "after_sequence"])
async def test_the_rest_of_a_held_reply_is_followed_as_it_comes(client: Client, control: Control, is_header: bool) -> None:  # noqa: FBT001
    await control.script(ScriptedAnswer(deltas=["one ", "two ", "three"], hold_after_tokens=2))
    seen = await begun(client, 2)
    place: dict[str, Any] = {"last_event_id": "2"} if is_header else {"after": 2}
    following = asyncio.create_task(client.rest_of(generation_of(seen), **place))
    await control.wait(held=1)
    await control.release()
    rest = await following
    assert rest is not None
    check_sequence([*seen, *rest])
    assert text_of([*seen, *rest]) == "one two three"


async def test_the_greater_place_counts(client: Client) -> None:
    events = await client.streamed("hello")
    generation = generation_of(events)
    for after, header in ((1, "3"), (3, "1")):
        rest = await client.rest_of(generation, after, last_event_id=header)
        assert rest == events[3:]


async def test_after_the_end_there_is_no_content(client: Client) -> None:
    events = await client.streamed("hello")
    generation = generation_of(events)
    assert await client.rest_of(generation, len(events)) is None
    assert await client.rest_of(generation, len(events) + 100) is None
    assert await client.rest_of(generation, last_event_id=str(len(events))) is None
    assert await client.rest_of(generation, len(events) - 1) == events[-1:]
    assert await client.rest_of(generation) == events


async def test_several_follow_one_reply(client: Client, control: Control) -> None:
    await control.script(ScriptedAnswer(deltas=[f"{number} " for number in range(20)], hold_after_tokens=10))
    seen = await begun(client, 1)
    following = [asyncio.create_task(client.rest_of(generation_of(seen), after)) for after in (0, 1, 0, 1)]
    await control.wait(held=1)
    await control.release()
    from_start, after_first, *others = await asyncio.gather(*following)
    assert from_start is not None
    check_sequence(from_start)
    assert after_first == from_start[1:]
    assert others == [from_start, after_first]


async def test_a_generation_tells_how_far_it_is_and_stops_when_told(client: Client, control: Control) -> None:
    await control.script(ScriptedAnswer(deltas=["one ", "two ", "three"], hold_after_tokens=2))
    seen = await begun(client, 2)
    await control.wait(held=1)
    path = f"/api/v1/chat/generations/{generation_of(seen)}"
    running = await client.call("GET", path)
    assert (running["status"], running["message_id"]) == ("running", seen[0].data["started"]["message_id"])
    assert (await client.call("POST", f"{path}:cancel"))["status"] == "cancelled"
    rest = await client.rest_of(generation_of(seen))
    assert rest is not None
    check_sequence(rest)
    assert rest[-1].data["cancelled"]["partial_message"]["text"] == text_of(rest) == "one two "
    ended = await client.call("POST", f"{path}:cancel")
    assert (ended["status"], ended["sequence"]) == ("cancelled", len(rest))
    await control.release()


async def test_a_strict_reader_with_a_cookie_is_cut_and_resumes(client: Client) -> None:
    """What a browser's EventSource does, by hand: no header but cookie and Last-Event-ID, again and again until 204."""
    first = await begun(client, 1, model="sim-40-20-0")
    generation = generation_of(first)
    cookie = {"cookie": f"theme=dark; session_token={client.tokens['access_token']}", "accept": "text/event-stream"}
    seen: list[Event] = []
    while True:
        place = {"last-event-id": str(seen[-1].id)} if seen else {}
        path = f"/api/v1/chat/generations/{generation}/events"
        bite: list[Event] = []
        async with client.events("GET", path, headers={**cookie, **place}) as events:
            async for event in events:
                bite.append(event)
                if len(bite) == 9:
                    break
        if not bite:
            break
        seen += bite
    check_sequence(seen)
    assert text_of(seen) == " ".join(f"tok{number}" for number in range(40))
    assert all(later.data["sequence"] == earlier.data["sequence"] + 1 for earlier, later in pairwise(seen))
