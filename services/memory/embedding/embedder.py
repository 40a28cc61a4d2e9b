"""The way to the provider's embeddings.

Owns batches, deadlines, and what is made of a bad answer. Invariants: every vector has length 1, fits a half-precision
column and has the dimensions that `model_name` says, so that those of one name can be compared; a provider that is away
costs one query in `retry_seconds` its wait and the others nothing. It refuses to try again: what is owed is repeated by
its upkeep, a query goes on without.
"""

import array
import asyncio
import binascii
import hashlib
import math
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import openai
import orjson
import structlog
from openai import AsyncOpenAI
from openai.types import CreateEmbeddingResponse
from prometheus_client import Counter, Histogram

from services.memory.settings import MAX_DIMENSIONS
from services.memory.tokens import text_tokens
from services.runtime.breaker import Breaker
from services.runtime.errors import InvalidArgument, ServiceError, reason_name
from services.runtime.openai import Refusal, refused, translated, unavailable

log = structlog.get_logger(__name__)

CALLS: Final = Counter("parley_memory_embedding_calls", "Calls for embeddings, by what came of them", ["purpose", "outcome"])
TEXTS: Final = Counter("parley_memory_embedding_texts", "Texts that were embedded", ["purpose"])
TOKENS: Final = Counter("parley_memory_embedding_tokens", "Tokens that the provider counted for them", ["purpose"])
SECONDS: Final = Histogram(
    "parley_memory_embedding_seconds",
    "Time that a call for embeddings took",
    ["purpose"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
CACHED: Final = Counter("parley_memory_embedding_cached_queries", "Queries whose vector was held")

# OpenAI takes 300,000 tokens a call; ours are estimated.
_MOST_TOKENS_A_CALL: Final = 100_000
# What a refusal speaks of when a text is at fault, and not what we ask with.
_ABOUT_THE_TEXT: Final = ("input", "context length", "context size", "too long", "too large", "token")

Vector = str
"""A vector in pgvector's text form: `[0.1,-2e-3,…]`."""


@dataclass(frozen=True, slots=True)
class EmbeddingLimits:
    """`dimensions` 0: the model's own. `input_tokens`: of one text; `batch`: texts of one call.

    `retry_seconds`: how long queries do without a provider that failed; `held_queries`: vectors of queries that are kept.
    """

    dimensions: int
    input_tokens: int
    batch: int
    timeout_seconds: float
    query_timeout_seconds: float
    retry_seconds: float = 5.0
    held_queries: int = 512


class Embedder:
    """The embeddings of one model. Without a client there are none: `is_enabled` is false."""

    def __init__(self, client: AsyncOpenAI | None, *, model: str, limits: EmbeddingLimits) -> None:
        self._client = client
        self._model = model
        self._limits = limits
        self._dimensions = limits.dimensions
        self._breaker = Breaker("embeddings", retry_seconds=limits.retry_seconds)
        self._queries: OrderedDict[bytes, Vector] = OrderedDict()

    @property
    def is_enabled(self) -> bool:
        """Whether anything is embedded."""
        return self._client is not None

    @property
    def model_name(self) -> str:
        """`<model>@<dimensions>`: vectors under the same name can be compared.

        Where the dimensions are the model's own they are 0 until it has answered once: see `learn_model_name`.
        """
        return f"{self._model}@{self._dimensions}"

    async def learn_model_name(self) -> str:
        """The name that new vectors have, asking the model for one where only that tells. Raises ServiceError."""
        if not self._dimensions:
            await self.embed_texts(["."])
        return self.model_name

    async def embed_texts(self, texts: Sequence[str]) -> list[Vector]:
        """The vectors of texts that are not blank, in as few calls as they fit in.

        Raises InvalidArgument where a text is at fault, another ServiceError where the provider or how it is asked is.
        """
        vectors: list[Vector] = []
        for batch in self._batches(texts):
            vectors += await self._ask(batch, purpose="upkeep", timeout_seconds=self._limits.timeout_seconds)
        return vectors

    async def embed_query(self, text: str) -> Vector | None:
        """The vector of a query; None when it is blank, embeddings are off, or the provider is away, late or refuses."""
        if self._client is None or not text.strip():
            return None
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        held = self._queries.get(digest)
        if held is not None:
            self._queries.move_to_end(digest)
            CACHED.inc()
            return held
        vector = await self._asked_query(text) if self._breaker.allows() else None
        if vector is not None:
            self._queries[digest] = vector
            if len(self._queries) > self._limits.held_queries:
                self._queries.popitem(last=False)
        return vector

    async def _asked_query(self, text: str) -> Vector | None:
        cut = cut_to_tokens(text, self._limits.input_tokens)
        try:
            vectors = await self._ask([cut], purpose="query", timeout_seconds=self._limits.query_timeout_seconds)
        except InvalidArgument as error:
            # It answered: only this text has no vector.
            self._breaker.succeeded()
            log.info("embedding.query_refused", reason=reason_name(error.reason))
            return None
        except ServiceError as error:
            self._breaker.failed(error)
            return None
        self._breaker.succeeded()
        return vectors[0]

    def _batches(self, texts: Sequence[str]) -> Iterator[list[str]]:
        batch: list[str] = []
        tokens = 0
        for text in texts:
            cut = cut_to_tokens(text, self._limits.input_tokens)
            cost = text_tokens(cut)
            if batch and (len(batch) == self._limits.batch or tokens + cost > _MOST_TOKENS_A_CALL):
                yield batch
                batch, tokens = [], 0
            batch.append(cut)
            tokens += cost
        if batch:
            yield batch

    async def _ask(self, texts: list[str], *, purpose: str, timeout_seconds: float) -> list[Vector]:
        try:
            with SECONDS.labels(purpose).time(), translated(self._model):
                async with asyncio.timeout(timeout_seconds):
                    answer = await self._create(texts)
            vectors = await self._read(answer, count=len(texts))
        except ServiceError as error:
            CALLS.labels(purpose, reason_name(error.reason)).inc()
            if isinstance(error, InvalidArgument) and not _is_about_the_text(error):
                self._mistaken("refused", error)
            raise
        CALLS.labels(purpose, "answered").inc()
        TEXTS.labels(purpose).inc(len(texts))
        TOKENS.labels(purpose).inc(_prompt_tokens(answer))
        return vectors

    async def _create(self, texts: list[str]) -> CreateEmbeddingResponse:
        if self._client is None:
            raise unavailable(self._model)
        asked = self._limits.dimensions
        # Asked for by name, the SDK leaves the base64 to us: its own way would make a list of floats in between.
        return await self._client.embeddings.create(
            model=self._model, input=texts, dimensions=asked or openai.omit, encoding_format="base64"
        )

    async def _read(self, answer: CreateEmbeddingResponse, *, count: int) -> list[Vector]:
        """What the answer holds. Trusts nothing of it: servers differ, and the SDK checks nothing.

        The page of a proxy comes as text, JSON of another type as it is, what is missing as None. Between the vectors, of
        which writing one takes up to half a millisecond, it is everybody else's turn.
        """
        vectors: list[Vector] = []
        try:
            for values in self._values(answer, count=count):
                if vectors:
                    await asyncio.sleep(0)
                vectors.append(self._unit(values))
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            self._mistaken("malformed_answer", error)
        return vectors

    def _values(self, answer: CreateEmbeddingResponse, *, count: int) -> Sequence[Sequence[float]]:
        data = answer.data if isinstance(answer.data, list) else []
        ordered = sorted(data, key=lambda one: one.index if isinstance(one.index, int) else 0)
        found = [_floats(one.embedding) for one in ordered]
        if len(found) != count or not all(found):
            self._mistaken("malformed_answer")
        length = len(found[0])
        if length > MAX_DIMENSIONS or any(len(values) != length for values in found):
            self._mistaken("unusable_dimensions", got=length)
        if self._dimensions and length != self._dimensions:
            self._mistaken("other_dimensions", got=length)
        self._dimensions = length
        return found

    def _unit(self, values: Sequence[float]) -> Vector:
        """Written as whole numbers of 1e-8: less than half precision can tell apart, and twice as fast as decimals."""
        norm = math.hypot(*values)
        scale = 1e8 / norm if norm else math.inf
        if not math.isfinite(norm) or not math.isfinite(scale):
            raise refused(self._model, "input")
        written = orjson.dumps([int(value * scale) for value in values]).decode()
        return f"{written[:-1].replace(',', 'e-8,')}e-8]"

    def _mistaken(self, problem: str, error: BaseException | None = None, *, got: int | None = None) -> NoReturn:
        """The provider, or how it is asked, is at fault: an operator must act, and everything waits meanwhile."""
        log.error(
            "embedding.unusable",
            problem=problem,
            model=self._model,
            dimensions=self._limits.dimensions,
            **({} if got is None else {"got_dimensions": got}),
            advice="check EMBEDDING_MODEL and EMBEDDING_DIMENSIONS (0: the model's own), or set EMBEDDINGS_ENABLED=false",
        )
        raise unavailable(self._model) from error


def cut_to_tokens(text: str, most_tokens: int) -> str:
    """The beginning of a text that costs at most so many tokens, as we estimate them."""
    cut = text[: most_tokens * 6]
    while (cost := text_tokens(cut)) > most_tokens:
        cut = cut[: min(len(cut) - 1, len(cut) * most_tokens // cost)]
    return cut or text[:1]


def _is_about_the_text(error: InvalidArgument) -> bool:
    cause = error.__cause__
    if not isinstance(cause, Refusal):
        return True
    if cause.parameter in ("model", "dimensions", "encoding_format") or cause.status == 404:  # noqa: PLR2004 - as HTTP says
        return False
    return cause.mentions(*_ABOUT_THE_TEXT)


def _prompt_tokens(answer: CreateEmbeddingResponse) -> int:
    """What the call cost; 0 where the server says nothing of use."""
    counted = getattr(answer.usage, "prompt_tokens", None)
    return counted if isinstance(counted, int) and counted > 0 else 0


def _floats(embedding: object) -> Sequence[float]:
    """The numbers of a vector, whichever way the server wrote it; none where it is no vector."""
    if isinstance(embedding, str):
        try:
            numbers = array.array("f", binascii.a2b_base64(embedding, strict_mode=True))
        except (binascii.Error, ValueError):
            return ()
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers
    if isinstance(embedding, list) and all(isinstance(value, int | float) for value in embedding):
        return embedding
    return ()
