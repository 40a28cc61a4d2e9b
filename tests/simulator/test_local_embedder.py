"""A model of this machine behind the simulator's embeddings."""

import asyncio
import importlib.util
import math
import os
import sys
from pathlib import Path

import pytest
from openai import AsyncOpenAI, BadRequestError

from simulator.app import Simulator
from simulator.embedders import EmbedderError, LocalEmbedder
from simulator.plan import Pace
from simulator.server import Server, listen, url_of
from tests.suite_process import ROOT

IS_INSTALLED = importlib.util.find_spec("sentence_transformers") is not None
needs_the_package = pytest.mark.skipif(not IS_INSTALLED, reason="sentence-transformers is not installed (parley[local])")
WORDS = ("cat", "cats", "dog", "train", "tea", "green", "the", "my")


@pytest.mark.skipif(IS_INSTALLED, reason="sentence-transformers is installed")
async def test_without_the_package_the_start_says_what_to_install() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "simulator", "--port", "0", cwd=ROOT,
        env={"PATH": os.environ["PATH"], "SIMULATOR_EMBEDDING_MODEL": "all-MiniLM-L6-v2"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, told = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, said) == (2, b"")
    assert told.startswith(b"simulator: SIMULATOR_EMBEDDING_MODEL: needs the package sentence-transformers")
    assert b"parley[local]" in told
    assert b"Traceback" not in told


def tiny_model(folder: Path) -> str:
    """A bag of words with vectors of chance: made here, since a test downloads nothing."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - optional
    from sentence_transformers.sentence_transformer.modules import BoW  # noqa: PLC0415

    model = SentenceTransformer(modules=[BoW(vocab=list(WORDS))], device="cpu")
    model.save(str(folder))
    return str(folder)


@needs_the_package
async def test_the_model_answers_in_the_apis_way(tmp_path: Path) -> None:
    embedder = LocalEmbedder.load(tiny_model(tmp_path / "model"))
    listening = listen("127.0.0.1", 0)
    server = Server(Simulator(control=False, pace=Pace(), embedder=embedder))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        async with AsyncOpenAI(api_key="any", base_url=f"{url_of(listening)}/v1", max_retries=0, timeout=20) as client:
            answer = await client.embeddings.create(model="any", input=["my cat", "the train", "cat"])
            vectors = [one.embedding for one in answer.data]
            assert [len(one) for one in vectors] == [len(WORDS)] * 3
            assert all(math.isclose(math.hypot(*one), 1, abs_tol=1e-5) for one in vectors)
            near, far = (sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in (vectors[2], vectors[1]))
            assert near > far
            short = await client.embeddings.create(model="any", input="cat", dimensions=4)
            assert len(short.data[0].embedding) == 4
            with pytest.raises(BadRequestError) as refused:
                await client.embeddings.create(model="any", input="cat", dimensions=512)
            assert refused.value.param == "dimensions"
    finally:
        server.stop()
        await serving


@needs_the_package
def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbedderError, match="cannot load"):
        LocalEmbedder.load(str(tmp_path))
