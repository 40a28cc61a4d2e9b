"""Embedding what was recorded, and all of it anew when the model changes: chore and duty.

Owns how much is asked at once. Invariants: what is owed is settled only when nothing is missing; a change of the model
never keeps new texts waiting behind all the old ones, and a search never compares vectors of two models.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import structlog

from services.memory.embedding.embedder import Embedder
from services.memory.embedding.pieces import pieces, whole
from services.memory.embedding.store import FIRST, Embedded, EmbeddingStore, Item
from services.memory.upkeep.runner import Chore
from services.memory.upkeep.store import Owed, UpkeepStore
from services.runtime.database import DATABASE_FAILURES
from services.runtime.errors import ServiceError

log = structlog.get_logger(__name__)

# With eight pieces each that is five calls of the default size.
_ITEMS: Final = 128
_SCOPES: Final = 32
_CONCURRENCY: Final = 2
_LEAST_TIMEOUT_SECONDS: Final = 60.0
# How soon a text that somebody was changing is looked at again.
_LOOK_AGAIN_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 10.0
Step = Callable[..., Awaitable[tuple[str, str] | None]]


class Embedding:
    """The embeddings of what memory holds, kept up."""

    def __init__(self, store: EmbeddingStore, upkeep: UpkeepStore, embedder: Embedder) -> None:
        self._store = store
        self._upkeep = upkeep
        self._embedder = embedder

    def chores(self, *, call_seconds: float) -> Sequence[Chore]:
        """The task `embed`, where embeddings are on; `call_seconds` is the longest that a call of the provider may take."""
        if not self._embedder.is_enabled:
            return []
        timeout_seconds = max(_LEAST_TIMEOUT_SECONDS, 3 * call_seconds)
        return [Chore("embed", self.embed, batch=_SCOPES, concurrency=_CONCURRENCY, timeout_seconds=timeout_seconds)]

    async def embed(self, owed: Sequence[Owed]) -> None:
        """Embeds what these scopes miss, a bounded part of it; the rest is owed anew. Idempotent. Raises ServiceError."""
        model = await self._embedder.learn_model_name()
        items = await self._store.missing(owed, model=model, most=_ITEMS)
        if not items:
            return
        made = await self._embedded(items)
        has_more = len(items) == _ITEMS
        written = await self._store.write(made, model=model, still_owed=owed if has_more else [])
        if written < len(made):
            await self._store.look_again(owed, delay_seconds=_LOOK_AGAIN_SECONDS)

    async def _embedded(self, items: Sequence[Item]) -> list[Embedded]:
        texts = [_texts(item) for item in items]
        vectors = iter(await self._embedder.embed_texts([text for of_item in texts for text in of_item]))
        return [
            Embedded(item, next(vectors), [next(vectors) for _ in of_item[1:]])
            for item, of_item in zip(items, texts, strict=True)
        ]

    async def renew(self, *, backlog: int = 200, interval_seconds: float = 2.0) -> None:
        """Owes everything that is embedded by another model, `backlog` scopes at a time; returns when all was owed.

        A duty of each start. Several processes may do it at once: what is embedded already costs a look. The backlog
        bounds how long a new text waits.
        """
        while self._embedder.is_enabled:
            try:
                await self._renew(backlog, interval_seconds)
            except (ServiceError, *DATABASE_FAILURES) as error:
                log.warning("duty.postponed", duty="embedding_renewal", error=type(error).__name__)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def _renew(self, backlog: int, interval_seconds: float) -> None:
        current = await self._embedder.learn_model_name()
        for model in await self._store.other_models(current):
            log.info("embedding.renewal_began", model=current, previous=model)
            for step in (self._store.owe_of_model, self._store.owe_facts_of_model):
                await self._walk(partial(step, model, most=backlog), backlog=backlog, interval_seconds=interval_seconds)
            log.info("embedding.renewal_owed", model=current, previous=model)

    async def _walk(self, step: Step, *, backlog: int, interval_seconds: float) -> None:
        last: tuple[str, str] | None = FIRST
        while last is not None:
            while await self._waiting() >= backlog:  # noqa: ASYNC110 - in the database, where nothing tells us
                await asyncio.sleep(interval_seconds)
            last = await step(after=last)

    async def _waiting(self) -> int:
        return sum(one.count for one in await self._upkeep.waiting() if one.task == "embed")


def _texts(item: Item) -> list[str]:
    """What of an item is embedded: the whole first."""
    if item.kind == "fact":
        return [item.text]
    spoken = whole(item.text, role=item.role, time=item.time)
    return [spoken, *(pieces(item.text) if item.role == "user" else ())]
