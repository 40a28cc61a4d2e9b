"""The way to the provider's embeddings: the simulator, and servers that answer in their own ways."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse
from structlog.testing import capture_logs

from services.memory.embedding.embedder import Embedder, EmbeddingLimits, cut_to_tokens
from services.memory.tokens import text_tokens
from services.runtime.errors import InvalidArgument, ResourceExhausted, Unavailable
from services.runtime.openai import OpenAISettings, open_client
from simulator.control import Fault, Match, ScriptedAnswer
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.memory.database import fetch
from tests.memory.odd_provider import Answer, listed, odd_provider
from tests.memory.service import repeatable


@asynccontextmanager
async def opened(
    base_url: str, *, dimensions: int = 0, batch: int = 256, input_tokens: int = 2000, **changed: Any
) -> AsyncIterator[Embedder]:
    settings = OpenAISettings.model_validate({"openai_api_key": "any", "openai_base_url": base_url})
    times = {"timeout_seconds": 5.0, "query_timeout_seconds": 5.0}
    limits = EmbeddingLimits(dimensions, input_tokens, batch, **{**times, **changed})
    async with open_client(settings) as client:
        yield Embedder(client, model="text-embedding-3-small", limits=limits)


def numbers(vector: str) -> list[float]:
    return [float(value) for value in json.loads(vector)]


def cosine(one: str, other: str) -> float:
    return sum(a * b for a, b in zip(numbers(one), numbers(other), strict=True))


async def test_vectors_come_in_order_with_length_one_and_in_few_calls(simulator: Running) -> None:
    async with opened(simulator.base_url, dimensions=64, batch=10) as embedder:
        texts = [f"word{number} only" for number in range(25)]
        together = await embedder.embed_texts(texts)
        alone = await embedder.embed_texts(texts[17:18])
    assert len(together) == 25
    assert together[17] == alone[0]
    assert all(len(numbers(one)) == 64 and math.isclose(cosine(one, one), 1, abs_tol=1e-3) for one in together)
    asked = await simulator.control.requests("embeddings")
    assert [len(one.body["input"]) for one in asked] == [10, 10, 5, 1]
    assert {one.body["dimensions"] for one in asked} == {64}
    assert embedder.model_name == "text-embedding-3-small@64"


async def test_a_call_carries_no_more_tokens_than_the_provider_takes(simulator: Running) -> None:
    long = "many words " * 3_000
    async with opened(simulator.base_url, dimensions=8, input_tokens=8_000) as embedder:
        await embedder.embed_texts([long] * 30)
    asked = await simulator.control.requests("embeddings")
    assert len(asked) > 1
    assert max(sum(text_tokens(text) for text in one.body["input"]) for one in asked) <= 100_000


@pytest.mark.parametrize("text", ["word " * 5_000, "語" * 9_000, "😀" * 9_000, "x" * 400_000, "short"])
def test_a_text_is_cut_to_what_the_model_takes(text: str) -> None:
    cut = cut_to_tokens(text, 500)
    assert text.startswith(cut)
    assert text_tokens(cut) <= 500
    assert len(cut) == len(text) or text_tokens(cut) > 400


async def test_the_models_own_dimensions_are_not_asked_for_and_are_learned(simulator: Running) -> None:
    async with opened(simulator.base_url, dimensions=0) as embedder:
        assert await embedder.learn_model_name() == "text-embedding-3-small@1536"
        assert await embedder.learn_model_name() == "text-embedding-3-small@1536"
    (asked,) = await simulator.control.requests("embeddings")
    assert "dimensions" not in asked.body


async def test_a_query_is_asked_once_and_held(simulator: Running) -> None:
    async with opened(simulator.base_url, dimensions=32) as embedder:
        first = await embedder.embed_query("what do I like")
        assert first is not None
        assert await embedder.embed_query("what do I like") == first
        assert await embedder.embed_query("   ") is None
    assert len(await simulator.control.requests("embeddings")) == 1


async def test_of_many_queries_those_used_last_are_held(simulator: Running) -> None:
    async with opened(simulator.base_url, dimensions=32, held_queries=2) as embedder:
        for query in ("one", "two", "one", "three", "one", "two"):
            assert await embedder.embed_query(query) is not None
    asked = [one.body["input"] for one in await simulator.control.requests("embeddings")]
    assert asked == [["one"], ["two"], ["three"], ["two"]]


async def test_a_provider_that_is_away_costs_one_query_its_wait(simulator: Running) -> None:
    await simulator.control.script(ScriptedAnswer(match=Match(endpoint="embeddings"), fault=Fault(kind="stall")))
    async with opened(simulator.base_url, dimensions=32, query_timeout_seconds=0.3) as embedder:
        assert await embedder.embed_query("first") is None
        assert [await embedder.embed_query(f"query {number}") for number in range(50)] == [None] * 50
    assert len(await simulator.control.requests("embeddings")) == 1


async def test_queries_are_answered_again_when_it_is_back(simulator: Running) -> None:
    await simulator.control.script(
        ScriptedAnswer(match=Match(endpoint="embeddings"), fault=Fault(kind="status", status=503))
    )
    async with opened(simulator.base_url, dimensions=32, retry_seconds=0.05) as embedder:
        assert await embedder.embed_query("first") is None
        await asyncio.sleep(0.06)
        assert await embedder.embed_query("second") is not None
        assert await embedder.embed_query("third") is not None


async def test_a_limit_of_the_provider_says_how_long_to_wait(simulator: Running) -> None:
    fault = Fault(kind="status", status=429, retry_after_seconds=7)
    await simulator.control.script(ScriptedAnswer(match=Match(endpoint="embeddings"), fault=fault))
    async with opened(simulator.base_url, dimensions=32) as embedder:
        with pytest.raises(ResourceExhausted) as limited:
            await embedder.embed_texts(["text"])
    assert limited.value.retry_delay_seconds == 7


async def test_without_a_client_there_are_no_embeddings() -> None:
    limits = EmbeddingLimits(8, 100, 10, timeout_seconds=1, query_timeout_seconds=1)
    assert not Embedder(None, model="m", limits=limits).is_enabled
    assert await Embedder(None, model="m", limits=limits).embed_query("query") is None


def always(answered: Any, status: int = 200) -> Answer:
    return lambda _: (status, answered)


async def test_a_server_that_writes_lists_of_numbers_is_understood() -> None:
    answer = listed([3, 4.0], [0, 2])
    answer["data"].reverse()
    del answer["usage"]
    async with odd_provider(always(answer)) as provider, opened(provider.base_url) as embedder:
        assert [numbers(one) for one in await embedder.embed_texts(["one", "other"])] == [[0.6, 0.8], [0, 1]]
    assert embedder.model_name == "text-embedding-3-small@2"


@pytest.mark.parametrize(
    ("answered", "problem"),
    [
        (listed([1.0] * 5), "other_dimensions"),
        (listed([1.0, 0.0], [1.0, 0.0]), "malformed_answer"),
        (listed(), "malformed_answer"),
        (listed("no base64"), "malformed_answer"),
        (listed([]), "malformed_answer"),
        ({"error": "none"}, "malformed_answer"),
        (listed([1.0] * 5_000), "unusable_dimensions"),
        (b"<html>502, but with status 200</html>", "malformed_answer"),
        ([1, 2], "malformed_answer"),
        ("overloaded", "malformed_answer"),
        (None, "malformed_answer"),
        ({"data": [None]}, "malformed_answer"),
        ({"data": ["text"]}, "malformed_answer"),
        ({"data": [{"index": 0}]}, "malformed_answer"),
    ],
)
async def test_an_answer_that_cannot_be_used_is_told_and_makes_no_vector(answered: Any, problem: str) -> None:
    async with odd_provider(always(answered)) as provider, opened(provider.base_url, dimensions=2) as embedder:
        with capture_logs() as logs, pytest.raises(Unavailable):
            await embedder.embed_texts(["text"])
        assert [await embedder.embed_query(f"query {number}") for number in range(3)] == [None] * 3
    # A failure like any other: the further queries do not ask.
    assert len(provider.asked) == 2
    told = next(one for one in logs if one["event"] == "embedding.unusable")
    assert told["problem"] == problem
    assert "EMBEDDING_DIMENSIONS" in told["advice"]


@pytest.mark.parametrize("answered", [listed([10**400, 1.0]), b'{"data":' + b"[" * 100_000])
async def test_an_answer_that_cannot_even_be_read_is_a_provider_that_is_away(answered: Any) -> None:
    async with odd_provider(always(answered)) as provider, opened(provider.base_url, dimensions=2) as embedder:
        with pytest.raises(Unavailable):
            await embedder.embed_texts(["text"])
        assert await embedder.embed_query("query") is None


@pytest.mark.parametrize("usage", [None, {}, "many", [1], {"prompt_tokens": None}, {"prompt_tokens": -5}])
async def test_what_a_server_says_of_its_use_costs_no_vector(usage: object) -> None:
    answered = {**listed([3, 4.0]), "usage": usage}
    async with odd_provider(always(answered)) as provider, opened(provider.base_url) as embedder:
        assert [numbers(one) for one in await embedder.embed_texts(["one"])] == [[0.6, 0.8]]


async def test_a_batch_of_large_vectors_leaves_others_their_turn() -> None:
    chance = repeatable(1)
    vectors = [[chance.gauss(0, 1) for _ in range(3_072)] for _ in range(8)]
    answer = CreateEmbeddingResponse.model_validate(listed(*(vectors[number % 8] for number in range(256))))
    limits = EmbeddingLimits(0, 100, 256, timeout_seconds=5, query_timeout_seconds=5)
    embedder = Embedder(None, model="m", limits=limits)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    beside = asyncio.create_task(others())
    written = await embedder._read(answer, count=256)
    beside.cancel()
    assert turns >= 250
    assert [len(numbers(one)) for one in written] == [3_072] * 256


@pytest.mark.parametrize("dimensions", [2, 512, 3_072])
async def test_a_vector_is_kept_as_exactly_as_half_precision_can(memory_database: ServiceDatabase, dimensions: int) -> None:
    chance = repeatable(dimensions)
    vectors = [[chance.gauss(0, 1) * 10 ** chance.randint(-3, 0) for _ in range(dimensions)] for _ in range(20)]
    async with odd_provider(always(listed(*vectors))) as provider, opened(provider.base_url) as embedder:
        written = await embedder.embed_texts(["text"] * 20)
    exact = [json.dumps([value / math.hypot(*vector) for value in vector]) for vector in vectors]
    rows = await fetch(
        memory_database,
        "select abs((written::halfvec <#> exact::halfvec) + 1), written::halfvec <-> exact::halfvec"
        " from unnest(%s::text[], %s::text[]) as compared (written, exact)",
        written,
        exact,
    )
    assert max(row[0] for row in rows) < 1e-3
    assert max(row[1] for row in rows) < 2e-4


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 1e-305])
async def test_a_vector_that_is_no_direction_is_the_texts_fault(value: float) -> None:
    async with odd_provider(always(listed([value, 0.0]))) as provider, opened(provider.base_url) as embedder:
        with pytest.raises(InvalidArgument):
            await embedder.embed_texts(["text"])


@pytest.mark.parametrize(
    ("status", "error", "is_of_text"),
    [
        (400, {"message": "This model's maximum context length is 8192 tokens"}, True),
        (413, {"message": "`inputs` must have less than 512 tokens"}, True),
        (400, {"message": "Invalid 'input[0]'", "param": "input"}, True),
        (400, {"message": "This model does not support specifying dimensions.", "param": None}, False),
        (404, {"message": "The model does not exist", "code": "model_not_found"}, False),
        (400, {"message": "unknown", "param": "dimensions"}, False),
        (401, {"message": "bad key", "code": "invalid_api_key"}, False),
        (500, {"message": "oops"}, False),
    ],
)
async def test_what_a_refusal_is_about_decides_who_waits(status: int, error: dict[str, Any], *, is_of_text: bool) -> None:
    """The text alone, or everything: a wrong model must not make texts be given up one by one."""
    answer = always({"error": error}, status)
    async with odd_provider(answer) as provider, opened(provider.base_url, dimensions=2) as embedder:
        with pytest.raises(InvalidArgument if is_of_text else Unavailable):
            await embedder.embed_texts(["text"])
