"""What usage can be relied on for: the input's bound, the output's limit to the token, on both endpoints."""

from typing import Any

import orjson
import pytest

from tests.simulator.strict import COMPLETION, RESPONSE, check
from tests.simulator.wire import Wire

SEARCH = {"type": "web_search"}
ADD = {
    "type": "function",
    "name": "add_task",
    "description": "Adds a task.",
    "strict": True,
    "parameters": {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]},
}
INPUTS = ["hello", "x" * 5000, "äöü ✓ 🚀" * 100, "add a task to " + "buy milk " * 50, " \n\t" * 300, "a.b,c;" * 200]


@pytest.mark.parametrize("text", INPUTS, ids=range(len(INPUTS)))
async def test_input_tokens_are_at_most_the_bytes_of_the_request(wire: Wire, text: str) -> None:
    body: dict[str, Any] = {"model": "m", "input": text, "instructions": "Be brief.", "tools": [ADD, SEARCH]}
    reply = check(RESPONSE, (await wire.post("responses", **body)).content)
    assert 0 < reply.usage.input_tokens <= len(orjson.dumps(body))
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    asked: dict[str, Any] = {"model": "m", "messages": chat}
    completion = check(COMPLETION, (await wire.post("chat/completions", **asked)).content)
    assert 0 < completion.usage.prompt_tokens <= len(orjson.dumps(asked))


@pytest.mark.parametrize("limit", [16, 17, 40, 64])
@pytest.mark.parametrize(
    "body",
    [
        {"model": "sim-200-0-0", "input": "go"},
        {"model": "m", "input": "go " * 200, "reasoning": {"effort": "high", "summary": "auto"}},
        {"model": "m", "input": "go " * 200, "reasoning": {"effort": "max"}},
        {"model": "m", "input": "add a task to " + "buy milk " * 30, "tools": [ADD]},
        {"model": "m", "input": "search the web for " + "cats " * 60, "tools": [SEARCH]},
    ],
    ids=["text", "summary", "reasoning", "call", "search"],
)
async def test_the_limit_is_met_to_the_token_and_said(wire: Wire, body: dict[str, Any], limit: int) -> None:
    whole = check(RESPONSE, (await wire.post("responses", **body)).content)
    cut = check(RESPONSE, (await wire.post("responses", **body, max_output_tokens=limit)).content)
    if whole.usage.output_tokens > limit:
        assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert cut.usage.output_tokens == limit
    else:
        assert (cut.status, cut.usage.output_tokens) == ("completed", whole.usage.output_tokens)
    exact = check(RESPONSE, (await wire.post("responses", **body, max_output_tokens=whole.usage.output_tokens)).content)
    assert exact.status == "completed"


@pytest.mark.parametrize(("limit", "effort"), [(10, "none"), (16, "max"), (33, "high")])
async def test_a_completion_never_costs_more_than_its_limit(wire: Wire, limit: int, effort: str) -> None:
    messages = [{"role": "user", "content": "go " * 200}]
    body = {"model": "m", "messages": messages, "reasoning_effort": effort, "max_completion_tokens": limit}
    completion = check(COMPLETION, (await wire.post("chat/completions", **body)).content)
    assert completion.usage.completion_tokens == limit
    assert completion.choices[0].finish_reason == "length"
