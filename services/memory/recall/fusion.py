"""One ranking out of several: weighted reciprocal rank fusion, and what stands beside what was found.

Owns how much each way of finding counts. Invariant: ranks count, never scores, whose scales differ; the same legs give the
same order. Cormack, Clarke, Büttcher: Reciprocal Rank Fusion outperforms Condorcet (2009); a constant of 20 instead of
their 60 gave 4.8 points of R@10 on ten long dialogues.
"""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Final, NamedTuple

from services.memory.recall.moments import Window

# Beside so many of the best is looked; further down it would be noise.
_CENTRES: Final = 15
# Everything is some distance from everything: what is not half as near as the nearest is not meant. Who remembers
# little would find all of it otherwise, and what stands beside the right answer before it.
_NEAR_ENOUGH: Final = 0.5


class Place(NamedTuple):
    """A message, by where it stands."""

    conversation_id: str
    sequence: int

    def beside(self, distance: int) -> "Place":
        """The place so much later."""
        return Place(self.conversation_id, self.sequence + distance)


class FactKey(NamedTuple):
    """A fact, by its id."""

    id: str


# Tuples, whose hashes are made in C: a search looks hundreds of them up, several times.
Key = Place | FactKey


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one leg found: `score` orders it within its leg, `moment` is when it was said, or since when it holds.

    `sources` are the messages that a fact was learned from. What is not embedded yet can only be found by its words.
    """

    key: Key
    score: float
    moment: datetime
    sources: Sequence[Place] = ()
    is_embedded: bool = True


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each leg counts (0: not at all); `rank_constant` says how slowly that falls with the rank."""

    words: float
    meaning: float
    previous: float
    facts: float
    neighbour: float
    time: float
    rank_constant: int


@dataclass(frozen=True, slots=True)
class Ranked:
    """Something that was found, and by which legs."""

    key: Key
    score: float
    found_by: Sequence[str]


def fuse(
    *,
    words: Sequence[Candidate],
    meaning: Sequence[Candidate],
    recent: Sequence[Candidate],
    window: Window | None,
    weights: Weights,
) -> list[Ranked]:
    """The ranking of everything that was found, the best first.

    `recent` are the latest of the window, for a query that says little but when.
    """
    votes = _Votes(weights.rank_constant)
    ordered_words, ordered_meaning = _ordered(words), _near(_ordered(meaning))
    votes.cast("words", weights.words, (one.key for one in ordered_words))
    votes.cast("meaning", weights.meaning, (one.key for one in ordered_meaning))
    if ordered_meaning:
        # What was said a moment ago has no vector yet, and would stand behind all that has: its words speak for its meaning.
        votes.cast("words", weights.meaning, (None if one.is_embedded else one.key for one in ordered_words))
    votes.cast("previous", weights.previous, _followers(ordered_meaning))
    votes.cast("facts", weights.facts, _sources(ordered_words, ordered_meaning, weights))
    if window is not None:
        moments = {one.key: one.moment for one in (*words, *meaning)}
        inside = [key for key in votes.order() if key in moments and window.holds(moments[key])]
        votes.cast("time", weights.time, dict.fromkeys((*inside, *(one.key for one in _ordered(recent)))))
    votes.cast_beside("neighbour", weights.neighbour)
    return votes.ranking()


class _Votes:
    def __init__(self, rank_constant: int) -> None:
        self._constant = rank_constant
        self._scores: dict[Key, float] = {}
        self._legs: dict[Key, list[str]] = {}

    def cast(self, leg: str, weight: float, keys: Iterable[Key | None]) -> None:
        """A vote for each by its rank; None holds a place for nobody."""
        if weight > 0:
            for rank, key in enumerate(keys, 1):
                if key is not None:
                    self._add(leg, key, weight / (self._constant + rank))

    def cast_beside(self, leg: str, weight: float) -> None:
        """The messages before and after the best ones; each by its best neighbour only.

        By that alone none gets as high as its neighbour: to stand beside is no better a reason than to fit. So what repeats
        a message comes after it, and what leads already is not lifted by what follows.
        """
        if weight <= 0:
            return
        lifts: dict[Key, float] = {}
        centres = [key for key in self.order() if isinstance(key, Place)][:_CENTRES]
        for rank, centre in enumerate(centres, 1):
            below = math.nextafter(self._scores[centre], 0.0)
            for neighbour in (centre.beside(1), centre.beside(-1)):
                room = below - self._scores.get(neighbour, 0.0)
                lifts.setdefault(neighbour, min(weight / (self._constant + rank), room))
        for key, lift in lifts.items():
            if lift > 0:
                self._add(leg, key, lift)

    def _add(self, leg: str, key: Key, score: float) -> None:
        self._scores[key] = self._scores.get(key, 0.0) + score
        legs = self._legs.setdefault(key, [])
        if leg not in legs:
            legs.append(leg)

    def order(self) -> list[Key]:
        return [key for key, _ in self._best_first()]

    def ranking(self) -> list[Ranked]:
        return [Ranked(key, score, self._legs[key]) for key, score in self._best_first()]

    def _best_first(self) -> list[tuple[Key, float]]:
        """The best first; of equal ones the first that was voted for."""
        return sorted(self._scores.items(), key=itemgetter(1), reverse=True)


def _ordered(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Facts and messages in one ranking: a fact stands where its words put it, and before a message that is as good."""
    return sorted(candidates, key=lambda one: (-one.score, isinstance(one.key, Place), one.key))


def _near(ordered: Sequence[Candidate]) -> list[Candidate]:
    return [one for one in ordered if one.score > max(0.0, _NEAR_ENOUGH * ordered[0].score)]


def _followers(ordered: Iterable[Candidate]) -> Iterator[Key]:
    """The messages after those that fit: an answer is found by its question."""
    return (one.key.beside(1) for one in ordered if isinstance(one.key, Place))


def _sources(words: Sequence[Candidate], meaning: Sequence[Candidate], weights: Weights) -> Iterable[Key]:
    """The messages that the best facts were learned from; each by its best fact only."""
    facts = _Votes(weights.rank_constant)
    known: Mapping[Hashable, Candidate] = {one.key: one for one in (*words, *meaning)}
    for weight, leg in ((weights.words, words), (weights.meaning, meaning)):
        facts.cast("facts", weight, (one.key for one in leg if isinstance(one.key, FactKey)))
    return dict.fromkeys(source for key in facts.order() for source in known[key].sources)
