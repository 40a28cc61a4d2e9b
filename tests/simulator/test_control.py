"""The control door: scripted answers, the journal, holding and releasing, and fakes that complain."""

import asyncio
import time

import httpx2
import pytest
from openai import AsyncOpenAI, BadRequestError, RateLimitError

from simulator.control import (
    Control,
    ControlError,
    Fault,
    Match,
    ScriptedAnswer,
    ScriptedCall,
    ScriptedCitation,
)
from simulator.server import Running, running
from tests.simulator.wire import Wire


async def test_answers_are_given_in_order_and_then_the_rules_answer(client: AsyncOpenAI, control: Control) -> None:
    await control.script(ScriptedAnswer(text="one"), ScriptedAnswer(text="two", times=2))
    texts = [(await client.responses.create(model="m", input="Hey you")).output_text for _ in range(4)]
    assert texts[:3] == ["one", "two", "two"]
    assert "Hey you" in texts[3]


async def test_deltas_are_sent_exactly_as_scripted(wire: Wire, control: Control) -> None:
    deltas = ["Hel", "lo ", "\n", "【cite", "†1】"]
    citation = ScriptedCitation(url="https://a.example", title="A", start=7, end=13)
    await control.script(ScriptedAnswer(deltas=deltas, reasoning="Let me think.", citations=[citation]))
    events = await wire.events(model="m", input="go")
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == deltas
    assert events[-1].response.output[0].summary[0].text == "Let me think."
    assert events[-1].response.output[1].content[0].annotations[0].url == "https://a.example"


async def test_function_calls_are_made_as_scripted_even_with_broken_arguments(wire: Wire, control: Control) -> None:
    calls = [ScriptedCall(name="f", arguments={"a": 1}, call_id="c1"), ScriptedCall(name="g", arguments='{"a": ')]
    await control.script(ScriptedAnswer(text="Wait.", function_calls=calls))
    said, first, second = (await wire.events(model="m", input="go"))[-1].response.output
    assert said.content[0].text == "Wait."
    assert (first.call_id, first.arguments, second.arguments) == ("c1", '{"a":1}', '{"a": ')


async def test_an_answer_waits_for_the_request_it_matches(client: AsyncOpenAI, control: Control) -> None:
    await control.script(
        ScriptedAnswer(match=Match(text="WEATHER"), text="sunny"),
        ScriptedAnswer(match=Match(model="other"), text="other model"),
        ScriptedAnswer(match=Match(endpoint="chat.completions"), text="chat"),
    )
    await client.embeddings.create(model="m", input="weather")
    assert "hello" in (await client.responses.create(model="m", input="hello")).output_text
    assert (await client.responses.create(model="other", input="hello")).output_text == "other model"
    assert (await client.responses.create(model="m", input="the weather?")).output_text == "sunny"
    made = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
    assert made.choices[0].message.content == "chat"


async def test_the_journal_shows_what_the_model_received(client: AsyncOpenAI, control: Control) -> None:
    await client.responses.create(model="m", input="first", extra_headers={"x-request-id": "r1"})
    await client.embeddings.create(model="m", input="second")
    with pytest.raises(BadRequestError):
        await client.responses.create(model="m", input="third", temperature=9)
    requests = await control.requests()
    assert [(one.number, one.endpoint, one.outcome) for one in requests] == [
        (1, "responses", "completed"),
        (2, "embeddings", "completed"),
        (3, "responses", "refused"),
    ]
    assert requests[0].body == {"model": "m", "input": "first"}
    assert requests[0].headers["x-request-id"] == "r1"
    assert "authorization" not in requests[0].headers
    assert [one.number for one in await control.requests("embeddings")] == [2]


async def test_an_unconsumed_answer_fails_the_verification(simulator: Running, client: AsyncOpenAI) -> None:
    control = simulator.control
    await control.reset()
    await control.script(ScriptedAnswer(text="asked twice", times=2))
    await client.responses.create(model="m", input="go")
    assert [answer.times for answer in (await control.status()).unconsumed] == [1]
    with pytest.raises(AssertionError, match="asked twice"):
        await control.verify_consumed()
    await control.reset()
    await control.verify_consumed()


async def test_a_request_that_an_exhaustive_script_does_not_foresee_fails_too(
    simulator: Running, client: AsyncOpenAI
) -> None:
    control = simulator.control
    await control.reset()
    await control.script(ScriptedAnswer(text="only this"), exhaustive=True)
    await client.responses.create(model="m", input="go")
    with pytest.raises(BadRequestError) as caught:
        await client.responses.create(model="m", input="go")
    assert caught.value.code == "no_scripted_answer"
    with pytest.raises(AssertionError, match="numbers \\[2\\]"):
        await control.verify_consumed()
    await control.reset()
    assert (await client.responses.create(model="m", input="go")).status == "completed"


async def test_a_held_answer_goes_on_when_it_is_released(client: AsyncOpenAI, control: Control) -> None:
    await control.script(ScriptedAnswer(deltas=["a", "b", "c"], hold_after_tokens=1))
    reading = asyncio.create_task(client.responses.create(model="m", input="go"))
    await control.wait(held=1)
    assert not reading.done()
    assert await control.release() == 1
    assert (await reading).output_text == "abc"


async def test_a_fault_alone_leaves_the_words_to_the_rules(client: AsyncOpenAI, control: Control) -> None:
    await control.script(ScriptedAnswer(fault=Fault(kind="incomplete", after_tokens=2)))
    made = await client.responses.create(model="m", input="Tea")
    assert (made.status, made.output_text) == ("incomplete", "You said")


@pytest.mark.parametrize(
    "body",
    [
        {"answers": [{"txt": "x"}]},
        {"answers": [{"text": "x", "deltas": ["x"]}]},
        {"answers": [{"fault": {"kind": "explode"}}]},
        {"answers": [{"fault": {"kind": "cut", "status": 500}}]},
        {"answers": [{"fault": {"kind": "failed", "code": "nonsense"}}]},
        {"answers": [{"times": 0}]},
        {},
    ],
)
async def test_a_bad_script_is_refused(wire: Wire, body: dict[str, object]) -> None:
    root = str(wire.http.base_url).removesuffix("/v1/")
    assert (await wire.http.post(f"{root}/_control/script", json=body)).status_code == 400


async def test_the_door_is_shut_unless_it_is_asked_for() -> None:
    async with running(control=False) as started, httpx2.AsyncClient(trust_env=False) as http:
        with pytest.raises(ControlError, match="404"):
            await started.control.status()
        assert (await http.get(f"{started.base_url}/models")).status_code == 401


async def test_an_answer_for_a_title_is_for_nothing_else(client: AsyncOpenAI, control: Control) -> None:
    await control.script(
        ScriptedAnswer(text="the turn"),
        ScriptedAnswer(match=Match(asks_title=True), text="the title"),
        exhaustive=True,
    )
    asked = "Write a title for this conversation."
    assert (await client.responses.create(model="m", input="hi", instructions=asked)).output_text == "the title"
    assert (await client.responses.create(model="m", input="hello", instructions=asked)).output_text == "Hello"
    assert (await client.responses.create(model="m", input="hi")).output_text == "the turn"
    assert len(await control.requests("responses")) == 1
    assert len(await control.requests("responses", with_titles=True)) == 3


async def test_a_refusal_for_some_time_heals(client: AsyncOpenAI, control: Control) -> None:
    fault = Fault(kind="status", status=429, retry_after_seconds=1)
    await control.script(ScriptedAnswer(fault=fault, for_seconds=0.3))
    began = time.monotonic()
    waits: list[str] = []
    async with asyncio.timeout(3):
        while True:
            try:
                await client.responses.create(model="m", input="hi")
                break
            except RateLimitError as error:
                waits = [*waits, error.response.headers["retry-after"]]
                await asyncio.sleep(0.05)
    assert len(waits) > 1
    assert set(waits) == {"1"}
    assert time.monotonic() - began > 0.3


async def test_a_refusal_for_some_time_that_nobody_met_is_unconsumed(control: Control) -> None:
    await control.script(ScriptedAnswer(fault=Fault(kind="status", status=429), for_seconds=5))
    with pytest.raises(AssertionError, match="for_seconds"):
        await control.verify_consumed()
    await control.reset()
