"""The chore that learns facts from what was said.

Owns its course: the next turns of a conversation, at most one call of the model, its proposals judged, the changes stored
together with noting how far was read. Invariants: turns that hold nothing cost no call; what was read is read once, however
often a call was made for it; a batch that no model can answer is passed over in the end, and does not hold up the rest.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import structlog
from prometheus_client import Counter

from services.memory.extraction.batch import Batch, next_batch
from services.memory.extraction.judgement import settle
from services.memory.extraction.proposals import SCHEMA, MalformedAnswer, Proposal, read_answer
from services.memory.extraction.selection import Selection
from services.memory.extraction.store import UnreadStore
from services.memory.extraction.wording import INSTRUCTIONS, input_text
from services.memory.facts.changes import Basis, Stale
from services.memory.facts.store import FactStore
from services.memory.model_calls import CountedModel
from services.memory.upkeep.runner import Chore, Unworkable
from services.memory.upkeep.store import Owed
from services.runtime.errors import InvalidArgument
from services.runtime.openai import access_refused, timed_out

log = structlog.get_logger(__name__)

TURNS: Final = Counter(
    "parley_memory_extraction_turns", "Messages of users that were read for facts: by a call, or without one", ["how"]
)
CHANGES: Final = Counter("parley_memory_extraction_changes", "What extracted facts came to", ["result"])
REFUSED: Final = Counter(
    "parley_memory_extraction_refused", "Proposals of the model that were refused, by reason", ["reason"]
)

MOST_TRIES: Final = 5
_READINGS: Final = 2
# Batches without a call that are passed in one go.
_ROUNDS: Final = 20
_FEWEST_MESSAGES: Final = 2
# Besides the calls: reading and storing.
_SPARE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class ExtractionLimits:
    """Bounds of one call: messages, their tokens, known facts that are shown; and the seconds that it may take."""

    messages: int
    tokens: int
    facts: int
    timeout_seconds: float
    concurrency: int


class Extraction:
    """Learns facts, for all users."""

    def __init__(self, unread: UnreadStore, facts: FactStore, model: CountedModel, limits: ExtractionLimits) -> None:
        self._unread = unread
        self._facts = facts
        self._model = model
        self._limits = limits
        self._selection = Selection(facts, most_shown=limits.facts)

    def chore(self) -> Chore:
        """The chore `extract`, one conversation at a time."""
        return Chore(
            "extract",
            self._work,
            concurrency=self._limits.concurrency,
            timeout_seconds=_READINGS * self._limits.timeout_seconds + _SPARE_SECONDS,
            most_tries=MOST_TRIES,
        )

    async def _work(self, owed: Sequence[Owed]) -> None:
        for one in owed:
            await self._extract(one)

    async def _extract(self, owed: Owed) -> None:
        """Reads on until one call was made or nothing is left; what is left then is owed anew."""
        for _ in range(_ROUNDS):
            batch = await self._next(owed)
            if batch is None:
                return
            try:
                await self._read(owed, batch)
            except Stale:
                # Edited, deleted or read by another process meanwhile: what is there now counts.
                log.info("extraction.overtaken", conversation_id=owed.scope_id)
                break
            if not batch.has_more:
                return
            if batch.said:
                break
        await self._unread.owe_rest(owed.user_id, owed.scope_id)

    async def _next(self, owed: Owed) -> Batch | None:
        """The next batch; half as large after each try that failed: what cannot be answered stands alone in the end."""
        most = max(_FEWEST_MESSAGES, self._limits.messages >> owed.tries)
        unread = await self._unread.read(owed.user_id, owed.scope_id, most=most)
        return None if unread is None else next_batch(unread, most_tokens=self._limits.tokens >> owed.tries)

    async def _read(self, owed: Owed, batch: Batch) -> None:
        """Learns from a batch, or passes over it. Raises Stale, ServiceError and Unworkable."""
        if not batch.said:
            await self._facts.change(owed.user_id, [], basis=_basis(batch, batch.after_sequence, batch.last_sequence))
            TURNS.labels("without_call").inc(batch.turn_count)
            return
        try:
            await self._learn(owed.user_id, batch)
        except (InvalidArgument, Unworkable) as error:
            if owed.tries + 1 < MOST_TRIES:
                raise
            log.error(  # noqa: TRY400 - the error is no surprise, and its trace tells nothing
                "extraction.passed_over", conversation_id=owed.scope_id, error=type(error).__name__
            )
            await self._facts.change(owed.user_id, [], basis=_basis(batch, batch.after_sequence, batch.last_sequence))
            TURNS.labels("passed_over").inc(batch.turn_count)

    async def _learn(self, user_id: str, batch: Batch) -> None:
        selected = await self._selection.select(user_id, batch)
        proposals = await self._ask(input_text(batch, selected.shown))
        shown = {number: fact.id for number, fact in enumerate(selected.shown, 1)}
        known, after = selected.known, batch.after_sequence
        while True:
            # Tens of milliseconds where there is much to compare.
            settled = await asyncio.to_thread(settle, proposals, batch=batch, known=known, shown=shown)
            basis = _basis(batch, after, settled.last_sequence)
            outcomes = await self._facts.change(user_id, settled.changes, basis=basis)
            for outcome in outcomes:
                CHANGES.labels(outcome.result).inc()
            for reason in settled.refused:
                REFUSED.labels(reason).inc()
            if not settled.rest:
                break
            proposals, after = settled.rest, settled.last_sequence
            known = (await self._selection.select(user_id, batch)).known
        TURNS.labels("with_call").inc(batch.turn_count)

    async def _ask(self, text: str) -> Sequence[Proposal]:
        """What the model proposes; an answer of another form is asked for once more. Raises ServiceError, Unworkable."""
        for _ in range(_READINGS):
            try:
                async with asyncio.timeout(self._limits.timeout_seconds):
                    answer = await self._model.ask(instructions=INSTRUCTIONS, text=text, schema=SCHEMA)
            except TimeoutError:
                raise timed_out(self._model.name) from None
            except InvalidArgument as error:
                self._refused(error)
            try:
                return read_answer(answer.text)
            except MalformedAnswer:
                REFUSED.labels("malformed_answer").inc()
        raise Unworkable("malformed answer")

    def _refused(self, error: InvalidArgument) -> NoReturn:
        """A model that there is not is the operator's to mend, and no fault of what was said."""
        if error.metadata.get("parameter") == "model":
            raise access_refused(self._model.name) from error
        raise error


def _basis(batch: Batch, after_sequence: int, last_sequence: int) -> Basis:
    messages = {one.turn.message_id: one.turn.revision for one in batch.said}
    return Basis(batch.conversation_id, messages, last_sequence, after_sequence)
