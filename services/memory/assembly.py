"""What the model is told in one turn: the conversation's latest messages, and what is remembered beyond them.

Owns what goes in and how long it may take. Invariants: the messages are never kept waiting for the rest, whose parts have a
deadline each, from the beginning of the call on, and are named where they are missing; nothing is said twice; memories stay
within their budget, chosen by how well they fit and told in the order of time; summaries are given as they were written, so
that the same state gives the same bytes. It refuses to look for memories where the user said nothing to look for.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Final, TypeGuard, TypeVar

import structlog

from services.memory.context import Context
from services.memory.conversation_memory import ConversationMemory
from services.memory.excerpt import excerpt
from services.memory.extraction.vocabulary import FUNCTION_WORDS, SMALL_TALK
from services.memory.extraction.words import words
from services.memory.recall.search import Found, Recall, SearchResult
from services.memory.summaries.records import Summary, SummaryPair
from services.memory.summaries.store import SummaryStore
from services.memory.tokens import text_tokens
from services.memory.turns import ConversationKey
from services.runtime.database import DATABASE_FAILURES
from services.runtime.errors import ServiceError

log = structlog.get_logger(__name__)
Part = TypeVar("Part")

_MOST_FOUND: Final = 30
# What stands around a memory when a model is told of it: its id, its date, who said it.
_AROUND_TOKENS: Final = 24
# No single memory takes more than this share of the budget: a long one is cut around what was asked.
_SHARE: Final = 4
_CHARACTERS_A_TOKEN: Final = 3
_NOTHING: Final = SearchResult((), ())
_TELLS_NOTHING: Final = FUNCTION_WORDS | SMALL_TALK | {"why", "how"}


@dataclass(frozen=True, slots=True)
class AssemblyLimits:
    """Tokens of memories when the caller names none, the most that it may ask for, and when each part is late.

    `recall_seconds` and `summaries_seconds` count from the beginning of the call.
    """

    default_memory_tokens: int
    most_memory_tokens: int
    recall_seconds: float
    summaries_seconds: float


@dataclass(frozen=True, slots=True)
class Assembled:
    """The context of one turn; `memories` are in the order of time, `degraded` names the parts that it had to do without."""

    context: Context
    memories: Sequence[Found] = ()
    person_summary: str = ""
    conversation_summary: str = ""
    degraded: Sequence[str] = ()


class Assembly:
    """Puts contexts together. Without `summaries`, as where they are switched off, there are none."""

    def __init__(
        self, conversations: ConversationMemory, recall: Recall, summaries: SummaryStore | None, limits: AssemblyLimits
    ) -> None:
        self._conversations = conversations
        self._recall = recall
        self._summaries = summaries
        self._limits = limits

    async def assemble(self, key: ConversationKey, *, token_budget: int, query: str, memory_token_budget: int) -> Assembled:
        """The context of a conversation; with a query also the summaries and what is remembered about it.

        A budget of 0 is the default, one beyond the greatest is the greatest.
        """
        if not query:
            return Assembled(await self._conversations.assemble(key, token_budget=token_budget))
        degraded = list[str]()
        context, pair, found = await self._parts(key, query, token_budget, degraded)
        budget = min(memory_token_budget or self._limits.default_memory_tokens, self._limits.most_memory_tokens)
        return Assembled(
            context,
            sorted(_chosen(found.found, query, budget), key=_time),
            person_summary=pair.person.text if pair.person else "",
            conversation_summary=pair.conversation.text if _tells_more(pair.conversation, context) else "",
            degraded=sorted({*degraded, *found.degraded}),
        )

    async def _parts(
        self, key: ConversationKey, query: str, token_budget: int, degraded: list[str]
    ) -> tuple[Context, SummaryPair, SearchResult]:
        """All at once; recall waits for the messages once it has asked for the query's vector. Raises what those raise."""
        limits, began = self._limits, asyncio.get_running_loop().time()
        try:
            async with asyncio.TaskGroup() as group:
                read, end = partial(self._read_summaries, key), began + limits.summaries_seconds
                summaries = group.create_task(_in_time("summaries", read, SummaryPair(), end, degraded))
                context = group.create_task(self._conversations.assemble(key, token_budget=token_budget))
                recalled, end = partial(self._find, key.user_id, query, context), began + limits.recall_seconds
                found = group.create_task(_in_time("recall", recalled, _NOTHING, end, degraded))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return context.result(), summaries.result(), found.result()

    async def _read_summaries(self, key: ConversationKey) -> SummaryPair:
        return SummaryPair() if self._summaries is None else await self._summaries.read_pair(key)

    async def _find(self, user_id: str, query: str, context: asyncio.Task[Context]) -> SearchResult:
        """What the messages do not tell: those that they are is asked last, so as not to find them again."""
        if not asks_something(query):
            return _NOTHING
        return await self._recall.search(user_id, query, limit=_MOST_FOUND, excluded=partial(_told, context))


def asks_something(query: str) -> bool:
    """Whether a text has a word to look for; "ok, thanks" has none."""
    return any(word not in _TELLS_NOTHING for word in words(query))


async def _told(context: asyncio.Task[Context]) -> frozenset[str]:
    # A search that is late is cancelled here, and must not take the messages along.
    await asyncio.wait([context])
    return frozenset(turn.message_id for turn in context.result().turns)


async def _in_time(part: str, work: Callable[[], Awaitable[Part]], instead: Part, end: float, degraded: list[str]) -> Part:
    """What a part gives, or what stands in for it where it is late or away; `end` is a time of the loop's clock.

    The work begins here, so that what is cancelled before it was begun leaves nothing that nobody awaits.
    """
    try:
        async with asyncio.timeout_at(end):
            return await work()
    except (TimeoutError, ServiceError, *DATABASE_FAILURES) as error:
        log.warning("context.degraded", part=part, error=type(error).__name__)
        degraded.append(part)
        return instead


def _tells_more(summary: Summary | None, context: Context) -> TypeGuard[Summary]:
    """Whether a conversation's summary is of messages before those that are told, or behind a hole where these end."""
    if summary is None:
        return False
    begins_later = context.turns[0].sequence > 1 if context.turns else context.last_sequence > 0
    return begins_later or summary.last_sequence > context.last_sequence


def _chosen(found: Sequence[Found], query: str, budget: int) -> Iterator[Found]:
    """The best that fit, each cut to its share; one that does not fit leaves its place to the next."""
    asked = [word for word in words(query) if word not in FUNCTION_WORDS]
    for one in found:
        short = _shortened(one, asked, budget)
        cost = text_tokens(_text(short)) + _AROUND_TOKENS
        if cost <= budget:
            budget -= cost
            yield short


def _shortened(found: Found, asked: Sequence[str], budget: int) -> Found:
    most = max(budget // _SHARE, _AROUND_TOKENS) * _CHARACTERS_A_TOKEN
    if found.turn is None or len(found.turn.turn.text) <= most:
        return found
    cut = replace(found.turn.turn, text=excerpt(found.turn.turn.text, asked, most_characters=most))
    return replace(found, turn=replace(found.turn, turn=cut))


def _text(found: Found) -> str:
    if found.fact is not None:
        return found.fact.text
    return found.turn.turn.text if found.turn else ""


def _time(found: Found) -> datetime:
    """When it was said, or has held since; what that is not known of, when it was recorded."""
    if found.turn is not None:
        return found.turn.turn.create_time
    if found.fact is None:
        raise ValueError("something that was found is a fact or a message")
    return found.fact.valid_from or found.fact.record_time
