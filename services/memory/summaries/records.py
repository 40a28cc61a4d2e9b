"""What summaries are made of, and what they are, as plain values."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary; `last_sequence` is how far that of a conversation reaches, 0 for the person."""

    text: str = field(repr=False)
    last_sequence: int
    update_time: datetime


@dataclass(frozen=True, slots=True)
class SaidTurn:
    """A message to sum up, cut where it is long."""

    sequence: int
    message_id: str
    revision: int
    role: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation as it was read: its summary so far, the messages after that (oldest first, perhaps not all)."""

    last_sequence: int
    summary: Summary | None
    turns: Sequence[SaidTurn]

    @property
    def summarized(self) -> int:
        """How far the summary so far reaches."""
        return self.summary.last_sequence if self.summary else 0


@dataclass(frozen=True, slots=True)
class KnownFact:
    """A current fact that the user stands behind, to sum up."""

    text: str = field(repr=False)
    subject: str
    attribute: str
    valid_from: datetime | None


@dataclass(frozen=True, slots=True)
class Person:
    """What is known of a person as it was read, at `version`; `digest` is what the summary they have was made of."""

    version: int
    facts: Sequence[KnownFact]
    has_summary: bool
    digest: bytes | None


@dataclass(frozen=True, slots=True)
class SummaryPair:
    """The summaries that belong into a context."""

    person: Summary | None = None
    conversation: Summary | None = None
