"""From proposals to changes of facts.

Owns what a proposal comes to, given the facts that are known. Invariants: nothing is taken that validation refuses; what is
known already is confirmed, however it was proposed; a contradiction replaces what it contradicts; a model changes by their
numbers only facts that it was shown. It decides one proposal after the other, by the order in which they were said, each on
what those before it changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, TypedDict

from services.memory.extraction.attributes import is_single, normal_attribute, normal_subject
from services.memory.extraction.batch import Batch, Shown
from services.memory.extraction.likeness import Claim, are_related, contradicts, denies, repeats, say_the_same
from services.memory.extraction.proposals import Proposal, date_of, is_plausible
from services.memory.extraction.validation import (
    Reason,
    Refused,
    check_grounds,
    check_mention,
    check_names,
    check_text,
    sources_of,
)
from services.memory.facts.changes import Add, Change, Close, Confirm, Replace
from services.memory.records import Fact, Origin, Source, Stamp

_FORMER: Final = "former"
_LEAST, _MOST = 1, 10


@dataclass(frozen=True, slots=True)
class Settled:
    """What the first proposals come to, up to the message `last_sequence`; `rest` are to be judged when that is stored."""

    changes: Sequence[Change]
    refused: Sequence[Reason]
    rest: Sequence[Proposal]
    last_sequence: int


def settle(proposals: Sequence[Proposal], *, batch: Batch, known: Sequence[Fact], shown: Mapping[int, str]) -> Settled:
    """Judges proposals, given the facts that are known now, and the ids of those that the model was shown, by number."""
    judgement, refused = _Judgement.on(batch, known), list[Reason]()
    ordered = sorted(proposals, key=lambda one: _last_sequence(one, batch))
    for proposal in ordered:
        try:
            judgement.judge(proposal, shown)
        except Refused as error:
            refused.append(error.reason)
        except _Unsettled:
            # Once more without what was said since: that what it changes is there when it comes.
            since = _last_sequence(proposal, batch)
            place = next(place for place, one in enumerate(ordered) if _last_sequence(one, batch) == since)
            first = settle(ordered[:place], batch=batch, known=known, shown=shown)
            return replace(first, rest=ordered[place:], last_sequence=since - 1)
    return Settled(judgement.changes, refused, (), batch.last_sequence)


class _Unsettled(Exception):
    """The proposal changes a fact that is only about to be added: it is to be judged again when that one is there."""


class _Content(TypedDict):
    text: str
    subject: str
    attribute: str
    importance: int
    stamped_by: Stamp
    origin: Origin
    sources: Sequence[Source]


@dataclass(slots=True)
class _Known:
    """A current fact and its messages; without an id one that is about to be added, by the change at `added`.

    That one was said up to `last_sequence`.
    """

    claim: Claim
    fact_id: str | None = None
    valid_from: datetime | None = None
    message_ids: frozenset[str] = frozenset()
    added: int = -1
    last_sequence: int = 0


@dataclass(slots=True)
class _Judgement:
    """The changes that the proposals of one batch come to."""

    batch: Batch
    known: list[_Known] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    @classmethod
    def on(cls, batch: Batch, facts: Sequence[Fact]) -> "_Judgement":
        """Begins with the facts that are known now."""
        return cls(batch, [_known(fact) for fact in facts])

    def judge(self, proposal: Proposal, shown: Mapping[int, str]) -> None:
        """Adds what the proposal comes to. Raises Refused, and _Unsettled where the changes so far must be made first."""
        sources = sources_of(proposal, self.batch)
        match proposal.operation:
            case "ADD":
                check_text(proposal)
                check_grounds(proposal, sources)
                self._take(proposal, sources)
            case "UPDATE":
                self._update(proposal, self._target(proposal, shown), sources)
            case "INVALIDATE":
                self._close(self._mentioned(proposal, shown, sources), proposal, sources)
            case "NOOP" if proposal.fact is not None:
                self._confirm(self._mentioned(proposal, shown, sources), sources)

    def _target(self, proposal: Proposal, shown: Mapping[int, str]) -> _Known | None:
        """The fact that is meant; None for one that is not current any more."""
        if proposal.fact is None or proposal.fact not in shown:
            raise Refused("unknown_fact")
        fact_id = shown[proposal.fact]
        return next((one for one in self.known if one.fact_id == fact_id), None)

    def _mentioned(self, proposal: Proposal, shown: Mapping[int, str], sources: Sequence[Shown]) -> _Known:
        target = self._target(proposal, shown)
        if target is None:
            raise Refused("unknown_fact")
        check_mention(target.claim.text, target.claim.subject, target.claim.attribute, sources)
        return target

    def _update(self, proposal: Proposal, target: _Known | None, sources: Sequence[Shown]) -> None:
        check_text(proposal)
        claim = _claim_of(proposal)
        if target is None or not are_related(claim, target.claim):
            check_grounds(proposal, sources)
            self._take(proposal, sources)
            return
        check_grounds(proposal, sources, known_text=target.claim.text)
        claim = replace(claim, subject=target.claim.subject, attribute=claim.attribute or target.claim.attribute)
        if (say_the_same(claim, target.claim) and say_the_same(target.claim, claim)) or _is_repeated(claim, target, sources):
            self._confirm(target, sources)
        else:
            same = next((one for one in self.known if one is not target and say_the_same(claim, one.claim)), None)
            self._replace(target, claim, proposal, sources, same=same)

    def _take(self, proposal: Proposal, sources: Sequence[Shown]) -> None:
        """A fact that is new by the model's word: it may be known, or contradict what is known."""
        claim = _as_of(proposal, sources)
        same = next((one for one in self.known if say_the_same(claim, one.claim)), None)
        against = next((one for one in self.known if one is not same and contradicts(claim, one.claim)), None)
        if against is None:
            said = same or next((one for one in self.known if _is_repeated(claim, one, sources)), None)
            self._add(claim, proposal, sources) if said is None else self._confirm(said, sources)
        elif same is not None and claim.is_negative:
            self._confirm(same, sources)
        elif denies(claim, against.claim):
            self._close(against, proposal, sources)
        elif claim.is_negative and is_single(claim.attribute):
            # "Does not live in Rome" says nothing of where somebody lives.
            raise Refused("outdated")
        else:
            self._replace(against, claim, proposal, sources, same=same)

    def _add(self, claim: Claim, proposal: Proposal, sources: Sequence[Shown]) -> None:
        valid_from, place = _time(proposal.valid_from, sources), len(self.changes)
        self.changes.append(Add(**self._content(claim, proposal, sources), valid_from=valid_from))
        self.known.append(_Known(claim, None, valid_from, added=place, last_sequence=sources[-1].turn.sequence))

    def _replace(
        self, target: _Known, claim: Claim, proposal: Proposal, sources: Sequence[Shown], *, same: _Known | None
    ) -> None:
        """`same` is another fact that says the claim already: in its words both become one, with the history of both."""
        valid_from = _time(proposal.valid_from, sources) or _said(sources)
        if target.valid_from is not None and valid_from < target.valid_from:
            # Said, or true, before what is known now: a conversation that is read late.
            raise Refused("outdated")
        if same is not None:
            claim = replace(claim, text=same.claim.text)
        content = self._content(claim, proposal, sources)
        if target.fact_id is not None:
            seen = target.claim.text
            self.changes.append(Replace(**content, valid_from=valid_from, fact_id=target.fact_id, seen_text=seen))
        else:
            self._check_settled(target, sources)
            self.changes[target.added] = Add(**content, valid_from=valid_from)
        target.claim, target.valid_from = claim, valid_from
        if same is not None:
            self._merge(target, same)

    def _merge(self, target: _Known, same: _Known) -> None:
        """Only one of two that say the same is current afterwards: the one that said it before."""
        if target.fact_id is not None and same.fact_id is not None:
            target.fact_id = same.fact_id
        self.known.remove(same)

    def _close(self, target: _Known, proposal: Proposal, sources: Sequence[Shown]) -> None:
        if target.fact_id is None:
            self._check_settled(target, sources)
            raise Refused("outdated")
        self.changes.append(
            Close(
                fact_id=target.fact_id,
                valid_to=_time(proposal.valid_to, sources) or _said(sources),
                sources=self._sources(sources),
                seen_text=target.claim.text,
            )
        )
        self.known.remove(target)

    def _confirm(self, target: _Known, sources: Sequence[Shown]) -> None:
        more, seen = self._sources(sources), target.claim.text
        if target.fact_id is not None:
            self.changes.append(Confirm(fact_id=target.fact_id, stamped_by="user", sources=more, seen_text=seen))
            return
        added = self.changes[target.added]
        if isinstance(added, Add):
            self.changes[target.added] = replace(added, sources=tuple(dict.fromkeys((*added.sources, *more))))

    def _check_settled(self, target: _Known, sources: Sequence[Shown]) -> None:
        """Raises _Unsettled for a fact that an earlier message is about to add. Within one message the last word counts."""
        if target.last_sequence < sources[-1].turn.sequence:
            raise _Unsettled

    def _content(self, claim: Claim, proposal: Proposal, sources: Sequence[Shown]) -> _Content:
        """What is to be kept, as it is to be kept: the names under which properties are kept may be longer than told."""
        check_names(claim.subject, claim.attribute)
        return {
            "text": claim.text,
            "subject": claim.subject,
            "attribute": claim.attribute,
            "importance": min(max(proposal.importance, _LEAST), _MOST),
            "stamped_by": "user",
            "origin": "extracted",
            "sources": self._sources(sources),
        }

    def _sources(self, sources: Sequence[Shown]) -> tuple[Source, ...]:
        return tuple(Source(self.batch.conversation_id, one.turn.message_id) for one in sources)


def _last_sequence(proposal: Proposal, batch: Batch) -> int:
    """The place of the last message that a proposal comes from: what was said later decides."""
    return max((one.turn.sequence for one in batch.shown if one.number in proposal.sources and one.is_users), default=0)


def _known(fact: Fact) -> _Known:
    message_ids = frozenset(source.message_id for source in fact.sources)
    return _Known(_claim(fact.text, fact.subject, fact.attribute), fact.id, fact.valid_from, message_ids)


def _is_repeated(claim: Claim, known: _Known, sources: Sequence[Shown]) -> bool:
    """Whether a fact that is stored was learned from the same message, by whatever way, and says as much."""
    is_shared = any(one.turn.message_id in known.message_ids for one in sources)
    return is_shared and repeats(claim, known.claim)


def _claim_of(proposal: Proposal) -> Claim:
    return _claim(proposal.text, proposal.subject, proposal.attribute)


def _claim(text: str, subject: str, attribute: str) -> Claim:
    return Claim(" ".join(text.split()), normal_subject(subject), normal_attribute(attribute))


def _as_of(proposal: Proposal, sources: Sequence[Shown]) -> Claim:
    """What held once stands beside what holds now: of its property there may be others."""
    claim, ended = _claim_of(proposal), _time(proposal.valid_to, sources)
    if ended is None or ended > _said(sources) or not is_single(claim.attribute):
        return claim
    return replace(claim, attribute=f"{_FORMER} {claim.attribute}")


def _said(sources: Sequence[Shown]) -> datetime:
    return max(one.turn.create_time for one in sources)


def _time(told: str | None, sources: Sequence[Shown]) -> datetime | None:
    """A date of a proposal; None for what cannot be meant. The day of its message is the moment when it was said."""
    time, said = date_of(told), _said(sources)
    if time is None or not is_plausible(time, said=said):
        return None
    return said if said - timedelta(days=1) < time <= said else time
