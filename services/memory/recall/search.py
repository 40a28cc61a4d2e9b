"""Recall: what is remembered about something, the best first.

Owns the course of a search: read the query; ask the provider for its vector; wait to be admitted; rank by words and by
meaning; make one ranking of it all; read the rows that won. Invariants: a search sees the user's own memories only; what was
superseded or closed is found only when it is asked for, what has expired never; a search goes on without embeddings, and
says so. It refuses to wait for the provider longer than the embedder does.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Final, Protocol

from services.memory.recall.admission import Admission
from services.memory.recall.fusion import Candidate, FactKey, Key, Place, Ranked, Weights, fuse
from services.memory.recall.question import Question, read_question
from services.memory.recall.store import Extent, FoundTurn, RecallStore
from services.memory.records import Fact

DEFAULT_LIMIT: Final = 10
MOST_LIMIT: Final = 100


class QueryEmbedder(Protocol):
    """Where the vectors of queries come from."""

    @property
    def is_enabled(self) -> bool:
        """Whether anything is embedded."""

    @property
    def model_name(self) -> str:
        """Names what its vectors can be compared with."""

    async def embed_query(self, text: str) -> str | None:
        """The vector, in pgvector's text form; None when there is none to be had in time."""


@dataclass(frozen=True, slots=True)
class RecallLimits:
    """`candidates`: how many each leg names, of messages and of facts. `at_once`: how many searches use the database."""

    candidates: int
    weights: Weights
    at_once: int


@dataclass(frozen=True, slots=True)
class Found:
    """A memory that was found: a fact or a message. `found_by` names the ways, as the contract does."""

    fact: Fact | None
    turn: FoundTurn | None
    score: float
    found_by: Sequence[str]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What was found, the best first, and the parts that the search had to do without."""

    found: Sequence[Found]
    degraded: Sequence[str]


class Recall:
    """Searches in what is remembered of users."""

    def __init__(self, store: RecallStore, embedder: QueryEmbedder, limits: RecallLimits) -> None:
        self._store = store
        self._embedder = embedder
        self._limits = limits
        self._admission = Admission(most=limits.at_once)

    async def search(  # noqa: PLR0913 - each is a choice of the caller
        self,
        user_id: str,
        query: str,
        *,
        limit: int,
        kind: str | None = None,
        conversation_id: str | None = None,
        include_superseded: bool | None = None,
        excluded: Callable[[], Awaitable[frozenset[str]]] | None = None,
        name: str = "",
    ) -> SearchResult:
        """What is remembered about `query`; of one `kind` (`fact`, `message`), of one conversation where they are given.

        At most `limit` (0: 10; more than 100: 100). What was superseded or closed is found where the query asks about the
        past, unless `include_superseded` decides. `name` is what the user is called. `excluded` gives the ids of messages
        that are not to be found; it is awaited while the query is being embedded. Three transactions.
        """
        question = read_question(query, now=datetime.now(UTC), name=name)
        extent = Extent(
            user_id,
            depth=self._limits.candidates,
            kind=kind,
            conversation_id=conversation_id,
            superseded=question.asks_about_past if include_superseded is None else include_superseded,
            window=question.window,
        )
        extent, vector = await self._asked(extent, question, excluded)
        # The provider is not waited for in there.
        ranked = await self._admission.run(partial(self._ranked, extent, question, vector, limit=_cut(limit)))
        is_degraded = vector is None and self._embedder.is_enabled
        return SearchResult(ranked, ["embeddings"] if is_degraded else [])

    async def _asked(
        self, extent: Extent, question: Question, excluded: Callable[[], Awaitable[frozenset[str]]] | None
    ) -> tuple[Extent, str | None]:
        """The vector, and the extent without what is excluded: both are waited for at once. Raises what either raises."""
        try:
            async with asyncio.TaskGroup() as group:
                vector = group.create_task(self._embedder.embed_query(question.meaning))
                if excluded is not None:
                    extent = replace(extent, excluded_message_ids=await excluded())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return extent, vector.result()

    async def _ranked(self, extent: Extent, question: Question, vector: str | None, *, limit: int) -> list[Found]:
        try:
            async with asyncio.TaskGroup() as group:
                by_words = group.create_task(self._store.by_words(extent, question.words, word_count=question.word_count))
                by_meaning = group.create_task(self._by_meaning(extent, vector))
        except BaseExceptionGroup as errors:
            # A failure of one ends the other.
            raise errors.exceptions[0] from None
        words, recent = by_words.result()
        ranked = fuse(
            words=words,
            meaning=by_meaning.result(),
            recent=recent,
            window=question.window,
            weights=self._limits.weights,
        )
        return await self._rows(extent, [one for one in ranked if _is_in(extent, one.key)], limit)

    async def _by_meaning(self, extent: Extent, vector: str | None) -> list[Candidate]:
        """None are near where there is no vector to search by."""
        if vector is None:
            return []
        # The name may only be known once the model has answered.
        return await self._store.by_meaning(replace(extent, window=None), vector, model=self._embedder.model_name)

    async def _rows(self, extent: Extent, ranked: Sequence[Ranked], limit: int) -> list[Found]:
        """The first `limit` that are there: some that were voted for are not (the message after the last one)."""
        if not ranked:
            return []
        likely = ranked[: 2 * limit + 20]
        rows = await self._store.read(replace(extent, window=None), [one.key for one in likely])
        present = [(one, rows[one.key]) for one in likely if one.key in rows]
        return [_found(one, memory) for one, memory in present[:limit]]


def _cut(limit: int) -> int:
    return min(limit or DEFAULT_LIMIT, MOST_LIMIT)


def _is_in(extent: Extent, key: Key) -> bool:
    """Votes may go beyond what is searched: a fact's, to messages of another conversation."""
    if isinstance(key, FactKey):
        return extent.kind != "message"
    return extent.kind != "fact" and extent.conversation_id in (None, key.conversation_id) and key.sequence > 0


def _found(ranked: Ranked, memory: Fact | FoundTurn) -> Found:
    fact = memory if isinstance(memory, Fact) else None
    turn = memory if isinstance(memory, FoundTurn) else None
    return Found(fact, turn, ranked.score, ranked.found_by)


__all__ = [
    "DEFAULT_LIMIT",
    "MOST_LIMIT",
    "Found",
    "FoundTurn",
    "Place",
    "QueryEmbedder",
    "Recall",
    "RecallLimits",
    "SearchResult",
]
