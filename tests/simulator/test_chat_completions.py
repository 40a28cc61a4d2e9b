"""POST /v1/chat/completions: the object, the chunks, tools and refusals."""

from typing import Any

import orjson
import pytest

from tests.simulator.strict import CHUNK, COMPLETION, check
from tests.simulator.wire import Wire

PATH = "chat/completions"
ASK = [
    {"role": "user", "content": "my cat is Tom"},
    {"role": "user", "content": [{"type": "text", "text": "what is my cat"}]},
]
ADD_TASK = {
    "type": "function",
    "function": {"name": "add_task", "parameters": {"type": "object", "properties": {"title": {"type": "string"}}}},
}


async def chunks(wire: Wire, **body: Any) -> list[Any]:
    received = await wire.stream(PATH, **body)
    assert received[-1] == (None, "[DONE]")
    return [check(CHUNK, data) for _, data in received[:-1]]


async def test_a_plain_completion_is_strictly_valid(wire: Wire) -> None:
    completion = check(COMPLETION, (await wire.post(PATH, model="m", messages=ASK)).content)
    assert completion.choices[0].message.content == "Your cat is Tom."
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


async def test_chunks_are_strictly_valid_and_concatenate_to_the_text(wire: Wire) -> None:
    received = await chunks(wire, model="m", messages=ASK)
    assert received[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in received) == "Your cat is Tom."
    assert [chunk.choices[0].finish_reason for chunk in received[-2:]] == [None, "stop"]
    assert len({chunk.id for chunk in received}) == 1
    assert all(chunk.usage is None for chunk in received)


async def test_usage_comes_last_when_it_is_asked_for(wire: Wire) -> None:
    received = await chunks(wire, model="sim-7-0-0", messages=ASK, stream_options={"include_usage": True})
    assert received[-1].choices == []
    assert received[-1].usage.completion_tokens == 7
    assert all(chunk.usage is None for chunk in received[:-1])


async def test_a_limit_on_tokens_finishes_by_length(wire: Wire) -> None:
    received = await chunks(wire, model="sim-100-0-0", messages=ASK, max_completion_tokens=3)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in received) == "tok0 tok1 tok2"
    assert received[-1].choices[0].finish_reason == "length"


async def test_reasoning_is_counted_and_not_shown(wire: Wire) -> None:
    reply = await wire.post(PATH, model="m", messages=ASK, reasoning_effort="high")
    usage = check(COMPLETION, reply.content).usage
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens


async def test_a_tool_is_called_plain_and_in_chunks_and_its_result_told(wire: Wire) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "add a task to buy milk"}]
    plain = check(COMPLETION, (await wire.post(PATH, model="m", messages=messages, tools=[ADD_TASK])).content)
    (call,) = plain.choices[0].message.tool_calls
    assert (call.function.name, orjson.loads(call.function.arguments)) == ("add_task", {"title": "buy milk"})
    assert plain.choices[0].finish_reason == "tool_calls"
    received = await chunks(wire, model="m", messages=messages, tools=[ADD_TASK])
    calls = [one for chunk in received for one in chunk.choices[0].delta.tool_calls or []]
    assert calls[0].id
    assert "".join(one.function.arguments for one in calls) == call.function.arguments
    shown = call.model_dump()
    messages += [{"role": "assistant", "content": None, "tool_calls": [shown]}]
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "done"}]
    told = check(COMPLETION, (await wire.post(PATH, model="m", messages=messages, tools=[ADD_TASK])).content)
    assert told.choices[0].message.content == "I called add_task and it returned: done"


async def test_structured_output_satisfies_its_schema(wire: Wire) -> None:
    schema = {"type": "object", "properties": {"decision": {"enum": ["yes", "no"]}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "d", "schema": schema, "strict": True}}
    reply = await wire.post(PATH, model="m", messages=[{"role": "user", "content": "Free at 5?"}], response_format=wanted)
    assert orjson.loads(check(COMPLETION, reply.content).choices[0].message.content) == {"decision": "yes"}
    anything = await wire.post(PATH, model="m", messages=ASK, response_format={"type": "json_object"})
    assert orjson.loads(check(COMPLETION, anything.content).choices[0].message.content) == {"reply": "Your cat is Tom."}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "m", "messages": []}, "messages"),
        ({"model": "m", "messages": ASK, "n": 2}, "n"),
        ({"model": "m", "messages": ASK, "inpt": 2}, "inpt"),
        ({"model": "m", "messages": [{"role": "tool", "tool_call_id": "c", "content": "x"}]}, "input"),
        ({"model": "m", "messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]}, "messages[0].tool_calls[0]"),
    ],
)
async def test_a_bad_body_is_a_400_that_names_the_parameter(wire: Wire, body: dict[str, Any], param: str) -> None:
    reply = await wire.http.post(PATH, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


async def test_images_are_acknowledged(wire: Wire) -> None:
    data = "data:image/png;base64,iVBORw0KGgo="
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in (data, "https://example.com/a.png")]
    messages = [{"role": "user", "content": [{"type": "text", "text": "look"}, *parts]}]
    reply = check(COMPLETION, (await wire.post(PATH, model="m", messages=messages, tools=[ADD_TASK])).content)
    assert "an image of 8 bytes (image/png) and an image at https://example.com/a.png" in reply.choices[0].message.content
