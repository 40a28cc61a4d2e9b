"""A round of the model against the simulator: what is asked of the provider, and what its tools become."""

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from services.chat.model import FunctionSpec, HostedMcpServer
from services.chat.pieces import CallFinished, CallStarted, Cited, CodeFinished, ReasoningDelta
from services.chat.records import Image
from services.runtime.errors import InvalidArgument
from simulator.control import ScriptedAnswer
from simulator.script import ScriptedCall, ScriptedCitation
from simulator.server import Running
from tests.chat.providers import end_of, opened, request, text_of, written

ADD_TASK = FunctionSpec(
    "add_task",
    "Adds a task.",
    {
        "type": "object",
        "properties": {"title": {"type": "string"}},
        "required": ["title"],
        "additionalProperties": False,
    },
)
LIST_TASKS = FunctionSpec(
    "list_tasks", "Lists.", {"type": "object", "properties": {"limit": {"type": "integer", "minimum": 1}}}
)
SERVER = HostedMcpServer("files", "https://mcp.example/", {"Authorization": "Bearer hush"}, ["read_file"], "never")


async def asked(simulator: Running) -> list[dict[str, Any]]:
    return [one.body for one in await simulator.control.requests("responses")]


async def test_plain_text_ends_with_usage_and_the_items(simulator: Running) -> None:
    async with opened(simulator.base_url) as model:
        pieces = await written(model, request("What is my name?"))
    end = end_of(pieces)
    assert end.usage is not None
    assert end.usage.output_tokens > 0
    assert end.incomplete_reason is None
    assert end.calls == ()
    assert end.response_id.startswith("resp_")
    assert [item["type"] for item in end.items] == ["message"]
    assert end.items[0]["content"][0]["text"] == text_of(pieces)


async def test_what_is_asked_is_what_the_request_says_and_nothing_is_kept(simulator: Running) -> None:
    async with opened(simulator.base_url) as model:
        await written(model, request("Hi", max_output_tokens=50, temperature=0.5))
    (body,) = await asked(simulator)
    assert body == {
        "model": "gpt-5-mini",
        "instructions": "Be brief.",
        "max_output_tokens": 50,
        "temperature": 0.5,
        "prompt_cache_key": "c0ffee",
        "safety_identifier": "digest",
        "store": False,
        "stream": True,
        "stream_options": {"include_obfuscation": False},
        "input": [{"role": "user", "content": "Hi"}],
    }


async def test_the_stable_part_stands_first_and_is_the_same_in_every_round(simulator: Running) -> None:
    async with opened(simulator.base_url) as model:
        for text in ("One", "Two"):
            await written(model, request(text, functions=[ADD_TASK, LIST_TASKS], use_web_search=True))
    first, second = (json.dumps(body) for body in await asked(simulator))
    before, _, _ = first.partition('"input"')
    assert second.startswith(before)
    assert list(json.loads(first))[-1] == "input"


async def test_images_go_with_the_last_message_by_url_or_as_data(simulator: Running) -> None:
    data = b"\x89PNG" + b"x" * 2_000_000
    images = [Image("https://pics.example/1.png", None, None), Image(None, "image/png", data)]
    async with opened(simulator.base_url) as model:
        await written(model, request("What is this?", images=images))
    (body,) = await asked(simulator)
    assert body["input"][0]["content"] == [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "detail": "auto", "image_url": "https://pics.example/1.png"},
        {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{base64.b64encode(data).decode()}"},
    ]


async def test_functions_are_called_and_the_next_round_carries_what_came_paired(simulator: Running) -> None:
    call = ScriptedCall(name="add_task", arguments={"title": "Milk"}, call_id="call_1")
    await simulator.control.script(ScriptedAnswer(reasoning="A task.", text="Adding.", function_calls=[call]))
    round_ = request("Add milk", reasoning_effort="low", functions=[ADD_TASK, LIST_TASKS])
    async with opened(simulator.base_url) as model:
        end = end_of(await written(model, round_))
        (made,) = end.calls
        assert (made.call_id, made.name, json.loads(made.arguments)) == ("call_1", "add_task", {"title": "Milk"})
        output = {"type": "function_call_output", "call_id": "call_1", "output": '{"id": 1}'}
        last = end_of(await written(model, replace(round_, items=[*end.items, output])))
    assert last.calls == ()
    first, second = await asked(simulator)
    assert [tool["strict"] for tool in first["tools"]] == [True, False]
    assert first["include"] == ["reasoning.encrypted_content"]
    kinds = [item.get("type", "message") for item in second["input"]]
    assert kinds == ["message", "reasoning", "message", "function_call", "function_call_output"]
    assert second["input"][1]["encrypted_content"]
    assert [item["id"] for item in second["input"][1:4]] == [item["id"] for item in end.items]


async def test_reasoning_that_the_provider_cannot_know_again_is_not_sent_back(simulator: Running) -> None:
    lost = {"id": "rs_1", "type": "reasoning", "summary": []}
    call = {
        "id": "fc_1",
        "type": "function_call",
        "call_id": "c",
        "name": "add_task",
        "arguments": "{}",
        "status": "completed",
    }
    output = {"type": "function_call_output", "call_id": "c", "output": "done"}
    async with opened(simulator.base_url) as model:
        await written(model, request(items=[lost, call, output]))
    (body,) = await asked(simulator)
    assert [item.get("type") for item in body["input"][1:]] == ["function_call", "function_call_output"]
    assert "id" not in body["input"][1]


async def test_reasoning_is_summarized_where_an_effort_is_asked_for(simulator: Running) -> None:
    await simulator.control.script(ScriptedAnswer(reasoning="I weigh both sides.", text="Yes."))
    async with opened(simulator.base_url) as model:
        pieces = await written(model, request("Is it so?", reasoning_effort="medium"))
    assert "".join(piece.text for piece in pieces if isinstance(piece, ReasoningDelta)) == "I weigh both sides."
    assert text_of(pieces) == "Yes."
    (body,) = await asked(simulator)
    assert body["reasoning"] == {"effort": "medium", "summary": "auto"}


async def test_a_web_search_is_told_with_its_sources_and_the_text_cites_them(simulator: Running) -> None:
    async with opened(simulator.base_url) as model:
        pieces = await written(model, request("Search the web for cats", use_web_search=True))
    (started,) = [piece.call for piece in pieces if isinstance(piece, CallStarted)]
    (finished,) = [piece.call for piece in pieces if isinstance(piece, CallFinished)]
    assert (started.id, started.tool, started.status) == (finished.id, "web_search", "running")
    assert (finished.status, json.loads(finished.arguments)["query"]) == ("succeeded", "Search the web for cats")
    cited = [piece.citation for piece in pieces if isinstance(piece, Cited)]
    assert [citation.url for citation in cited] == finished.result.split("\n")
    assert all(text_of(pieces)[citation.start : citation.end] for citation in cited)


async def test_citations_come_where_the_provider_puts_them(simulator: Running) -> None:
    cited = ScriptedCitation(url="https://a.example/", title="A", start=4, end=9)
    await simulator.control.script(ScriptedAnswer(text="The truth is out.", citations=[cited]))
    async with opened(simulator.base_url) as model:
        pieces = await written(model, request("Search", use_web_search=True))
    (citation,) = [piece.citation for piece in pieces if isinstance(piece, Cited)]
    assert (citation.title, text_of(pieces)[citation.start : citation.end]) == ("A", "truth")


async def test_code_is_told_with_its_output(simulator: Running) -> None:
    async with opened(simulator.base_url) as model:
        pieces = await written(model, request("Calculate 6*7", use_code_interpreter=True))
    (run,) = [piece.run for piece in pieces if isinstance(piece, CodeFinished)]
    assert (run.code, run.output, run.status) == ("print(6*7)", "42\n", "succeeded")
    (body,) = await asked(simulator)
    assert body["tools"] == [{"type": "code_interpreter", "container": {"type": "auto"}}]
    assert body["include"] == ["code_interpreter_call.outputs"]


async def test_a_hosted_mcp_server_is_called_by_the_provider(simulator: Running) -> None:
    async with opened(simulator.base_url) as model:
        pieces = await written(model, request("Use read_file on x", hosted_mcp=[SERVER]))
    (finished,) = [piece.call for piece in pieces if isinstance(piece, CallFinished)]
    assert (finished.tool, finished.server_label, finished.status) == ("read_file", "files", "succeeded")
    assert finished.result == "echo: Use read_file on x"
    assert json.loads(finished.arguments) == {"text": "Use read_file on x"}
    (body,) = await asked(simulator)
    assert body["tools"] == [
        {
            "type": "mcp",
            "server_label": "files",
            "server_url": "https://mcp.example/",
            "require_approval": "never",
            "headers": {"Authorization": "Bearer hush"},
            "allowed_tools": ["read_file"],
        }
    ]
    assert "hush" not in repr(SERVER)


async def test_a_call_that_needs_approval_says_so(simulator: Running) -> None:
    careful = replace(SERVER, approval="always")
    async with opened(simulator.base_url) as model:
        pieces = await written(model, request("Use read_file on x", hosted_mcp=[careful]))
    calls = [piece.call for piece in pieces if isinstance(piece, CallStarted | CallFinished)]
    assert [call.status for call in calls] == ["running", "approval_required"]
    assert {call.tool for call in calls} == {"read_file"}


async def test_structured_output_follows_the_schema(simulator: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"decision": {"type": "string", "enum": ["yes", "no"]}},
        "required": ["decision"],
        "additionalProperties": False,
    }
    async with opened(simulator.base_url) as model:
        pieces = await written(model, request("Shall we?", response_schema=schema))
    assert json.loads(text_of(pieces))["decision"] in ("yes", "no")
    (body,) = await asked(simulator)
    assert body["text"] == {"format": {"type": "json_schema", "name": "reply", "schema": schema, "strict": True}}


async def test_a_reply_at_its_token_limit_is_incomplete_and_makes_no_call(simulator: Running) -> None:
    async with opened(simulator.base_url) as model:
        end = end_of(await written(model, request("Count", model="sim-40-0-0", max_output_tokens=16)))
    assert end.incomplete_reason == "MAX_OUTPUT_TOKENS"
    assert end.calls == ()


async def test_a_small_job_is_answered_as_a_whole(simulator: Running) -> None:
    await simulator.control.script(ScriptedAnswer(text="A fine title"))
    async with opened(simulator.base_url) as model:
        title, usage = await model.complete(model="gpt-5-mini", instructions="Name it.", text="Talk", max_output_tokens=20)
        assert title == "A fine title"
        assert usage is not None
        assert usage.output_tokens > 0
        with pytest.raises(InvalidArgument):
            await model.complete(model="sim-bad-name", instructions="Name it.", text="Talk", max_output_tokens=20)


async def test_a_refused_parameter_of_the_user_is_an_error_that_names_it(simulator: Running) -> None:
    async with opened(simulator.base_url) as model:
        with pytest.raises(InvalidArgument) as refused:
            await written(model, request("Hi", response_schema={"type": "object"}, user_digest="x" * 200))
    assert refused.value.metadata["parameter"] == "safety_identifier"
