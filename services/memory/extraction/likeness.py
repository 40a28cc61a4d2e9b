"""When two facts say the same, and when one contradicts the other.

Owns both questions, by words alone: a paraphrase that shares no word with what it repeats is a new fact here, unless its
property is one of which there is a single value. Names and numbers decide: facts that differ in one never say the same.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from services.memory.extraction import words
from services.memory.extraction.attributes import is_single, words_of
from services.memory.extraction.vocabulary import USERS
from services.memory.records import body_hash

_OPPOSITE_ATTRIBUTES: Final = frozenset(("likes", "dislikes"))


@dataclass(frozen=True)
class Claim:
    """What a fact says of which property of whom; both names in their normal form."""

    text: str = field(repr=False)
    subject: str
    attribute: str

    @cached_property
    def words(self) -> frozenset[str]:
        """Its words."""
        return frozenset(words.words(self.text))

    @cached_property
    def statement(self) -> frozenset[str]:
        """Its words but for those that mean nothing alone."""
        return words.statement(self.text)

    @cached_property
    def fixed(self) -> frozenset[str]:
        """Its names and numbers."""
        return words.names(self.text) | words.numbers(self.text)

    @cached_property
    def is_negative(self) -> bool:
        """Whether it denies."""
        return words.is_negative(self.text)

    @cached_property
    def value(self) -> frozenset[str]:
        """What it says, without whom and which property it says it of."""
        carried = words.content(self.text)
        return (carried - frozenset(words.words(f"{self.attribute} {self.subject}"))) or carried

    @cached_property
    def digest(self) -> bytes:
        """The same for the same words."""
        return body_hash(self.text)


def say_the_same(new: Claim, known: Claim) -> bool:
    """Whether the new claim adds nothing to the known one."""
    if new.digest == known.digest:
        return True
    if not _is_of_one_subject(new, known) or new.is_negative != known.is_negative:
        return False
    if new.fixed - known.words:
        return False
    if new.attribute and new.attribute == known.attribute:
        return _holds_value(new, known)
    if new.attribute and known.attribute and is_single(new.attribute) != is_single(known.attribute):
        return False
    return not known.fixed - new.words and words.are_equal(new.statement, known.statement)


def repeats(new: Claim, known: Claim) -> bool:
    """Whether a claim tells less than the known one, or hardly more, whatever both call its subject and property.

    For claims that come from one message, where a part of what is known is no news.
    """
    if new.is_negative != known.is_negative or new.fixed - known.words:
        return False
    told, said = (words.content(one.text) or one.statement for one in (new, known))
    more = words.missing(told, said) - words_of(new.attribute) - frozenset(words.words(new.subject))
    if not words.found_in(told, said) or 2 * len(more) >= len(said):
        return False
    return not more or words.holds_all(told, said)


def contradicts(new: Claim, known: Claim) -> bool:
    """Whether both cannot hold: another value of a property that has one, or the same thing denied."""
    if not _is_of_one_subject(new, known):
        return False
    if new.attribute and new.attribute == known.attribute and is_single(new.attribute):
        return True
    return new.is_negative != known.is_negative and _may_be_opposite(new, known) and words.are_equal(new.value, known.value)


def denies(new: Claim, known: Claim) -> bool:
    """Whether the new claim only says that the known one holds no longer, and nothing in its place."""
    return (
        new.is_negative and not known.is_negative and is_single(known.attribute) and words.holds_all(known.value, new.value)
    )


def are_related(new: Claim, known: Claim) -> bool:
    """Whether the new claim can be a later form of the known one: of one property, or with something in common."""
    return bool(
        (new.attribute and new.attribute == known.attribute)
        or {new.attribute, known.attribute} <= _OPPOSITE_ATTRIBUTES
        or words.found_in(new.value, known.value)
    )


def _holds_value(new: Claim, known: Claim) -> bool:
    if words.are_equal(new.value, known.value):
        return True
    # Of one value, less detail is no news; of many, "tea" is not "green tea".
    return is_single(new.attribute) and words.holds_all(known.value, new.value)


def _may_be_opposite(new: Claim, known: Claim) -> bool:
    attributes = {new.attribute, known.attribute} - {""}
    return len(attributes) < 2 or attributes == _OPPOSITE_ATTRIBUTES  # noqa: PLR2004 - both are named, and differ


def _is_of_one_subject(new: Claim, known: Claim) -> bool:
    """Subjects of one name; or of which both sentences speak: "the user's dog is called Rex" is about either."""
    if new.subject.casefold() == known.subject.casefold():
        return True
    named = frozenset(words.words(f"{new.subject} {known.subject}")) - USERS
    return new.statement == known.statement and named <= new.words & known.words
