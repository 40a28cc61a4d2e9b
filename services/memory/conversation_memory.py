"""What memory does with a conversation: record its turns, give the context for the next one, forget.

Owns the agreement of the two tiers. Postgres decides and is asked in every call; the working set follows, and may miss
any message about it. Chat records a turn between any two contexts, so a recorded turn is appended to the block that is
held: sending the new lines costs less than reading the conversation again, and without it no context would ever be
found there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.memory.context import Block, Context, assemble
from services.memory.store import Eviction, Head, Recorded, TurnStore
from services.memory.turns import ConversationKey, Turn
from services.memory.working_set import Growth, WorkingSet
from services.runtime.errors import Aborted, ServiceError

# Keeps what Redis is given at once well within the time that one operation may take.
_EVICTED_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """Tokens of a context when the caller names none, the most that it may ask for, and messages that are looked at."""

    default_tokens: int
    most_tokens: int
    most_messages: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Conversations of which nothing was recorded: `refused`, since they contradict what is known; `busy`, for now."""

    refused: Sequence[ConversationKey]
    busy: Sequence[ConversationKey]


class ConversationMemory:
    """The first tier of memory."""

    def __init__(self, store: TurnStore, working_set: WorkingSet, limits: ContextLimits) -> None:
        self._store = store
        self._working_set = working_set
        self._limits = limits

    async def record(self, key: ConversationKey, told: Sequence[Turn]) -> int:
        """Records turns, idempotently; returns how far the conversation is known now, 0 when it was deleted.

        Raises InvalidArgument when a message belongs to another conversation or another place.
        """
        results = await self._store.record({key: told}, user_id=key.user_id)
        recorded = results[key]
        if isinstance(recorded, ServiceError):
            raise recorded
        if recorded is None:
            return 0
        await self._hold({key: recorded})
        return recorded.head.last_sequence

    async def record_many(self, told: Mapping[ConversationKey, Sequence[Turn]], *, skip_busy: bool) -> LeftOut:
        """Records turns of conversations of whichever users, idempotently; returns those of which it took nothing."""
        results = await self._store.record(told, user_id=None, skip_busy=skip_busy)
        await self._hold({key: result for key, result in results.items() if isinstance(result, Recorded)})
        failed = [(key, result) for key, result in results.items() if isinstance(result, ServiceError)]
        return LeftOut(
            refused=[key for key, error in failed if not isinstance(error, Aborted)],
            busy=[key for key, error in failed if isinstance(error, Aborted)],
        )

    async def _hold(self, recorded: Mapping[ConversationKey, Recorded]) -> None:
        """Brings held blocks up to date where a conversation only grew; else the next reader puts a new one."""
        await self._working_set.follow([_growth(key, one) for key, one in recorded.items() if one.appended is not None])

    async def assemble(self, key: ConversationKey, *, token_budget: int) -> Context:
        """The latest turns that fit the budget (0: the default; more than the greatest: the greatest), see context.py.

        Empty for a conversation that is unknown or deleted.
        """
        budget = min(token_budget or self._limits.default_tokens, self._limits.most_tokens)
        head = await self._store.head(key)
        if head is None:
            return Context()
        block = await self._working_set.read(key, head.version)
        context = None if block is None else self._cut(block, head, budget)
        return await self._assemble_from_store(key, budget) if context is None else context

    async def _assemble_from_store(self, key: ConversationKey, budget: int) -> Context:
        # At least what a call without a budget needs, so that a small context does not leave a block too short for the next.
        tokens = max(budget, self._limits.default_tokens)
        found = await self._store.latest(key, most_messages=self._limits.most_messages, most_tokens=tokens)
        if found is None:
            return Context()
        head, block = found
        await self._working_set.put(key, head.version, block)
        context = self._cut(block, head, budget)
        if context is None:
            raise RuntimeError("a block of the store did not reach back far enough")
        return context

    def _cut(self, block: Block, head: Head, budget: int) -> Context | None:
        return assemble(
            block,
            last_sequence=head.last_sequence,
            token_budget=budget,
            most_messages=self._limits.most_messages,
        )

    async def forget(self, key: ConversationKey, *, from_sequence: int) -> int:
        """Forgets the conversation for good (0), or its turns from `from_sequence` on; counts what went. Idempotent.

        When the working set cannot be reached, its eviction stays owed and is swept later; see evictions.py.
        """
        if from_sequence == 0:
            count, eviction = await self._store.delete_conversation(key)
        else:
            shortened = await self._store.delete_end(key, from_sequence=from_sequence)
            if shortened is None:
                return 0
            count, eviction = shortened
        await self.settle_all([eviction])
        return count

    async def settle_all(self, evictions: Sequence[Eviction]) -> bool:
        """Makes the working set forget; False when it did not answer, and evictions stay owed."""
        for batch in (evictions[start : start + _EVICTED_AT_ONCE] for start in range(0, len(evictions), _EVICTED_AT_ONCE)):
            if not await self._working_set.evict({eviction.key: eviction.version for eviction in batch}):
                return False
            await self._store.settle(batch)
        return True

    async def settle_owed(self, most: int) -> bool:
        """Settles evictions that are owed, `most` at most; True when there may be more that can be settled now."""
        owed = await self._store.owed_evictions(most)
        return await self.settle_all(owed) and len(owed) == most


def _growth(key: ConversationKey, recorded: Recorded) -> Growth:
    is_new = recorded.previous is None or recorded.previous.last_sequence == 0
    from_version = None if recorded.previous is None or is_new else recorded.previous.version
    return Growth(key, from_version=from_version, version=recorded.head.version, turns=recorded.appended or ())
