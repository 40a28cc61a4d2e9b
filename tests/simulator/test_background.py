"""Background responses: they go on without their reader, are resumed by sequence number, and can be cancelled."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import APIConnectionError, AsyncOpenAI, BadRequestError, InternalServerError, NotFoundError

from simulator.control import Control, Fault, Match, ScriptedAnswer
from tests.simulator.strict import EVENT, RESPONSE, check
from tests.simulator.wire import Wire, frames
from tests.work import PATIENCE_SECONDS


async def finished(client: AsyncOpenAI, response_id: str) -> Any:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            response = await client.responses.retrieve(response_id)
            if response.status not in ("queued", "in_progress"):
                return response
            await asyncio.sleep(0.01)


async def test_a_background_response_answers_at_once_and_finishes_by_itself(wire: Wire, client: AsyncOpenAI) -> None:
    begun = check(RESPONSE, (await wire.post("responses", model="sim-20-5-3000", input="go", background=True)).content)
    assert (begun.status, begun.background, begun.output) == ("queued", True, [])
    midway = check(RESPONSE, (await wire.http.get(f"responses/{begun.id}")).content)
    assert midway.status in ("queued", "in_progress")
    assert (await finished(client, begun.id)).output_text.endswith("tok19")


async def collect(events: AsyncIterator[Any], into: list[Any]) -> None:
    async for event in events:
        into.append(event)  # noqa: PERF401 (a comprehension would lose what came before an error)


async def test_a_cut_reader_resumes_where_it_was_and_gets_everything_once(client: AsyncOpenAI) -> None:
    seen: list[Any] = []
    stream = await client.responses.create(model="sim-30-5-0-cut-10", input="go", stream=True, background=True)
    with pytest.raises(APIConnectionError):
        await collect(aiter(stream), seen)
    assert seen[1].type == "response.queued"
    rest = await client.responses.retrieve(seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number)
    await collect(aiter(rest), seen)
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    text = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
    assert text == " ".join(f"tok{index}" for index in range(30)) == seen[-1].response.output_text


async def test_a_finished_run_is_replayed_strictly_from_any_event(wire: Wire) -> None:
    events = await wire.events(model="sim-5-0-0", input="go", background=True)
    path = f"responses/{events[0].response.id}"
    everything = await wire.http.get(path, params={"stream": "true"})
    replayed = [check(EVENT, data) for _, data in frames(everything.text)]
    assert replayed == events
    rest = await wire.http.get(path, params={"stream": "true", "starting_after": len(events) - 3})
    assert [check(EVENT, data) for _, data in frames(rest.text)] == events[-2:]
    nothing = await wire.http.get(path, params={"stream": "true", "starting_after": len(events) - 1})
    assert nothing.text == ""


async def test_two_readers_follow_one_run(client: AsyncOpenAI) -> None:
    first = await client.responses.create(model="sim-20-5-30", input="go", stream=True, background=True)
    created = await anext(aiter(first))
    assert created.type == "response.created"
    second = await client.responses.retrieve(created.response.id, stream=True)
    followed = [event.sequence_number async for event in second]
    assert followed == [0, *[event.sequence_number async for event in first]]


async def test_a_cancelled_run_keeps_its_partial_text_and_ends_its_readers(
    wire: Wire, client: AsyncOpenAI, control: Control
) -> None:
    await control.script(ScriptedAnswer(deltas=["one", " two", " three"], hold_after_tokens=2))
    stream = await client.responses.create(model="m", input="go", stream=True, background=True)
    events = aiter(stream)
    created = await anext(events)
    assert created.type == "response.created"
    path = f"responses/{created.response.id}"
    await control.wait(held=1)
    cancelled = check(RESPONSE, (await wire.http.post(f"{path}/cancel")).content)
    assert (cancelled.status, cancelled.output_text) == ("cancelled", "one two")
    types = [event.type async for event in events]
    assert types[-1] == "response.output_text.delta"
    assert (await wire.http.post(f"{path}/cancel")).json() == (await wire.http.get(path)).json()


async def test_a_finished_or_foreground_response_cannot_be_cancelled(client: AsyncOpenAI) -> None:
    begun = await client.responses.create(model="sim-2-0-0", input="go", background=True)
    await finished(client, begun.id)
    with pytest.raises(BadRequestError, match="Cannot cancel a completed response"):
        await client.responses.cancel(begun.id)
    plain = await client.responses.create(model="sim-2-0-0", input="go")
    with pytest.raises(BadRequestError, match="synchronous"):
        await client.responses.cancel(plain.id)


async def test_only_a_streamed_background_response_can_be_streamed_again(client: AsyncOpenAI) -> None:
    for options in ({}, {"background": True}):
        made = await client.responses.create(model="sim-2-0-0", input="go", **options)  # type: ignore[call-overload]
        with pytest.raises(BadRequestError) as caught:
            await client.responses.retrieve(made.id, stream=True)
        assert caught.value.param == "stream"


async def test_a_deleted_background_response_is_gone_and_its_run_stopped(client: AsyncOpenAI) -> None:
    stream = await client.responses.create(model="sim-1000-300-0", input="go", stream=True, background=True)
    events = aiter(stream)
    created = await anext(events)
    assert created.type == "response.created"
    await client.responses.delete(created.response.id)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert "response.completed" not in [event.type async for event in events]
    with pytest.raises(NotFoundError):
        await client.responses.retrieve(created.response.id)


@pytest.mark.parametrize("ending", ["failed", "incomplete", "error"])
async def test_a_run_that_ends_badly_does_so_without_a_reader_too(client: AsyncOpenAI, ending: str) -> None:
    begun = await client.responses.create(model=f"sim-5-0-0-{ending}-2", input="go", background=True)
    ended = await finished(client, begun.id)
    assert ended.status == ("incomplete" if ending == "incomplete" else "failed")
    assert ended.output_text == "tok0 tok1"


async def test_a_bad_starting_after_is_refused(wire: Wire) -> None:
    events = await wire.events(model="sim-1-0-0", input="go", background=True)
    path = f"responses/{events[0].response.id}"
    assert (await wire.http.get(path, params={"stream": "true", "starting_after": "x"})).status_code == 400


ADD_TASK = {
    "type": "function",
    "name": "add_task",
    "strict": True,
    "parameters": {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]},
}
ERRANDS = [
    {"input": "add a task to buy milk", "tools": [ADD_TASK], "reasoning": {"effort": "high", "summary": "auto"}},
    {
        "input": "search the web for cats",
        "tools": [{"type": "web_search"}],
        "reasoning": {"effort": "low", "summary": "auto"},
    },
    {"input": "calculate 2 + 2", "tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]},
]


@pytest.mark.parametrize("errand", ERRANDS, ids=["function", "search", "code"])
async def test_tools_and_reasoning_are_resumed_from_any_event(wire: Wire, errand: dict[str, Any]) -> None:
    events = await wire.events(model="m", background=True, **errand)
    path = f"responses/{events[0].response.id}"
    assert events[-1].type == "response.completed"
    for after in range(-1, len(events) - 1):
        rest = await wire.http.get(path, params={"stream": "true", "starting_after": after})
        assert [check(EVENT, data) for _, data in frames(rest.text)] == events[after + 1 :]


async def test_what_is_asked_about_a_stored_response_is_told_at_the_door(wire: Wire, control: Control) -> None:
    events = await wire.events(model="sim-2-0-0", input="go", background=True)
    path = f"responses/{events[0].response.id}"
    await wire.http.get(path, params={"stream": "true", "starting_after": 3})
    await wire.http.delete(path)
    await wire.http.delete(path)
    told = [(one.endpoint, one.outcome) for one in await control.requests()]
    assert told == [
        ("responses", "completed"),
        ("responses.retrieve", "completed"),
        ("responses.delete", "completed"),
        ("responses.delete", "refused"),
    ]
    assert (await control.requests("responses.retrieve"))[0].body == {
        "id": events[0].response.id,
        "stream": "true",
        "starting_after": "3",
    }


async def test_a_resumed_reader_can_be_refused_and_cut(wire: Wire, client: AsyncOpenAI, control: Control) -> None:
    retrieve = Match(endpoint="responses.retrieve")
    await control.script(
        ScriptedAnswer(match=retrieve, fault=Fault(kind="status", status=503)),
        ScriptedAnswer(match=retrieve, fault=Fault(kind="cut", after_tokens=2)),
    )
    events = await wire.events(model="sim-9-0-0", input="go", background=True)
    response_id = events[0].response.id
    with pytest.raises(InternalServerError):
        await client.responses.retrieve(response_id, stream=True)
    seen: list[Any] = []
    with pytest.raises(APIConnectionError):
        await collect(aiter(await client.responses.retrieve(response_id, stream=True)), seen)
    assert [event.delta for event in seen if event.type == "response.output_text.delta"] == ["tok0", " tok1"]
    await collect(
        aiter(await client.responses.retrieve(response_id, stream=True, starting_after=seen[-1].sequence_number)), seen
    )
    assert [event.sequence_number for event in seen] == list(range(len(events)))
