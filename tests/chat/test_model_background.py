"""Runs that the provider keeps: read on after a cut, by the same process or another, ended and forgotten."""

import asyncio
import contextlib
from typing import Any

import httpx2
import pytest

from services.chat.pieces import Piece, Position, ReasoningDelta, RoundEnd
from services.runtime.errors import Unavailable
from simulator.control import Fault, ScriptedAnswer
from simulator.server import Running
from tests.chat.providers import (
    Answer,
    completed,
    created,
    delta,
    end_of,
    in_seconds,
    message,
    numbered,
    opened,
    options,
    provider,
    refusal,
    request,
    sse,
    text_of,
    whole,
    without_positions,
    written,
    written_until_it_fails,
)

FAULTS = ["cut", "stall", "malformed", "end"]
EVENTS = numbered(created(), *[delta(f"word{number} ") for number in range(8)], completed(message("whole")))
TEXT = "".join(f"word{number} " for number in range(8))


async def kept(simulator: Running, response_id: str) -> int:
    async with httpx2.AsyncClient(trust_env=False) as client:
        headers = {"authorization": "Bearer any"}
        return (await client.get(f"{simulator.base_url}/responses/{response_id}", headers=headers)).status_code


def last_position(pieces: list[Piece | RoundEnd]) -> Position:
    return [piece for piece in pieces if isinstance(piece, Position)][-1]


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("after_tokens", [0, 1, 17, 40])
async def test_a_broken_stream_is_read_on_and_nothing_is_lost_or_told_twice(
    simulator: Running, kind: Any, after_tokens: int
) -> None:
    answer = ScriptedAnswer(
        reasoning="Let me see.",
        deltas=[f"tok{number} " for number in range(40)],
        fault=Fault(kind=kind, after_tokens=after_tokens),
    )
    await simulator.control.script(answer)
    async with opened(simulator.base_url, openai_timeout_seconds=0.3) as model:
        pieces = await written(model, request("Count", reasoning_effort="high", is_background=True))
    assert text_of(pieces) == "".join(f"tok{number} " for number in range(40))
    assert "".join(piece.text for piece in pieces if isinstance(piece, ReasoningDelta)) == "Let me see."
    assert end_of(pieces).usage is not None
    assert len(await simulator.control.requests("responses")) == 1
    sequences = [piece.sequence for piece in pieces if isinstance(piece, Position)]
    assert sequences == sorted(set(sequences))


async def test_a_run_is_read_on_as_often_as_it_is_cut_while_it_makes_progress() -> None:
    cuts = [Answer([sse(EVENTS[at])], then="cut") for at in range(len(EVENTS) - 1)]
    async with provider(*cuts, Answer([sse(EVENTS[-1])])) as told, opened(told.url) as model:
        pieces = await written(model, request(is_background=True))
    assert text_of(pieces) == TEXT
    paths = [one.path for one in told.requests]
    assert paths == ["/v1/responses", *[f"/v1/responses/resp_1?stream=true&starting_after={at}" for at in range(8 + 1)]]


async def test_a_run_without_news_is_given_up() -> None:
    answers = [Answer([sse(*EVENTS[:3])], then="cut"), *[refusal(503)] * 10]
    async with provider(*answers) as told, opened(told.url) as model:
        with pytest.raises(Unavailable):
            await written(model, request(is_background=True))


async def test_another_process_tells_only_the_rest(simulator: Running) -> None:
    async with opened(simulator.base_url) as model:
        first: list[Piece | RoundEnd] = []
        asked = request("Count", model="sim-60-5-0", is_background=True)
        async with contextlib.aclosing(model.round(asked, deadline=in_seconds(10))) as round_:
            async for piece in round_:
                first.append(piece)
                if isinstance(piece, Position) and piece.sequence > 20:
                    break
    async with opened(simulator.base_url) as another:
        resumed = another.resume(asked, last_position(first), deadline=in_seconds(10))
        rest = [piece async for piece in resumed]
    assert text_of([*first, *rest]).split() == [f"tok{number}" for number in range(60)]
    end = end_of(rest)
    assert end.items[0]["content"][0]["text"] == text_of([*first, *rest])
    assert len(await simulator.control.requests("responses")) == 1


async def test_a_run_that_ended_long_ago_is_only_closed(simulator: Running) -> None:
    async with opened(simulator.base_url) as model:
        asked = request("Hi", is_background=True)
        pieces = await written(model, asked)
        again = [piece async for piece in model.resume(asked, last_position(pieces), deadline=in_seconds(5))]
    assert without_positions(again) == [end_of(pieces)]


@pytest.mark.parametrize("told", range(1, len(EVENTS)))
async def test_what_the_stream_has_lost_is_taken_from_the_whole_response(told: int) -> None:
    response = {**EVENTS[-1]["response"], "output": [message(TEXT)]}
    answers = [Answer([sse(*EVENTS[:told])]), Answer(), whole(response)]
    async with provider(*answers) as remote, opened(remote.url) as model:
        pieces = await written(model, request(is_background=True))
    assert text_of(pieces) == TEXT
    assert end_of(pieces).response_id == "resp_1"
    assert [one.path for one in remote.requests][-1] == "/v1/responses/resp_1"


async def test_a_run_that_is_not_over_yet_is_waited_for() -> None:
    running = {"id": "resp_1", "status": "in_progress", "output": []}
    rest = Answer([sse(*EVENTS[3:])])
    answers = [Answer([sse(*EVENTS[:3])]), *[Answer(), whole(running)] * 7, rest]
    async with provider(*answers) as remote, opened(remote.url) as model:
        pieces = await written(model, request(is_background=True))
    assert text_of(pieces) == TEXT


@pytest.mark.parametrize("status", ["failed", "cancelled"])
async def test_a_run_that_has_failed_meanwhile_is_an_error(status: str) -> None:
    response = {"id": "resp_1", "status": status, "error": {"code": "server_error", "message": "x"}, "output": []}
    async with provider(Answer([sse(*EVENTS[:3])]), Answer(), whole(response)) as remote, opened(remote.url) as model:
        with pytest.raises(Unavailable):
            await written(model, request(is_background=True))


async def test_a_failure_that_the_run_itself_tells_is_not_read_on(simulator: Running) -> None:
    async with opened(simulator.base_url) as model:
        with pytest.raises(Unavailable):
            await written(model, request("Count", model="sim-9-0-0-failed-4", is_background=True))
    assert len(await simulator.control.requests("responses")) == 1


async def test_a_run_that_the_provider_has_forgotten_is_unavailable(simulator: Running) -> None:
    async with opened(simulator.base_url) as model:
        with pytest.raises(Unavailable):
            async for _ in model.resume(request(), Position("resp_none", 3), deadline=in_seconds(5)):
                pass


async def test_a_stream_that_is_not_kept_ends_with_the_cut(simulator: Running) -> None:
    async with opened(simulator.base_url) as model:
        pieces, error = await written_until_it_fails(model, request("Count", model="sim-9-0-0-cut-4"))
    assert isinstance(error, Unavailable)
    assert text_of(pieces).split() == ["tok0", "tok1", "tok2", "tok3"]
    assert not any(isinstance(piece, Position) for piece in pieces)


async def test_a_run_is_cancelled_and_forgotten_as_often_as_one_likes(simulator: Running) -> None:
    await simulator.control.script(ScriptedAnswer(text="Never said as a whole.", hold_after_tokens=2))
    async with opened(simulator.base_url) as model:
        async with contextlib.aclosing(model.round(request(is_background=True), deadline=in_seconds(5))) as round_:
            async for piece in round_:
                if isinstance(piece, Position):
                    response_id = piece.response_id
                    break
        await simulator.control.wait(held=1)
        for _ in range(2):
            await model.cancel(response_id)
        assert await kept(simulator, response_id) == 200
        for _ in range(2):
            await model.forget(response_id)
        assert await kept(simulator, response_id) == 404
        await model.cancel(response_id)


async def test_what_does_not_run_in_the_background_is_not_kept(simulator: Running) -> None:
    async with opened(simulator.base_url) as model:
        end = end_of(await written(model, request()))
    assert await kept(simulator, end.response_id) == 404


@pytest.mark.parametrize(
    "named", [{"param": "background"}, {"param": "store"}, {"message": "background mode is not for you"}]
)
async def test_a_provider_without_background_is_remembered_and_gone_on_with(named: dict[str, Any]) -> None:
    good = Answer([sse(*EVENTS)])
    async with provider(refusal(400, **named), good, good) as remote, opened(remote.url) as model:
        assert model.runs_in_background(options(reasoning_effort="high"))
        for _ in range(2):
            assert text_of(await written(model, request(is_background=True))) == TEXT
        assert not model.runs_in_background(options(reasoning_effort="high"))
    assert [one.body.get("background") for one in remote.requests] == [True, None, None]
    assert [one.body["store"] for one in remote.requests] == [True, False, False]


@pytest.mark.parametrize(
    ("use", "plain", "searching", "thinking"),
    [("auto", False, True, True), ("on", True, True, True), ("off", False, False, False)],
)
async def test_the_setting_says_what_runs_in_the_background(
    use: str, *, plain: bool, searching: bool, thinking: bool
) -> None:
    async with opened("http://127.0.0.1:1/v1", openai_background=use) as model:
        assert model.runs_in_background(options(reasoning_effort="low")) is plain
        assert model.runs_in_background(options(use_web_search=True)) is searching
        assert model.runs_in_background(options(use_code_interpreter=True)) is searching
        assert model.runs_in_background(options(reasoning_effort="high")) is thinking


async def test_a_deadline_ends_the_reading_on() -> None:
    async with (
        provider(Answer([sse(*EVENTS[:3])], then="cut")) as remote,
        opened(remote.url, openai_retry_delay_seconds=30) as model,
    ):
        began = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable):
            await written(model, request(is_background=True), within_seconds=1)
        assert asyncio.get_running_loop().time() - began < 20
