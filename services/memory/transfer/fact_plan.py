"""Which facts of an import are new, and what they become among those that are there.

Owns the rules on plain values. Invariants: no two current facts have the same words; a history is flat, its versions
pointing at a fact that is there; a version whose fact is neither known nor told of before stays as a closed fact.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from services.memory.records import Fact, body_hash


@dataclass(frozen=True, slots=True)
class KnownFact:
    """What is known of a fact that is there, without its text."""

    id: str
    superseded_by: str | None
    body_hash: bytes
    is_current: bool


class NewFacts:
    """Takes facts in their order; `new` are those to write."""

    def __init__(self, known: Iterable[KnownFact]) -> None:
        self.new: list[Fact] = []
        known = list(known)
        # By the id that was told: the fact that a version of it points at.
        self._heads = {fact.id: fact.superseded_by or fact.id for fact in known}
        self._current = {fact.body_hash: fact.id for fact in known if fact.is_current}

    def take(self, fact: Fact) -> None:
        """Takes a fact, unless it is known, or says what a current one says."""
        if fact.id in self._heads:
            return
        if fact.superseded_by is not None:
            fact = replace(fact, superseded_by=self._heads.get(fact.superseded_by))
        elif fact.invalidate_time is None:
            same = self._current.setdefault(body_hash(fact.text), fact.id)
            if same != fact.id:
                self._heads[fact.id] = same
                return
        self._heads[fact.id] = fact.superseded_by or fact.id
        self.new.append(fact)

    @property
    def versioned(self) -> Sequence[str]:
        """The facts that have new versions."""
        return list({fact.superseded_by for fact in self.new if fact.superseded_by is not None})
