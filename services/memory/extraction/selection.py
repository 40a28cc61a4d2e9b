"""Which known facts matter to a batch.

Owns the choice of those that the model is shown: bounded, first what there is one of (a home, a name), since what is said
about it may contradict it without a word in common; then what shares words with the batch; then what matters most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.memory.extraction.attributes import is_single, normal_attribute
from services.memory.extraction.batch import Batch
from services.memory.facts.store import FactStore
from services.memory.records import Fact

# Known ones are compared with proposals, which costs no tokens.
_MOST_KNOWN: Final = 500
_SINGLE_SHARE: Final = 0.4


@dataclass(frozen=True, slots=True)
class Selected:
    """Facts that proposals are compared with, and those of them that the model is shown."""

    known: Sequence[Fact]
    shown: Sequence[Fact]


class Selection:
    """Chooses among the current facts of a user."""

    def __init__(self, facts: FactStore, *, most_shown: int) -> None:
        self._facts = facts
        self._most_shown = most_shown

    async def select(self, user_id: str, batch: Batch) -> Selected:
        """The facts for a batch."""
        live = await self._facts.read_live(user_id, most=_MOST_KNOWN)
        if len(live) <= self._most_shown:
            return Selected(live, live)
        said = "\n".join(one.text for one in batch.said)
        similar = await self._facts.read_similar(user_id, said, most=self._most_shown)
        single = [fact for fact in live if is_single(normal_attribute(fact.attribute))]
        first = single[: int(self._most_shown * _SINGLE_SHARE)]
        ordered = {fact.id: fact for fact in (*first, *similar, *live)}
        return Selected(list(ordered.values()), list(ordered.values())[: self._most_shown])
