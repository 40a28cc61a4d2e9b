"""What a provider refuses or limits: waited for, done without, or an error that names it."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.chat.model import HostedMcpServer
from services.chat.pieces import CallFinished, CallStarted, Piece, ReasoningDelta, RoundEnd
from services.runtime.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, ServiceError, Unavailable
from services.runtime.openai import stated_wait_seconds
from tests.chat.providers import (
    EVENT_STREAM,
    Answer,
    completed,
    created,
    delta,
    in_seconds,
    message,
    opened,
    provider,
    refusal,
    request,
    sse,
    text_of,
    written,
    written_until_it_fails,
)
from tests.work import PATIENCE_SECONDS

GOOD = Answer([sse(created(), delta("At last."), completed(message("At last.")))])
FUNCTION_CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "done"}


def limited(wait: str, **headers: str) -> Answer:
    return refusal(429, headers={"retry-after": wait, **headers}, code="rate_limit_exceeded")


async def test_a_stated_limit_is_waited_for_as_often_as_the_deadline_allows() -> None:
    limits = [limited("60", **{"retry-after-ms": "100"})] * 6
    async with provider(*limits, GOOD) as remote, opened(remote.url, openai_max_retries=0) as model:
        began = time.monotonic()
        assert text_of(await written(model, request())) == "At last."
    assert 6 * 0.1 <= time.monotonic() - began < PATIENCE_SECONDS


async def test_a_limit_that_outlasts_the_deadline_is_told_with_its_wait_and_not_waited_for() -> None:
    async with provider(limited("1"), limited("300")) as remote, opened(remote.url, openai_max_retries=5) as model:
        began = time.monotonic()
        with pytest.raises(ResourceExhausted) as refused:
            await written(model, request(), within_seconds=200)
    assert refused.value.retry_delay_seconds == 300
    assert 1 <= time.monotonic() - began < PATIENCE_SECONDS


async def test_a_limit_without_an_end_is_tried_as_often_as_the_setting_says() -> None:
    async with provider(refusal(429), refusal(429)) as remote, opened(remote.url, openai_max_retries=1) as model:
        with pytest.raises(ResourceExhausted):
            await written(model, request())


@pytest.mark.parametrize("wait", ["0", "-3", "0.0"])
async def test_a_limit_of_no_time_is_not_asked_about_without_a_pause(wait: str) -> None:
    async with provider(limited(wait), limited(wait), GOOD) as remote, opened(remote.url) as model:
        began = time.monotonic()
        await written(model, request())
    assert time.monotonic() - began > 0.3


@pytest.mark.parametrize("status", [500, 502, 503, 408, 409])
async def test_a_failure_is_tried_again_as_often_as_the_setting_says(status: int) -> None:
    async with provider(refusal(status), refusal(status), GOOD) as remote, opened(remote.url, openai_max_retries=2) as model:
        assert text_of(await written(model, request())) == "At last."
    async with provider(refusal(status), refusal(status)) as remote, opened(remote.url, openai_max_retries=1) as model:
        with pytest.raises(Unavailable):
            await written(model, request())


@pytest.mark.parametrize("body", [b"<html>no</html>", b"", b"[]", b'"x"', b'{"error": "words"}', b'{"error": {"code": 7}}'])
async def test_an_error_of_any_shape_is_understood_by_its_status(body: bytes) -> None:
    async with provider(Answer([body], 400), Answer([body], 500)) as remote, opened(remote.url) as model:
        with pytest.raises(InvalidArgument):
            await written(model, request())
        with pytest.raises(Unavailable):
            await written(model, request())


async def test_an_error_that_does_not_end_is_read_as_far_as_it_matters() -> None:
    async with provider(Answer([b"x" * 60_000] * 3, 500, then="stall")) as remote, opened(remote.url) as model:
        with pytest.raises(Unavailable):
            await written(model, request(), within_seconds=5)


async def test_silence_before_the_answer_is_a_timeout() -> None:
    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(nothing, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with opened(f"http://{host}:{port}/v1", openai_timeout_seconds=0.2) as model:
            with pytest.raises(DeadlineExceeded):
                await written(model, request())


async def test_silence_is_the_providers_and_not_the_readers() -> None:
    answer = Answer([sse(created(), delta("a")), sse(delta("b"))], then="stall")
    told: list[Piece | RoundEnd] = []

    async def read_slowly(pieces: AsyncIterator[Piece | RoundEnd]) -> None:
        async for piece in pieces:
            told.append(piece)
            await asyncio.sleep(0.5)

    async with provider(answer) as remote, opened(remote.url, openai_timeout_seconds=0.3) as model:
        with pytest.raises(DeadlineExceeded):
            await read_slowly(model.round(request(), deadline=in_seconds(5)))
    assert text_of(told) == "ab"


@pytest.mark.parametrize("garbage", [b"zz\r\nno chunk\r\n", b"5\r\nhello, too long\r\n", b""])
async def test_a_body_that_breaks_http_is_a_broken_connection(garbage: bytes) -> None:
    chunked = {**EVENT_STREAM, "transfer-encoding": "chunked"}
    async with provider(Answer([garbage], headers=chunked)) as remote, opened(remote.url) as model:
        with pytest.raises(Unavailable):
            await written(model, request())


async def test_a_server_that_speaks_no_http_is_unavailable() -> None:
    async def rubbish(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    async with await asyncio.start_server(rubbish, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with opened(f"http://{host}:{port}/v1") as model:
            with pytest.raises(Unavailable):
                await written(model, request())


async def test_encrypted_reasoning_is_done_without_where_a_model_does_not_reason() -> None:
    asked = request(items=[FUNCTION_CALL, OUTPUT])
    refused = refusal(400, param="include", message="Encrypted content is not supported with this model.")
    async with provider(refused, GOOD, GOOD) as remote, opened(remote.url) as model:
        for _ in range(2):
            await written(model, asked)
    assert [one.body.get("include") for one in remote.requests] == [["reasoning.encrypted_content"], None, None]


async def test_a_summary_of_reasoning_is_done_without_where_the_account_may_not_have_it() -> None:
    refused = refusal(400, param="reasoning.summary", code="unsupported_value")
    async with provider(refused, GOOD) as remote, opened(remote.url) as model:
        await written(model, request(reasoning_effort="low"))
    assert [one.body["reasoning"] for one in remote.requests] == [{"effort": "low", "summary": "auto"}, {"effort": "low"}]


@pytest.mark.parametrize("parameter", ["temperature", "reasoning.effort", "tools[0].type", "text.format.schema"])
async def test_what_the_user_asked_for_is_refused_by_name(parameter: str) -> None:
    async with provider(refusal(400, param=parameter)) as remote, opened(remote.url, openai_max_retries=2) as model:
        with pytest.raises(InvalidArgument) as refused:
            await written(model, request(reasoning_effort="low", temperature=1.0))
    assert refused.value.metadata["parameter"] == parameter


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("invalid_image_url", "images"),
        ("failed_to_download_image", "images"),
        ("image_content_policy_violation", "images"),
        ("bio_policy", "request"),
        ("context_length_exceeded", "request"),
    ],
)
async def test_a_run_that_fails_for_what_was_sent_names_it_and_is_not_tried_again(code: str, named: str) -> None:
    failed = {"type": "response.failed", "response": {"error": {"code": code, "message": "x"}}}
    async with provider(Answer([sse(created(), failed)])) as remote, opened(remote.url, openai_max_retries=3) as model:
        with pytest.raises(InvalidArgument) as refused:
            await written(model, request())
    assert refused.value.metadata["parameter"] == named


CODE = {"id": "ci_1", "type": "code_interpreter_call", "container_id": "cntr_1", "code": "1", "status": "completed"}
LOST: dict[str, Answer] = {
    "by code": refusal(400, code="container_expired", message="Container is expired."),
    "by name": refusal(400, message="Expected container_id: cntr_1"),
    "not found": refusal(404, message="Container with id 'cntr_1' not found."),
    "in the stream": Answer([sse(created(), {"type": "error", "code": "container_expired", "message": "x", "param": None})]),
}


@pytest.mark.parametrize("how", LOST)
async def test_an_expired_container_is_dropped_and_the_round_asked_again_once(how: str) -> None:
    reasoning = {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "x"}
    asked = request(use_code_interpreter=True, items=[reasoning, CODE, FUNCTION_CALL, OUTPUT])
    async with provider(LOST[how], GOOD) as remote, opened(remote.url) as model:
        assert text_of(await written(model, asked)) == "At last."
    first, second = ([item.get("type") for item in one.body["input"][1:]] for one in remote.requests)
    assert first == ["reasoning", "code_interpreter_call", "function_call", "function_call_output"]
    assert second == ["function_call", "function_call_output"]
    async with provider(LOST[how], LOST[how]) as remote, opened(remote.url) as model:
        with pytest.raises(ServiceError):
            await written(model, asked)


async def test_a_container_that_is_lost_after_text_was_told_ends_the_round() -> None:
    lost = {"type": "error", "code": "container_expired", "message": "x", "param": None}
    async with provider(Answer([sse(created(), delta("Half"), lost)])) as remote, opened(remote.url) as model:
        with pytest.raises(ServiceError):
            await written(model, request(use_code_interpreter=True))


async def test_calls_that_a_repeated_round_leaves_open_are_closed() -> None:
    search = {"id": "ws_1", "type": "web_search_call", "status": "in_progress"}
    lost = {"type": "error", "code": "container_expired", "message": "x", "param": None}
    broken = Answer([sse(created(), {"type": "response.output_item.added", "item": search}, lost)])
    async with provider(broken, GOOD) as remote, opened(remote.url) as model:
        pieces = await written(model, request(use_code_interpreter=True, use_web_search=True))
    calls = [piece.call for piece in pieces if isinstance(piece, CallStarted | CallFinished)]
    assert [(call.id, call.status) for call in calls] == [("ws_1", "running"), ("ws_1", "failed")]
    assert text_of(pieces) == "At last."


SERVERS = [HostedMcpServer(label, f"https://{label}.example/", {}, [], "never") for label in ("one", "two")]


@pytest.mark.parametrize(
    ("message_", "left"), [("Error retrieving tool list from MCP server: 'one'. Http status code: 502", ["two"]), ("x", [])]
)
async def test_a_broken_mcp_server_costs_that_server_only(message_: str, left: list[str]) -> None:
    failed = refusal(424, message=message_, code="http_error")
    async with provider(failed, GOOD) as remote, opened(remote.url) as model:
        pieces = await written(model, request(hosted_mcp=SERVERS))
    labels = [[tool["server_label"] for tool in one.body.get("tools", [])] for one in remote.requests]
    assert labels == [["one", "two"], left]
    finished = [piece.call for piece in pieces if isinstance(piece, CallFinished)]
    assert sorted(call.server_label for call in finished) == sorted({"one", "two"} - set(left))
    assert {call.status for call in finished} == {"failed"}
    assert text_of(pieces) == "At last."


async def test_what_was_told_is_never_told_again_by_a_second_try() -> None:
    thinking = {"type": "response.reasoning_summary_text.delta", "delta": "Hm."}
    cut = Answer([sse(created(), thinking)], then="cut")
    async with provider(cut) as remote, opened(remote.url, openai_max_retries=3) as model:
        told, error = await written_until_it_fails(model, request())
    assert isinstance(error, Unavailable)
    assert told == [ReasoningDelta("Hm.")]


async def test_a_connection_carries_one_reply_after_another() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            body = GOOD.chunks[0]
            kind = f"content-type: {EVENT_STREAM['content-type']}\r\n".encode()
            writer.write(b"HTTP/1.1 200 OK\r\n" + kind + b"transfer-encoding: chunked\r\n\r\n")
            writer.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.write(b"0\r\n\r\n")

    async def ended(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except asyncio.IncompleteReadError:
            writer.close()

    async with await asyncio.start_server(ended, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with opened(f"http://{host}:{port}/v1") as model:
            for _ in range(5):
                assert text_of(await written(model, request())) == "At last."
    assert connections == 1


async def test_a_proxy_of_the_environment_is_used_and_its_exceptions_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async with provider(GOOD) as proxy, provider(GOOD) as remote:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1").replace("http://", "http://me:word@"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with opened("http://provider.example/v1") as model:
            assert text_of(await written(model, request())) == "At last."
        async with opened(remote.url) as model:
            assert text_of(await written(model, request())) == "At last."
    (through,) = proxy.requests
    assert through.path == "http://provider.example/v1/responses"
    assert through.headers["proxy-authorization"] == "Basic bWU6d29yZA=="
    assert through.headers["authorization"] == "Bearer any"


@pytest.mark.parametrize("stated", ["socks5://127.0.0.1:1080"])
async def test_a_proxy_of_another_kind_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, stated: str) -> None:
    monkeypatch.setenv("all_proxy", stated)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises((ValueError, ImportError)):
        async with opened("http://provider.example/v1"):
            pass


def test_waits_are_read_from_every_form_of_the_header() -> None:
    stated: list[tuple[dict[str, str], Any]] = [
        ({"retry-after": "2"}, 2),
        ({"retry-after": "inf"}, 86_400),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ]
    for headers, seconds in stated:
        assert stated_wait_seconds(headers) == seconds
