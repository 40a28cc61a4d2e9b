"""Small jobs of the model in both APIs: text, JSON of a schema, what they cost, and where they end early."""

from collections.abc import AsyncIterator

import orjson
import pytest

from services.runtime.errors import ServiceError
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
    settings = OpenAISettings.model_validate(
        {"openai_api_key": "any", "openai_base_url": simulator.base_url, "openai_api": api}
    )
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
