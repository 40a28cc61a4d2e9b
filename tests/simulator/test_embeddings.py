"""POST /v1/embeddings: deterministic unit vectors, near where words are shared."""

import math
from typing import Any

import pytest
from openai import AsyncOpenAI

from simulator.embeddings import embed
from tests.simulator.strict import EMBEDDINGS, check
from tests.simulator.wire import Wire

MODEL = "text-embedding-3-small"


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_the_reply_is_strictly_valid_and_the_vectors_have_length_one(wire: Wire) -> None:
    made = check(EMBEDDINGS, (await wire.post("embeddings", model=MODEL, input=["one text", "another", "…"])).content)
    assert [one.index for one in made.data] == [0, 1, 2]
    assert all(len(one.embedding) == 1536 for one in made.data)
    assert all(math.isclose(math.hypot(*one.embedding), 1) for one in made.data)
    assert made.usage.prompt_tokens == 4


@pytest.mark.parametrize("dimensions", [1, 256, 3072])
async def test_the_dimensions_are_those_asked_for(wire: Wire, dimensions: int) -> None:
    reply = await wire.post("embeddings", model=MODEL, input="text", dimensions=dimensions)
    assert len(check(EMBEDDINGS, reply.content).data[0].embedding) == dimensions


async def test_base64_which_the_sdk_asks_for_holds_the_same_vector(client: AsyncOpenAI, wire: Wire) -> None:
    by_sdk = (await client.embeddings.create(model=MODEL, input="my cat")).data[0].embedding
    by_wire = (await wire.post("embeddings", model=MODEL, input="my cat")).json()["data"][0]["embedding"]
    assert by_sdk == pytest.approx(by_wire, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("my favourite drink is green tea", "which tea do I drink", "the train to Oslo leaves at nine"),
        ("Ana has two cats", "a cat of Ana", "quarterly revenue grew"),
        ("allergic to peanuts", "peanut allergy", "likes jazz music"),
    ],
)
def test_texts_that_share_words_are_nearer_than_texts_that_do_not(text: str, near: str, far: str) -> None:
    vectors = [embed(one, 1536) for one in (text, near, far)]
    assert cosine(vectors[0], vectors[1]) > cosine(vectors[0], vectors[2]) + 0.1


def test_the_same_text_has_the_same_vector_and_common_words_tell_little() -> None:
    assert embed("the same", 64) == embed("the same", 64)
    assert cosine(embed("the name of the dog", 1536), embed("the colour of the car", 1536)) < 0.3


@pytest.mark.parametrize(
    "body", [{"input": ""}, {"input": []}, {"input": ["a", ""]}, {"input": "a", "dimensions": 0}, {"input": "w " * 9000}]
)
async def test_a_bad_input_is_refused(wire: Wire, body: dict[str, Any]) -> None:
    reply = await wire.post("embeddings", model=MODEL, **body)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_token_arrays_are_inputs_too(wire: Wire) -> None:
    flat = check(EMBEDDINGS, (await wire.post("embeddings", model=MODEL, input=[1, 2, 3])).content)
    nested = check(EMBEDDINGS, (await wire.post("embeddings", model=MODEL, input=[[1, 2, 3], [4]])).content)
    assert flat.data[0].embedding == nested.data[0].embedding
    assert len(nested.data) == 2
