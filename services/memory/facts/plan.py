"""What follows from changes of facts: which rows there are afterwards.

Owns the rules of merging, replacing and closing, on plain values: the store loads what is concerned, a plan works out the
rest, the store writes it. Invariants: no two current facts have the same words; what a fact said before is a version with
an id of its own, the fact keeps its own; a history is flat; a version is never forgotten later than its fact.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from services.memory.facts.changes import (
    MAX_SOURCES,
    Add,
    Change,
    Close,
    Confirm,
    Content,
    FactEdit,
    Outcome,
    Replace,
)
from services.memory.facts.refusals import begins_too_late, memory_exists, memory_not_found
from services.memory.records import Fact, Origin, Source, Stamp, body_hash, least_trusted
from services.runtime.ids import new_id

# From what lasts by itself to what goes with its sources.
_ORIGINS: Final[Sequence[Origin]] = ("stated", "imported", "remembered", "extracted")
_SAID: Final = frozenset({"text", "subject", "attribute", "valid_from"})
_MOMENT: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Writes:
    """What is to be written. `hidden` are current facts whose words go: they first, so that others can have their words.

    The stored sources of `unsourced` facts are dropped, those of `resourced` ones written.
    `moved` names the version that takes over the embedding of a fact, `heirs` the fact that takes over the history of
    another, `shortened` facts whose versions are to be forgotten with them at the latest, `versioned` those with new ones.
    """

    hidden: Sequence[str]
    rows: Sequence[Fact]
    unsourced: Sequence[str]
    resourced: Sequence[Fact]
    moved: Mapping[str, str]
    heirs: Mapping[str, str]
    shortened: Sequence[str]
    versioned: Sequence[str]


class Plan:
    """Changes of the facts of one user, one after the other. `known` are the facts that they may concern, expired ones not.

    `room` is how many facts more the user may have.
    """

    def __init__(self, known: Iterable[Fact], *, now: datetime, room: int) -> None:
        self._stored = {fact.id: fact for fact in known}
        self._facts = dict(self._stored)
        self._current = {body_hash(fact.text): fact.id for fact in self._facts.values() if _is_current(fact)}
        self._now = now
        self._room = room
        self._moved: dict[str, str] = {}
        self._heirs: dict[str, str] = {}

    def make(self, change: Change) -> Outcome:
        """Makes a change, and says what came of it."""
        # Of several in one plan each has a time of its own, so that a history has an order.
        self._now += _MOMENT
        if isinstance(change, Add):
            return self._add(change)
        fact = self._facts.get(change.fact_id)
        if fact is None or not _is_current(fact) or not _is_as_seen(fact, change.seen_text):
            return Outcome("not_current", change.fact_id)
        if isinstance(change, Replace):
            return self._replace(fact, change)
        if isinstance(change, Close):
            return self._close(fact, change)
        return self._confirm(fact, change)

    def edit(self, fact_id: str, edit: FactEdit, *, stamped_by: Stamp) -> None:
        """Changes what is different. Raises NotFound, InvalidArgument and AlreadyExists (MEMORY_EXISTS).

        New words are those of who writes them; without new words a fact is trusted as before.
        """
        fact = self._facts.get(fact_id)
        if fact is None or not _is_current(fact):
            raise memory_not_found(fact_id)
        changed: dict[str, Any] = {name: value for name, value in edit.items() if value != getattr(fact, name)}
        new = replace(fact, **changed)
        if new.valid_from and new.valid_to and new.valid_from > new.valid_to:
            raise begins_too_late()
        if "text" in changed:
            other = self._current.get(body_hash(new.text), fact_id)
            if other != fact_id:
                raise memory_exists(other)
            new = _in_words_of(new, stamped_by)
        if _SAID & changed.keys():
            since = new.valid_from if "valid_from" in changed else None
            self._supersede(fact, new, valid_to=since)
        else:
            self._put(new)

    def _add(self, content: Content) -> Outcome:
        same = self._current.get(body_hash(content.text))
        if same is not None:
            self._put(_merged(self._facts[same], content))
            return Outcome("merged", same)
        if self._room <= 0:
            return Outcome("full", "")
        self._room -= 1
        fact = _fact(new_id(), content, record_time=self._now)
        self._put(fact)
        return Outcome("added", fact.id)

    def _replace(self, fact: Fact, content: Replace) -> Outcome:
        same = self._current.get(body_hash(content.text))
        if same is None:
            new = _fact(fact.id, content, record_time=self._now)
            self._supersede(fact, new, valid_to=content.valid_from)
            return Outcome("replaced", fact.id)
        self._put(_merged(self._facts[same], content))
        if same != fact.id:
            self._inherit(fact, same, valid_to=content.valid_from)
        return Outcome("merged", same)

    def _close(self, fact: Fact, change: Close) -> Outcome:
        self._put(replace(fact, invalidate_time=self._now, valid_to=self._end(fact, change.valid_to)))
        return Outcome("closed", fact.id)

    def _confirm(self, fact: Fact, change: Confirm) -> Outcome:
        stamp = least_trusted(fact.stamped_by, change.stamped_by)
        self._put(replace(fact, stamped_by=stamp, sources=_joined(fact.sources, change.sources)))
        return Outcome("confirmed", fact.id)

    def _supersede(self, fact: Fact, new: Fact, *, valid_to: datetime | None) -> None:
        """The fact is `new` from now on; what it was becomes a version."""
        version = replace(
            fact,
            id=new_id(),
            invalidate_time=self._now,
            superseded_by=fact.id,
            valid_to=self._end(fact, valid_to),
            expire_time=_earlier(fact.expire_time, new.expire_time),
        )
        self._put(version)
        # The first version has what the store knows of the fact; what a later one said was never embedded.
        self._moved.setdefault(fact.id, version.id)
        self._put(replace(new, record_time=self._now))

    def _inherit(self, fact: Fact, heir: str, *, valid_to: datetime | None) -> None:
        """The fact and its history become history of another, which says the same as was to replace it."""
        end, expire_time = self._end(fact, valid_to), _earlier(fact.expire_time, self._facts[heir].expire_time)
        closed = replace(fact, invalidate_time=self._now, valid_to=end, expire_time=expire_time, superseded_by=heir)
        self._put(closed)
        for version in [one for one in self._facts.values() if one.superseded_by == fact.id]:
            self._put(replace(version, superseded_by=heir))
        self._heirs = {old: heir if to == fact.id else to for old, to in self._heirs.items()} | {fact.id: heir}

    def _end(self, fact: Fact, told: datetime | None) -> datetime:
        """Until when a fact held in the world: what is known already, what was told, or now; never before it began."""
        end = fact.valid_to or told or self._now
        return end if fact.valid_from is None else max(end, fact.valid_from)

    def _put(self, fact: Fact) -> None:
        before = self._facts.get(fact.id)
        if before is not None and _is_current(before):
            self._current.pop(body_hash(before.text), None)
        if _is_current(fact):
            self._current[body_hash(fact.text)] = fact.id
        self._facts[fact.id] = fact

    def writes(self) -> Writes:
        """The difference to what was known."""
        rows = [fact for fact in self._facts.values() if fact != self._stored.get(fact.id)]
        old = [(self._stored[fact.id], fact) for fact in rows if fact.id in self._stored]
        resourced = [fact for fact in rows if fact.sources != self._known_sources(fact.id)]
        return Writes(
            hidden=[fact.id for before, fact in old if _is_current(before) and _loses_its_words(before, fact)],
            rows=rows,
            unsourced=[fact.id for fact in resourced if self._known_sources(fact.id)],
            resourced=resourced,
            moved=self._moved,
            heirs=self._heirs,
            shortened=[fact.id for before, fact in old if fact.expire_time not in (None, before.expire_time)],
            versioned=list(dict.fromkeys(fact.superseded_by for fact in rows if fact.superseded_by is not None)),
        )

    def _known_sources(self, fact_id: str) -> Sequence[Source]:
        return self._stored[fact_id].sources if fact_id in self._stored else ()


def _is_current(fact: Fact) -> bool:
    return fact.invalidate_time is None


def _is_as_seen(fact: Fact, seen_text: str | None) -> bool:
    return seen_text is None or body_hash(seen_text) == body_hash(fact.text)


def _loses_its_words(before: Fact, after: Fact) -> bool:
    return not _is_current(after) or body_hash(before.text) != body_hash(after.text)


def _fact(fact_id: str, content: Content, *, record_time: datetime) -> Fact:
    return Fact(
        id=fact_id,
        text=content.text,
        subject=content.subject,
        attribute=content.attribute,
        importance=content.importance,
        stamped_by=content.stamped_by,
        origin=content.origin,
        valid_from=content.valid_from,
        valid_to=None,
        record_time=record_time,
        invalidate_time=None,
        superseded_by=None,
        expire_time=content.expire_time,
        sources=_joined((), content.sources),
    )


def _merged(fact: Fact, content: Content) -> Fact:
    """A fact that was said again, by whomever."""
    return replace(
        fact,
        attribute=fact.attribute or content.attribute,
        importance=max(fact.importance, content.importance),
        stamped_by=least_trusted(fact.stamped_by, content.stamped_by),
        origin=min(fact.origin, content.origin, key=_ORIGINS.index),
        valid_from=fact.valid_from or _unless_after(content.valid_from, fact.valid_to),
        expire_time=_merged_expiry(fact, content),
        sources=_joined(fact.sources, content.sources),
    )


def _merged_expiry(fact: Fact, content: Content) -> datetime | None:
    """The later, never before the time. What is overheard in a conversation keeps nothing longer than the user asked."""
    if content.origin == "extracted":
        return fact.expire_time
    if fact.expire_time is None or content.expire_time is None:
        return None
    return max(fact.expire_time, content.expire_time)


def _unless_after(time: datetime | None, end: datetime | None) -> datetime | None:
    return time if time is None or end is None or time <= end else None


def _in_words_of(fact: Fact, stamped_by: Stamp) -> Fact:
    """A fact with new words. The user's own come from no message; a service's do not get more trust than there was."""
    if stamped_by == "user":
        return replace(fact, stamped_by="user", origin="stated", sources=())
    return replace(fact, stamped_by=least_trusted(fact.stamped_by, stamped_by))


def _joined(known: Sequence[Source], new: Sequence[Source]) -> Sequence[Source]:
    """Each message once, the latest joined if there are too many."""
    by_message = {source.message_id: source for source in (*known, *new)}
    return tuple(by_message.values())[-MAX_SOURCES:]


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    return min((time for time in (one, other) if time is not None), default=None)
