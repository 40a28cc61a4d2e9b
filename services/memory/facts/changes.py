"""What can be done to the facts of a user, as plain values.

Owns what a fact may say and what each change means; plan.py works out what follows, store.py writes it. Invariant: a change
that exists can be stored; a fact that was learned names the messages that it was learned from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, TypedDict

from services.memory.records import Origin, Source, Stamp
from services.runtime.rules import CONTROL_CHARACTERS

MAX_TEXT_CHARACTERS: Final = 1000
MAX_NAME_CHARACTERS: Final = 100
MAX_SOURCES: Final = 100
MAX_CHANGES: Final = 200
DEFAULT_SUBJECT: Final = "user"
DEFAULT_IMPORTANCE: Final = 5
_GREATEST_IMPORTANCE: Final = 10
_LEARNED: Final = ("extracted", "remembered")

Result = Literal["added", "merged", "replaced", "closed", "confirmed", "not_current", "full"]


class Stale(Exception):
    """What changes were worked out from is not there any more as it was: nothing was changed. Look again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a fact is to say. Times are in UTC. `origin` extracted or remembered needs sources.

    Raises ValueError for what no fact can be: an empty or too long text, a control character, an importance out of range.
    """

    text: str = field(repr=False)
    subject: str = DEFAULT_SUBJECT
    attribute: str = ""
    importance: int = DEFAULT_IMPORTANCE
    stamped_by: Stamp
    origin: Origin
    valid_from: datetime | None = None
    expire_time: datetime | None = None
    sources: Sequence[Source] = ()

    def __post_init__(self) -> None:
        """Checks the values."""
        check_text(self.text)
        check_name(self.subject)
        check_name(self.attribute)
        if not 1 <= self.importance <= _GREATEST_IMPORTANCE:
            raise ValueError("the importance of a fact is 1 to 10")
        if self.origin in _LEARNED and not self.sources:
            raise ValueError("a fact that was learned needs the messages that it was learned from")


def one_line(text: str) -> str:
    """A text without the space around it, in one line: so a fact is kept and shown."""
    return " ".join(text.split())


def check_text(text: str) -> None:
    """Raises ValueError where this cannot be the text of a fact."""
    if not text.strip() or len(text) > MAX_TEXT_CHARACTERS or CONTROL_CHARACTERS.search(text):
        raise ValueError(f"the text of a fact has 1 to {MAX_TEXT_CHARACTERS} characters, and no control characters")


def check_name(name: str) -> None:
    """Raises ValueError where this cannot be a subject or an attribute."""
    if len(name) > MAX_NAME_CHARACTERS or CONTROL_CHARACTERS.search(name):
        raise ValueError(f"a name has at most {MAX_NAME_CHARACTERS} characters, and no control characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Content):
    """A new fact; where a current one has the same words, that one with the evidence of both.

    Merged: sources joined, the least trusted stamp, the greater importance; what the user stated stays stated.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Replace(Content):
    """A current fact says this from now on; what it said becomes a version of its history, closed at `valid_from` or now.

    With the same words it is merged like Add. Where another current fact says this already, that one is merged with it, and
    the replaced one becomes part of its history. `seen_text` is what the fact said when the change was worked out: where it
    says something else by now, nothing is done.
    """

    fact_id: str
    seen_text: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """A current fact holds no more, and nothing comes in its place. It stays, closed, with `valid_to` (or now).

    `sources` say why; they are not joined, or the fact would outlive the messages that its words come from.
    """

    fact_id: str
    valid_to: datetime | None = None
    sources: Sequence[Source] = ()
    seen_text: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm:
    """A current fact was said again: sources are joined, the least trusted stamp stays."""

    fact_id: str
    stamped_by: Stamp
    sources: Sequence[Source]
    seen_text: str | None = field(default=None, repr=False)


Change = Add | Replace | Close | Confirm


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a change; `fact_id` is the fact that says it now.

    `not_current`: the fact is gone, closed, or says something else than was seen; `full`: the user has as many facts as one
    may have. Neither is an error: the other changes are made.
    """

    result: Result
    fact_id: str


@dataclass(frozen=True, slots=True)
class Basis:
    """The messages that changes were worked out from, by their ids, with their revisions.

    The changes are made only while all of them are there so, together with noting `extracted_sequence` at the conversation.
    `after_sequence` is what was noted there when they were read: another process that was faster makes these stale.
    """

    conversation_id: str
    messages: Mapping[str, int]
    extracted_sequence: int
    after_sequence: int | None = None


class FactEdit(TypedDict, total=False):
    """The fields of a fact that its user changes, and what they are to be."""

    text: str
    subject: str
    attribute: str
    importance: int
    valid_from: datetime | None
    expire_time: datetime | None
