"""Small jobs of the model in both APIs: text, JSON of a schema, what they cost, and where they end early."""

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import ServiceError, Unavailable
from services.runtime.openai import OpenAISettings, open_client
from services.runtime.small_jobs import Answer, AnswerSchema, SmallJobs
from simulator.control import Fault, ScriptedAnswer
from simulator.server import Running, running

APIS = ("responses", "chat_completions")
SCHEMA = AnswerSchema(
    "decision",
    {
        "type": "object",
        "properties": {"reply": {"type": "boolean"}},
        "required": ["reply"],
        "additionalProperties": False,
    },
)


@pytest.fixture
async def simulator() -> AsyncIterator[Running]:
    async with running() as simulator:
        yield simulator
        await simulator.control.verify_consumed()


async def ask(simulator: Running, api: str, *, schema: AnswerSchema | None = None, most: int = 200) -> Answer:
    return await ask_at(simulator.base_url, api, schema=schema, most=most)


async def ask_at(base_url: str, api: str, *, schema: AnswerSchema | None = None, most: int = 200) -> Answer:
    settings = OpenAISettings.model_validate({"openai_api_key": "any", "openai_base_url": base_url, "openai_api": api})
    async with open_client(settings) as client:
        return await SmallJobs(client, settings).complete(
            model="gpt-5-mini", instructions="Answer.", text="Shall we meet?", max_output_tokens=most, schema=schema
        )


@pytest.mark.parametrize("api", APIS)
async def test_an_answer_comes_whole_with_its_cost(simulator: Running, api: str) -> None:
    answer = await ask(simulator, api)

    assert "Shall we meet?" in answer.text
    assert not answer.is_cut
    assert answer.usage is not None
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens > 0


@pytest.mark.parametrize("api", APIS)
async def test_an_answer_is_the_json_of_its_schema(simulator: Running, api: str) -> None:
    assert orjson.loads((await ask(simulator, api, schema=SCHEMA)).text) == {"reply": True}


@pytest.mark.parametrize("api", APIS)
async def test_an_answer_that_its_bound_ended_says_so(simulator: Running, api: str) -> None:
    await simulator.control.script(ScriptedAnswer(text="word " * 100))

    assert (await ask(simulator, api, most=16)).is_cut


@pytest.mark.parametrize("api", APIS)
async def test_nothing_is_asked_twice(simulator: Running, api: str) -> None:
    await simulator.control.script(ScriptedAnswer(fault=Fault(kind="status", status=503)))

    with pytest.raises(ServiceError):
        await ask(simulator, api)

    assert len(await simulator.control.requests()) == 1


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b'{"id": "resp_1", "output": [{"ty'),
        ("application/json", b"\xff\xfe"),
        ("application/json", b"[]"),
        ("application/json", b"null"),
        ("application/json", b"{}"),
        ("application/json", b'{"output": null, "choices": null}'),
        ("application/json", b'{"output": "no", "choices": "no"}'),
        ("application/json", b'{"output": [1], "choices": [1]}'),
        ("application/json", b'{"output": [{"type": "message"}], "choices": [{"index": 0}]}'),
        ("text/html", b"<html>The gateway is tired.</html>"),
    ],
)
async def test_what_is_no_answer_is_a_failure_of_the_provider(api: str, content_type: str, body: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        with pytest.raises(Unavailable) as failed:
            await ask_at(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", api)

    assert failed.value.reason == reasons.ERROR_REASON_MODEL_UNAVAILABLE
