"""Every fault, as the openai SDK sees it on a real socket."""

import json
from typing import Any

import httpx2
import pytest
from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
    InternalServerError,
    RateLimitError,
)

from simulator.control import Control, Fault, ScriptedAnswer
from tests.simulator.strict import RESPONSE, check
from tests.simulator.wire import Wire

PREFIX = "sim-10-0-0"


class Reading:
    """What one reader got of a stream: the deltas, the types, and the error that ended it."""

    def __init__(self) -> None:
        self.deltas: list[str] = []
        self.types: list[str] = []
        self.error: Exception | None = None


async def read(client: AsyncOpenAI, model: str, **options: Any) -> Reading:
    reading = Reading()
    try:
        async for event in await client.responses.create(model=model, input="go", stream=True, **options):
            reading.types.append(event.type)
            if event.type == "response.output_text.delta":
                reading.deltas.append(event.delta)
    except (APIError, json.JSONDecodeError) as error:
        reading.error = error
    return reading


def tokens(count: int) -> list[str]:
    return [f" tok{index}" if index else "tok0" for index in range(count)]


async def test_a_cut_is_a_connection_error_after_exactly_the_tokens_asked_for(client: AsyncOpenAI) -> None:
    reading = await read(client, f"{PREFIX}-cut-4")
    assert reading.deltas == tokens(4)
    assert isinstance(reading.error, APIConnectionError)
    assert not isinstance(reading.error, APITimeoutError)


async def test_a_stall_is_a_timeout_with_the_socket_open(client: AsyncOpenAI) -> None:
    reading = await read(client.with_options(timeout=0.6), f"{PREFIX}-stall-4")
    assert reading.deltas == tokens(4)
    assert isinstance(reading.error, APITimeoutError)


async def test_malformed_json_is_a_decode_error(client: AsyncOpenAI) -> None:
    reading = await read(client, f"{PREFIX}-malformed-4")
    assert reading.deltas == tokens(4)
    assert isinstance(reading.error, json.JSONDecodeError)


async def test_a_clean_end_without_a_terminal_event_is_silent(client: AsyncOpenAI) -> None:
    reading = await read(client, f"{PREFIX}-end-4")
    assert reading.deltas == tokens(4)
    assert reading.error is None
    assert reading.types[-1] == "response.output_text.delta"


@pytest.mark.parametrize("ending", ["error", "failed", "incomplete"])
async def test_a_bad_ending_told_by_an_event_is_yielded_and_not_raised(client: AsyncOpenAI, ending: str) -> None:
    reading = await read(client, f"{PREFIX}-{ending}-4")
    assert reading.deltas == tokens(4)
    assert reading.error is None
    assert reading.types[-1] == ("error" if ending == "error" else f"response.{ending}")


@pytest.mark.parametrize("fault", ["cut", "malformed", "end", "error", "failed", "incomplete"])
@pytest.mark.parametrize("after", [0, 99])
async def test_a_fault_outside_the_reply_comes_before_its_first_token_or_instead_of_its_end(
    client: AsyncOpenAI, fault: str, after: int
) -> None:
    reading = await read(client, f"{PREFIX}-{fault}-{after}")
    assert len(reading.deltas) == min(after, 10)
    assert "response.completed" not in reading.types


@pytest.mark.parametrize("ending", ["error", "failed", "incomplete"])
async def test_bad_endings_are_strictly_valid(wire: Wire, ending: str) -> None:
    last = (await wire.events(model=f"{PREFIX}-{ending}-4", input="go"))[-1]
    if ending == "error":
        assert (last.code, bool(last.message)) == ("server_error", True)
    else:
        assert last.response.status == ending
    if ending == "failed":
        assert last.response.error.code == "server_error"


async def test_a_429_carries_retry_after(client: AsyncOpenAI) -> None:
    with pytest.raises(RateLimitError) as caught:
        await client.responses.create(model="sim-status-429-7", input="go")
    assert caught.value.response.headers["retry-after"] == "7"
    assert caught.value.code == "rate_limit_exceeded"


@pytest.mark.parametrize("status", [500, 503])
async def test_a_5xx_is_an_internal_server_error(client: AsyncOpenAI, status: int) -> None:
    with pytest.raises(InternalServerError) as caught:
        await client.responses.create(model=f"sim-status-{status}", input="go", stream=True)
    assert caught.value.status_code == status


async def test_the_header_asks_for_a_fault_too(client: AsyncOpenAI) -> None:
    with pytest.raises(APIStatusError) as caught:
        await client.responses.create(model="gpt", input="go", extra_headers={"x-simulator": "sim-status-418"})
    assert caught.value.status_code == 418


async def test_a_fault_for_n_requests_heals_after_them(client: AsyncOpenAI, control: Control) -> None:
    await control.script(ScriptedAnswer(times=2, fault=Fault(kind="status", status=503, headers={"x-why": "test"})))
    for _ in range(2):
        with pytest.raises(InternalServerError) as caught:
            await client.responses.create(model="m", input="go")
        assert caught.value.response.headers["x-why"] == "test"
    assert (await client.responses.create(model="m", input="go")).status == "completed"


async def test_without_a_stream_a_cut_breaks_the_body(client: AsyncOpenAI) -> None:
    with pytest.raises(APIConnectionError):
        await client.responses.create(model=f"{PREFIX}-cut-4", input="go")


async def test_without_a_stream_a_stall_is_a_timeout(client: AsyncOpenAI) -> None:
    with pytest.raises(APITimeoutError):
        await client.with_options(timeout=0.6).responses.create(model=f"{PREFIX}-stall", input="go")


@pytest.mark.parametrize("fault", ["malformed", "end"])
async def test_without_a_stream_the_body_is_no_json(client: AsyncOpenAI, fault: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        await client.responses.create(model=f"{PREFIX}-{fault}", input="go")


async def test_without_a_stream_an_error_is_a_500_and_a_failed_response_is_one(client: AsyncOpenAI, wire: Wire) -> None:
    with pytest.raises(InternalServerError):
        await client.responses.create(model=f"{PREFIX}-error", input="go")
    reply = await wire.post("responses", model=f"{PREFIX}-failed-3", input="go")
    response = check(RESPONSE, reply.content)
    assert (response.status, response.output_text) == ("failed", "tok0 tok1 tok2")


async def test_a_reader_that_leaves_ends_the_run(client: AsyncOpenAI, control: Control) -> None:
    stream = await client.responses.create(model="sim-10000-5-0", input="go", stream=True)
    await anext(aiter(stream))
    assert (await control.status()).running == 1
    await stream.close()
    await control.wait(running=0)
    assert [request.outcome for request in await control.requests()] == ["disconnected"]


async def test_chat_and_embeddings_misbehave_too(client: AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": "go"}]
    with pytest.raises(APIConnectionError):
        async for _ in await client.chat.completions.create(model=f"{PREFIX}-cut-2", messages=messages, stream=True):
            pass
    with pytest.raises(APIError, match="server had an error"):
        async for _ in await client.chat.completions.create(model=f"{PREFIX}-error-2", messages=messages, stream=True):
            pass
    with pytest.raises(RateLimitError):
        await client.embeddings.create(model="sim-status-429", input="go")
    with pytest.raises(APIConnectionError):
        await client.embeddings.create(model="sim-cut", input="go")


async def test_a_cut_reaches_a_plain_client_as_an_incomplete_body(wire: Wire) -> None:
    with pytest.raises(httpx2.RemoteProtocolError):
        await wire.stream("responses", model=f"{PREFIX}-cut-2", input="go")
