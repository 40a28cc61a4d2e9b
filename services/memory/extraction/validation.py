"""What the service itself refuses of a model's proposals, whatever the model is.

Owns the reasons. Invariant: what passes has a source among the user's own messages of this batch and says, in their words,
something about the user that is neither an order to a model nor a secret. It judges form and words, never whether something
is true: a liar's facts about themselves are kept.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from services.memory import instructions
from services.memory.extraction import words
from services.memory.extraction.attributes import normal_attribute, words_of
from services.memory.extraction.batch import Batch, Shown
from services.memory.extraction.proposals import Proposal
from services.memory.facts.changes import MAX_NAME_CHARACTERS
from services.runtime.rules import CONTROL_CHARACTERS

Reason = Literal[
    "no_source",
    "unknown_source",
    "not_from_user",
    "unknown_fact",
    "no_text",
    "too_long",
    "several_lines",
    "about_assistant",
    "instruction",
    "secret",
    "ungrounded",
    "outdated",
]

MOST_FACT_CHARACTERS: Final = 300
# Of the words that carry a fact, those that its sources must hold: a paraphrase may bring some of its own.
_GROUNDED_SHARE: Final = 0.5
# Pairs of characters straddle words, and so the endings between them.
_GROUNDED_SHARE_UNSPACED: Final = 0.4
_MONTHS: Final = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)


class Refused(Exception):
    """A proposal that is not taken."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def sources_of(proposal: Proposal, batch: Batch) -> Sequence[Shown]:
    """The user's messages that a proposal names. Raises Refused where it names none, or one that was not shown."""
    shown: Mapping[int, Shown] = {one.number: one for one in batch.shown}
    if not proposal.sources:
        raise Refused("no_source")
    if not shown.keys() >= set(proposal.sources):
        raise Refused("unknown_source")
    found = [shown[number] for number in sorted(set(proposal.sources)) if shown[number].is_users]
    if not found:
        raise Refused("not_from_user")
    return found


def check_text(proposal: Proposal) -> None:
    """Raises Refused for a text that is no fact, whoever said it."""
    text = proposal.text.strip()
    if not text or not words.statement(text):
        raise Refused("no_text")
    if len(text) > MOST_FACT_CHARACTERS:
        raise Refused("too_long")
    check_names(proposal.subject, proposal.attribute)
    if "\n" in text or CONTROL_CHARACTERS.search(text + proposal.subject + proposal.attribute):
        raise Refused("several_lines")
    if instructions.is_about_assistant(text, proposal.subject):
        raise Refused("about_assistant")
    if instructions.is_order(text) or instructions.overrides_instructions(f"{proposal.subject}\n{proposal.attribute}"):
        raise Refused("instruction")
    if instructions.holds_secret(text, proposal.attribute):
        raise Refused("secret")


def check_names(subject: str, attribute: str) -> None:
    """Raises Refused for names that are longer than a fact's may be."""
    if max(len(subject), len(attribute)) > MAX_NAME_CHARACTERS:
        raise Refused("too_long")


def check_grounds(proposal: Proposal, sources: Sequence[Shown], *, known_text: str = "") -> None:
    """Raises Refused for a fact whose words its sources do not hold, nor the fact that it updates (`known_text`).

    Names and numbers must all be there; of the rest most, in whatever form. Parts of the dates that the fact holds since or
    until, or of its messages' own, count as said.
    """
    told = [one.text for one in sources]
    said = frozenset(word for text in (*told, known_text) for word in words.words(text)) | _dates(proposal, sources)
    text = f"{proposal.text} {proposal.subject}" if proposal.subject.casefold() != "user" else proposal.text
    carried = words.content(text)
    if words.numbers(text) - said or words.names_missing(words.names(text), said):
        raise Refused("ungrounded")
    if not carried:
        carried = words.statement(text)
    if known_text and not words.found_in(carried, words.words(" ".join(told))):
        raise Refused("ungrounded")
    share = _GROUNDED_SHARE_UNSPACED if words.is_unspaced(proposal.text) else _GROUNDED_SHARE
    if len(words.found_in(carried, said)) < share * len(carried):
        raise Refused("ungrounded")
    if words.is_negative(proposal.text) and not any(words.is_negative(one) for one in (*told, known_text)):
        raise Refused("ungrounded")


def check_mention(fact_text: str, subject: str, attribute: str, sources: Sequence[Shown]) -> None:
    """Raises Refused where messages that are to close or confirm a fact speak of nothing in it."""
    said = frozenset(word for one in sources for word in words.words(one.text))
    told = words.content(f"{fact_text} {subject}") | words_of(normal_attribute(attribute))
    if not words.found_in(told, said):
        raise Refused("ungrounded")


def _dates(proposal: Proposal, sources: Sequence[Shown]) -> frozenset[str]:
    told = f"{proposal.valid_from or ''}-{proposal.valid_to or ''}".split("-")
    times = [one.turn.create_time for one in sources]
    parts = {*told, *(str(time.year) for time in times)}
    months = {part for part in told if len(part) == 2}  # noqa: PLR2004 - digits of a month
    # "²" is a digit too, and no number.
    numbers = {int(month) for month in months if month.isascii() and month.isdigit()}
    named = {_MONTHS[number - 1] for number in numbers if 1 <= number <= len(_MONTHS)}
    return frozenset({part for part in parts if part} | {part.lstrip("0") for part in parts if part.lstrip("0")} | named)
