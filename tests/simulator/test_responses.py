"""POST /v1/responses: the object, the events, and what is refused."""

import re
from typing import Any

import orjson
import pytest
from openai import AsyncOpenAI, AuthenticationError, BadRequestError, NotFoundError

from simulator.server import Running
from tests.simulator.strict import MODEL, RESPONSE, check
from tests.simulator.wire import Wire

TURNS = [
    {"role": "user", "content": "my name is Ana"},
    {"role": "assistant", "content": [{"type": "output_text", "text": "Hello Ana", "annotations": []}]},
    {"role": "user", "content": [{"type": "input_text", "text": "what is my name?"}]},
]
ODD_TEXT = '  naïve\n\tcafé 👩‍👩‍👧 한국어  supercalifragilistic — "quoted" \\ {json}  '


async def test_a_plain_reply_is_a_strictly_valid_completed_response(wire: Wire) -> None:
    reply = await wire.post("responses", model="gpt-6-astra", input="Good day", metadata={"turn": "7"}, temperature=0.2)
    response = check(RESPONSE, reply.content)
    assert response.status == "completed"
    assert response.output_text == 'You said: "Good day". This is the first message that I received.'
    assert (response.metadata, response.temperature) == ({"turn": "7"}, 0.2)
    assert response.completed_at >= response.created_at
    assert reply.headers["x-request-id"].startswith("req_")


async def test_a_stream_follows_the_choreography_of_the_api(wire: Wire) -> None:
    events = await wire.events(model="m", input="Good day")
    types = [event.type for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    head = ["created", "in_progress", "output_item.added", "content_part.added"]
    tail = ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert types[:4] == [f"response.{name}" for name in head]
    assert types[-4:] == [f"response.{name}" for name in tail]
    assert set(types[4:-4]) == {"response.output_text.delta"}
    done = events[-4]
    assert "".join(delta.delta for delta in deltas) == done.text == events[-1].response.output_text
    assert {event.item_id for event in deltas} == {done.item_id} == {events[-1].response.output[0].id}
    assert {event.response.id for event in events if hasattr(event, "response")} == {events[0].response.id}
    assert events[0].response.output == []
    assert events[0].response.usage is None


@pytest.mark.parametrize("text", [ODD_TEXT, "x" * 5000, "a\u0000b", "\u2028line", "1\n2\n\n3"])
async def test_the_deltas_concatenate_to_the_text_whatever_it_holds(wire: Wire, text: str) -> None:
    schema = {"type": "object", "properties": {"echo": {"const": text}}}
    wanted = {"format": {"type": "json_schema", "name": "echo", "schema": schema, "strict": True}}
    events = await wire.events(model="m", input="go", text=wanted)
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert orjson.loads(said) == {"echo": text}
    assert events[-1].response.output_text == said


async def test_a_reasoning_summary_comes_before_the_text_when_asked_for(wire: Wire) -> None:
    asked = {"effort": "high", "summary": "auto"}
    include = ["reasoning.encrypted_content"]
    events = await wire.events(model="m", input="Why is the sky blue", reasoning=asked, include=include)
    steps = [event.type for event in events if "reasoning_summary" in event.type and "delta" not in event.type]
    names = ["reasoning_summary_part.added", "reasoning_summary_text.done", "reasoning_summary_part.done"]
    assert steps == [f"response.{name}" for name in names]
    thought, message = events[-1].response.output
    said = "".join(event.delta for event in events if event.type == "response.reasoning_summary_text.delta")
    assert thought.summary[0].text == said
    assert "Why is the sky blue" in said
    assert thought.encrypted_content
    assert message.type == "message"
    usage = events[-1].response.usage
    assert 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


async def test_reasoning_without_a_summary_is_an_item_without_text(wire: Wire) -> None:
    events = await wire.events(model="m", input="Hi", reasoning={"effort": "low"})
    assert events[-1].response.output[0].summary == []
    assert not [event for event in events if "reasoning_summary" in event.type]


async def test_usage_counts_deltas_and_a_long_repeated_prefix_as_cached(wire: Wire) -> None:
    long_ago = {"role": "user", "content": "word " * 1200}
    events = await wire.events(model="m", input=[long_ago, {"role": "user", "content": "and now"}])
    usage = events[-1].response.usage
    assert usage.output_tokens == sum(event.type == "response.output_text.delta" for event in events)
    assert 1024 <= usage.input_tokens_details.cached_tokens <= usage.input_tokens
    assert usage.input_tokens_details.cached_tokens % 128 == 0


async def test_max_output_tokens_ends_the_response_as_incomplete(wire: Wire) -> None:
    events = await wire.events(model="sim-100-0-0", input="go", max_output_tokens=16)
    response = events[-1].response
    assert events[-1].type == "response.incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output_text == " ".join(f"tok{index}" for index in range(16))
    assert response.output[0].status == "incomplete"
    assert response.usage.output_tokens == 16


async def test_reasoning_spends_the_output_budget(wire: Wire) -> None:
    reply = await wire.post("responses", model="m", input="go", max_output_tokens=16, reasoning={"effort": "high"})
    response = check(RESPONSE, reply.content)
    assert response.status == "incomplete"
    assert [item.type for item in response.output] == ["reasoning"]


async def test_a_continued_response_receives_the_earlier_turn(client: AsyncOpenAI) -> None:
    first = await client.responses.create(model="m", input="my dog is Rex")
    second = await client.responses.create(model="m", input="what is my dog?", previous_response_id=first.id)
    assert second.output_text == "Your dog is Rex."
    with pytest.raises(BadRequestError) as caught:
        await client.responses.create(model="m", input="x", previous_response_id="resp_none")
    assert caught.value.code == "previous_response_not_found"


async def test_a_stored_response_can_be_read_until_it_is_deleted(client: AsyncOpenAI) -> None:
    made = await client.responses.create(model="m", input="keep this")
    assert await client.responses.retrieve(made.id) == made
    await client.responses.delete(made.id)
    with pytest.raises(NotFoundError):
        await client.responses.retrieve(made.id)


async def test_a_response_that_is_not_to_be_stored_cannot_be_read(client: AsyncOpenAI) -> None:
    made = await client.responses.create(model="m", input="forget this", store=False)
    with pytest.raises(NotFoundError):
        await client.responses.retrieve(made.id)


async def test_models_are_listed_strictly(wire: Wire) -> None:
    listed = (await wire.http.get("models")).json()
    assert listed["object"] == "list"
    assert [check(MODEL, orjson.dumps(model)).owned_by for model in listed["data"]]


async def test_a_call_without_a_key_or_with_a_wrong_one_is_refused_as_by_openai(simulator: Running, wire: Wire) -> None:
    reply = await wire.http.post("responses", json={"model": "m", "input": "x"}, headers={"authorization": ""})
    assert reply.status_code == 401
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    async with AsyncOpenAI(api_key="sk-invalid", base_url=simulator.base_url, max_retries=0) as client:
        with pytest.raises(AuthenticationError) as caught:
            await client.responses.create(model="m", input="x")
    assert caught.value.code == "invalid_api_key"


CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "1"}
BAD_BODIES: list[tuple[dict[str, Any], str, str | None]] = [
    ({"input": "x"}, "model", "missing_required_parameter"),
    ({"model": "m"}, "input", "missing_required_parameter"),
    ({"model": "m", "input": "x", "colour": 1}, "colour", "unknown_parameter"),
    ({"model": "m", "input": "x", "stream": "yes"}, "stream", "invalid_value"),
    ({"model": "m", "input": "x", "temperature": 2.5}, "temperature", "invalid_value"),
    ({"model": "m", "input": "x", "max_output_tokens": 15}, "max_output_tokens", "invalid_value"),
    ({"model": "m", "input": "x", "reasoning": {"effort": "huge"}}, "reasoning.effort", "invalid_value"),
    ({"model": "m", "input": [{"role": "robot", "content": "x"}]}, "input[0].role", "invalid_value"),
    ({"model": "m", "input": [{"role": "user", "content": 5}]}, "input[0].content", "invalid_type"),
    (
        {"model": "m", "input": [{"role": "user", "content": [{"type": "text_in"}]}]},
        "input[0].content[0].type",
        "invalid_value",
    ),
    ({"model": "m", "input": [{"type": "mystery"}]}, "input[0].type", "invalid_value"),
    ({"model": "m", "input": [OUTPUT]}, "input", None),
    ({"model": "m", "input": [CALL]}, "input", None),
    ({"model": "m", "input": "x", "tools": [{"type": "function"}]}, "tools[0]", "invalid_value"),
    (
        {"model": "m", "input": "x", "tools": [{"type": "function", "name": "f", "extra": 1}]},
        "tools[0].extra",
        "unknown_parameter",
    ),
    (
        {"model": "m", "input": "x", "text": {"format": {"type": "json_schema", "name": "n"}}},
        "text.format.schema",
        "missing_required_parameter",
    ),
    ({"model": "m", "input": "x", "background": True, "store": False}, "store", "invalid_value"),
    ({"model": "m", "input": "x", "include": ["everything"]}, "include[0]", "invalid_value"),
    ({"model": "m", "input": "x", "tool_choice": "maybe"}, "tool_choice", "invalid_value"),
    ({"model": "m", "input": "x", "tool_choice": {"type": "function", "name": "f", "x": 1}}, "tool_choice", "invalid_value"),
    ({"model": "m", "input": "x", "text": {"format": {"type": "text", "name": "n"}}}, "text.format", "invalid_value"),
    ({"model": "sim-nonsense", "input": "x"}, "model", "invalid_value"),
    ({"model": "sim-999999-0-0", "input": "x"}, "model", "invalid_value"),
]


@pytest.mark.parametrize(("body", "param", "code"), BAD_BODIES)
async def test_a_bad_body_is_a_400_that_names_the_parameter(
    wire: Wire, body: dict[str, Any], param: str, code: str | None
) -> None:
    reply = await wire.http.post("responses", json=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b'{"model": "\xff"}', b'{"model":"m","input":"\\ud800"}'])
async def test_what_is_no_json_object_is_a_400(wire: Wire, body: bytes) -> None:
    reply = await wire.http.post("responses", content=body)
    assert reply.status_code == 400
    assert "error" in reply.json()


async def test_an_unknown_path_and_method_have_the_error_shape_too(wire: Wire) -> None:
    assert (await wire.http.get("nowhere")).json()["error"]["message"] == "Invalid URL (GET /v1/nowhere)"
    assert (await wire.http.put("responses")).status_code == 405


async def test_secrets_of_an_mcp_tool_are_not_echoed(wire: Wire) -> None:
    secrets: dict[str, Any] = {"authorization": "hush", "headers": {"x-key": "hush"}}
    tool = {"type": "mcp", "server_label": "s", "server_url": "https://mcp.example.com", "require_approval": "never"}
    reply = await wire.post("responses", model="m", input="hello", tools=[tool | secrets])
    check(RESPONSE, reply.content)
    assert "hush" not in reply.text


async def test_ids_have_the_prefixes_of_the_api(wire: Wire) -> None:
    events = await wire.events(model="m", input=TURNS, reasoning={"effort": "low", "summary": "auto"})
    response = events[-1].response
    assert re.fullmatch(r"resp_[0-9a-f]{32}", response.id)
    assert [item.id[:3] for item in response.output] == ["rs_", "msg"]
    assert response.output_text == "Your name is Ana."
