"""Servers without the Responses API: the same pieces out of Chat Completions, and items of earlier rounds into it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from services.chat.model import FunctionSpec, HostedMcpServer
from services.chat.model.completion_stream import CompletionStream
from services.chat.options import McpServerChoice
from services.chat.pieces import Cited, FunctionCall, ReasoningDelta
from services.chat.records import Citation, ContextMessage, Image, Usage
from services.runtime.errors import InvalidArgument, ResourceExhausted, ServiceError, Unavailable
from simulator.control import ScriptedAnswer
from simulator.script import ScriptedCall
from simulator.server import Running
from tests.chat.providers import Answer, end_of, opened, options, provider, request, text_of, written, written_until_it_fails

ADD_TASK = FunctionSpec("add_task", "Adds a task.", {"type": "object", "properties": {"title": {"type": "string"}}})
CHAT = {"openai_api": "chat_completions"}


def chunk(delta: Any = None, *, finish: str | None = None, **rest: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({"id": "chatcmpl-1", "choices": choices, **rest}, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}


async def asked(simulator: Running) -> list[dict[str, Any]]:
    return [one.body for one in await simulator.control.requests("chat.completions")]


def read(*chunks: bytes) -> list[Any]:
    stream = CompletionStream("m")
    pieces = [piece for one in chunks for piece in stream.read(one)]
    assert stream.error is None
    return pieces


async def test_text_comes_with_its_end_and_its_usage(simulator: Running) -> None:
    async with opened(simulator.base_url, **CHAT) as model:
        pieces = await written(model, request("Count", model="sim-20-0-0", max_output_tokens=100, temperature=0.5))
    assert text_of(pieces).split() == [f"tok{number}" for number in range(20)]
    end = end_of(pieces)
    assert end.usage is not None
    assert end.usage.output_tokens == 20
    assert end.incomplete_reason is None
    (body,) = await asked(simulator)
    assert body == {
        "model": "sim-20-0-0",
        "max_tokens": 100,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count"}],
    }


async def test_functions_are_called_and_the_next_round_carries_their_results(simulator: Running) -> None:
    calls = [ScriptedCall(name="add_task", arguments={"title": one}, call_id=f"call_{one}") for one in ("a", "b")]
    await simulator.control.script(ScriptedAnswer(text="Adding.", function_calls=calls))
    round_ = request("Add a and b", functions=[ADD_TASK])
    async with opened(simulator.base_url, **CHAT) as model:
        end = end_of(await written(model, round_))
        made = [(call.call_id, call.name, json.loads(call.arguments)) for call in end.calls]
        assert made == [("call_a", "add_task", {"title": "a"}), ("call_b", "add_task", {"title": "b"})]
        outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": "done"} for call in end.calls]
        await written(model, replace(round_, items=[*end.items, *outputs]))
    _, second = await asked(simulator)
    assistant, *results = second["messages"][2:]
    assert (assistant["role"], assistant["content"]) == ("assistant", "Adding.")
    assert [call["id"] for call in assistant["tool_calls"]] == ["call_a", "call_b"]
    assert results == [{"role": "tool", "tool_call_id": f"call_{one}", "content": "done"} for one in ("a", "b")]
    assert second["tools"][0]["function"]["name"] == "add_task"


async def test_images_and_schemas_are_told_in_the_words_of_this_api(simulator: Running) -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    images = [Image("https://pics.example/1.png", None, None), Image(None, "image/png", b"x")]
    async with opened(simulator.base_url, **CHAT) as model:
        pieces = await written(model, request("What is it?", images=images, response_schema=schema))
    assert "answer" in json.loads(text_of(pieces))
    (body,) = await asked(simulator)
    assert [part["type"] for part in body["messages"][1]["content"]] == ["text", "image_url", "image_url"]
    assert body["messages"][1]["content"][2]["image_url"] == {"url": "data:image/png;base64,eA=="}
    assert body["response_format"]["json_schema"] == {"name": "reply", "schema": schema, "strict": False}


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("use_web_search", {"use_web_search": True}),
        ("use_code_interpreter", {"use_code_interpreter": True}),
        ("mcp_servers", {"hosted_mcp": [HostedMcpServer("a", "https://a.example/", {}, [], "never")]}),
    ],
)
async def test_what_only_the_responses_api_can_do_is_refused_by_the_name_of_its_field(
    simulator: Running, field: str, changed: dict[str, Any]
) -> None:
    async with opened(simulator.base_url, **CHAT) as model:
        with pytest.raises(InvalidArgument) as refused:
            await written(model, request(**changed))
    assert refused.value.metadata == {"parameter": field, "model": "gpt-5-mini"}
    assert field in refused.value.message
    assert await asked(simulator) == []


async def test_nothing_runs_in_the_background_and_there_is_nothing_to_end_or_forget(simulator: Running) -> None:
    servers = [McpServerChoice("a", "https://a.example/", {}, [], "never")]
    async with opened(simulator.base_url, **CHAT, openai_background="on") as model:
        assert not model.runs_in_background(options(reasoning_effort="high", mcp_servers=servers))
        pieces = await written(model, request(is_background=True))
        await model.cancel("resp_1")
        await model.forget("resp_1")
    assert end_of(pieces).usage is not None


@pytest.mark.parametrize(("finish", "reason"), [("length", "MAX_OUTPUT_TOKENS"), ("content_filter", "CONTENT_FILTER")])
def test_an_early_finish_is_an_incomplete_reply_without_calls(finish: str, reason: str) -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a'}}
    end = end_of(read(chunk({"content": "Half", "tool_calls": [call]}), chunk({}, finish=finish), DONE))
    assert (end.incomplete_reason, list(end.calls)) == (reason, [])


def test_every_split_of_the_bytes_gives_the_same_pieces() -> None:
    stream = b"".join(
        [
            chunk({"role": "assistant", "content": ""}),
            chunk({"reasoning_content": "Hm, 👋🏽."}),
            chunk({"content": "Grüß\ue200ci"}),
            chunk({"content": "te\ue201 dich\x00."}),
            chunk({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": ""}}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"ä":'}}]}),
            chunk({"tool_calls": [{"index": 1, "function": {"name": "g", "arguments": ""}}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}),
            chunk({}, finish="tool_calls"),
            chunk(usage=USAGE),
            DONE,
        ]
    )

    def summary(pieces: Sequence[Any]) -> Any:
        thought = "".join(piece.text for piece in pieces if isinstance(piece, ReasoningDelta))
        return text_of(pieces), thought, end_of(pieces)

    text, thought, end = summary(read(stream))
    assert (text, thought) == ("Grüß dich.", "Hm, 👋🏽.")
    assert end.calls == [FunctionCall("c1", "f", '{"ä":1}'), FunctionCall("call_chatcmpl-1_1", "g", "{}")]
    assert end.usage == Usage(7, 2, 3, 0)
    for at in range(1, len(stream)):
        assert summary(read(stream[:at], stream[at:])) == (text, thought, end)


def test_sources_are_cited() -> None:
    cited = {
        "type": "url_citation",
        "url_citation": {"url": "https://a.example/", "title": "A", "start_index": 0, "end_index": 3},
    }
    pieces = read(chunk({"content": "Yes."}), chunk({"annotations": [cited]}), chunk({}, finish="stop"), DONE)
    assert Cited(Citation("https://a.example/", "A", 0, 3)) in pieces


def test_a_server_that_ends_without_the_marker_is_understood() -> None:
    assert text_of(read(chunk({"content": "Yes."}, finish="stop"), b"")) == "Yes."


BROKEN = {
    "no end": [chunk({"content": "Half"})],
    "an end without a finish reason": [chunk({"content": "Half"}), DONE],
    "half an event": [chunk({"content": "Half"}), chunk({"content": "x"})[:-9]],
    "no json": [chunk({"content": "Half"}), b"data: {oops\n\n"],
    "another shape": [chunk({"content": "Half"}), b'data: {"choices": 7}\n\n'],
    "no text in a delta": [chunk({"content": "Half"}), chunk({"content": 7}, finish="stop"), DONE],
    "an error": [chunk({"content": "Half"}), b'data: {"error": {"code": "server_error", "message": "x"}}\n\n'],
    "more calls than can be made": [
        chunk({"content": "Half"}),
        *[chunk({"tool_calls": [{"index": at, "function": {"name": "f"}}]}) for at in range(200)],
    ],
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_what_is_broken_is_never_a_short_answer(broken: str) -> None:
    async with provider(Answer(BROKEN[broken])) as remote, opened(remote.url, **CHAT) as model:
        told, error = await written_until_it_fails(model, request())
    assert isinstance(error, Unavailable)
    assert told == ["Half"]


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("status-429-60", ResourceExhausted, 0),
        ("status-500", Unavailable, 0),
        ("cut-4", Unavailable, 4),
        ("end-4", Unavailable, 4),
        ("malformed-4", Unavailable, 4),
        ("error-4", Unavailable, 4),
        ("stall-4", ServiceError, 4),
    ],
)
async def test_a_failing_server_fails_the_round_and_its_text_was_told(
    simulator: Running, fault: str, error: type[ServiceError], words: int
) -> None:
    async with opened(simulator.base_url, **CHAT, openai_timeout_seconds=0.3) as model:
        asked = request("Count", model=f"sim-9-0-0-{fault}")
        said, failure = await written_until_it_fails(model, asked, within_seconds=5)
    assert isinstance(failure, error)
    assert len(text_of(said).split()) == words


async def test_earlier_messages_keep_their_roles_and_no_system_message_follows_the_first(simulator: Running) -> None:
    said = [
        ContextMessage(sequence=at, role=role, text=role, revision=1)
        for at, role in enumerate(("user", "assistant", "developer", "user"))
    ]
    async with opened(simulator.base_url, **CHAT) as model:
        await written(model, request(messages=said))
    (body,) = await asked(simulator)
    told = [(one["role"], one["content"]) for one in body["messages"][1:]]
    assert body["messages"][0]["role"] == "system"
    assert told == [("user", "user"), ("assistant", "assistant"), ("user", "developer\n\nuser")]


async def test_a_small_job_is_answered_as_a_whole(simulator: Running) -> None:
    await simulator.control.script(ScriptedAnswer(text="A fine title"))
    async with opened(simulator.base_url, **CHAT) as model:
        title, usage = await model.complete(model="m", instructions="Name it.", text="Talk", max_output_tokens=20)
    assert title == "A fine title"
    assert usage is not None
