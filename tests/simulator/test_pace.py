"""The pace of tokens: numbered tokens, first-token latency, intervals, and many streams at once."""

import asyncio
import time

from openai import AsyncOpenAI

from simulator.control import Control, Pace, ScriptedAnswer


async def arrivals(client: AsyncOpenAI, model: str) -> tuple[list[str], list[float]]:
    """Each delta and the seconds since the call at which it came."""
    start, deltas, times = time.monotonic(), [], []
    async for event in await client.responses.create(model=model, input="go", stream=True):
        if event.type == "response.output_text.delta":
            deltas.append(event.delta)
            times.append(time.monotonic() - start)
    return deltas, times


async def test_numbered_tokens_come_at_the_pace_that_the_model_name_says(client: AsyncOpenAI) -> None:
    deltas, times = await arrivals(client, "sim-20-20-200")
    assert deltas == ["tok0", *(f" tok{index}" for index in range(1, 20))]
    assert times[0] < 2
    assert times[-1] < 5
    assert all(at >= 0.2 + index * 0.02 - 0.001 for index, at in enumerate(times))


async def test_without_a_pace_nothing_waits(client: AsyncOpenAI) -> None:
    deltas, times = await arrivals(client, "sim-2000-0-0")
    assert len(deltas) == 2000
    assert times[-1] < 2


async def test_a_reply_without_a_stream_takes_as_long_as_its_tokens(client: AsyncOpenAI) -> None:
    start = time.monotonic()
    made = await client.responses.create(model="sim-5-50-100", input="go")
    assert time.monotonic() - start >= 0.1 + 4 * 0.05
    assert made.output_text == "tok0 tok1 tok2 tok3 tok4"


async def test_streams_at_once_lose_double_and_disorder_nothing(client: AsyncOpenAI) -> None:
    runs = await asyncio.gather(*(arrivals(client, "sim-50-5-20") for _ in range(40)))
    wanted = ["tok0", *(f" tok{index}" for index in range(1, 50))]
    assert all(deltas == wanted for deltas, _ in runs)


async def test_a_script_sets_the_pace_of_any_model(client: AsyncOpenAI, control: Control) -> None:
    await control.script(ScriptedAnswer(text="one two", pace=Pace(first_token_ms=150)))
    _, times = await arrivals(client, "gpt")
    assert times[0] >= 0.15


async def test_embeddings_wait_for_their_first_token_time(client: AsyncOpenAI) -> None:
    start = time.monotonic()
    await client.embeddings.create(model="sim-1-0-100", input="go")
    assert time.monotonic() - start >= 0.1
