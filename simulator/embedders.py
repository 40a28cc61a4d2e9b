"""Who turns texts into vectors: the hash of embeddings.py, or a sentence-transformers model of this machine.

Owns the second way, for people without a key who want to be found by what they mean. Optional: `pip install
'parley[local]'`, and SIMULATOR_EMBEDDING_MODEL names the model, by its name on the hub or its folder. Invariant: at most
one batch is computed at a time, in a thread, so that replies are streamed on meanwhile.
"""

import asyncio
import math
from collections.abc import Sequence
from typing import Any, Protocol

from simulator.embeddings import DEFAULT_DIMENSIONS, LARGE_DIMENSIONS, embed
from simulator.errors import invalid


class EmbedderError(Exception):
    """The model cannot be used: the text says what to do."""


class Embedder(Protocol):
    """Unit vectors for texts."""

    async def embed(self, texts: Sequence[str], *, model: str, dimensions: int | None) -> list[list[float]]:
        """A vector for each text, of `dimensions` or the model's own number. Raises ApiError (400)."""


class HashEmbedder:
    """The one without a model; as many dimensions as OpenAI's models of that name have."""

    async def embed(self, texts: Sequence[str], *, model: str, dimensions: int | None) -> list[list[float]]:
        """See Embedder."""
        count = dimensions or (LARGE_DIMENSIONS if "large" in model else DEFAULT_DIMENSIONS)
        return [embed(text, count) for text in texts]


class LocalEmbedder:
    """A sentence-transformers model, whatever name a request gives it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._gate = asyncio.Lock()

    @classmethod
    def load(cls, name: str) -> "LocalEmbedder":
        """The model of that name or folder. Takes seconds, and may download it. Raises EmbedderError."""
        try:
            from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - optional, and seconds to import
        except ImportError as error:
            raise EmbedderError(
                "needs the package sentence-transformers: run .venv/bin/pip install 'parley[local]' (or, in a checkout,"
                " '.[local]'), or leave SIMULATOR_EMBEDDING_MODEL empty"
            ) from error
        try:
            return cls(SentenceTransformer(name, device="cpu"))
        except (OSError, ValueError, RuntimeError) as error:
            raise EmbedderError(
                f"cannot load {name!r}: name a sentence-transformers model of the hub or the folder of one"
                f" ({type(error).__name__})"
            ) from error

    async def embed(
        self,
        texts: Sequence[str],
        *,
        model: str,  # noqa: ARG002 - there is one model, whatever a request calls it
        dimensions: int | None,
    ) -> list[list[float]]:
        """See Embedder. `dimensions` keeps the first ones, as matryoshka models are made for."""
        async with self._gate:
            vectors = await asyncio.to_thread(self._encode, list(texts))
        own = len(vectors[0])
        if dimensions is not None and dimensions > own:
            raise invalid(f"This model has {own} dimensions, fewer than the {dimensions} asked for.", param="dimensions")
        return [_unit(vector[:dimensions]) for vector in vectors]

    def _encode(self, texts: list[str]) -> list[list[float]]:
        encoded: list[list[float]] = self._model.encode(texts, show_progress_bar=False).tolist()
        return encoded


def _unit(vector: list[float]) -> list[float]:
    length = math.sqrt(math.fsum(value * value for value in vector)) or 1.0
    return [value / length for value in vector]
