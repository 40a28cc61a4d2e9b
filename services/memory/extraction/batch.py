"""The messages of one call: what the model is shown of them, and what may be learned from.

Owns the cut. Invariants: a batch is the next turns of a conversation without a hole, bounded in messages and tokens; only
users' messages that may hold something are learned from, of each only the own words; what the assistant said just before
such a message is context. A batch without any costs no call.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from services.memory.extraction.own_words import holds_nothing, lines_of, own_words
from services.memory.tokens import message_tokens

_MOST_CONTEXT_CHARACTERS: Final = 400


@dataclass(frozen=True, slots=True)
class UnreadTurn:
    """A message that nothing was learned from yet, its text cut where it is very long."""

    message_id: str
    sequence: int
    role: str
    text: str = field(repr=False)
    revision: int
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Unread:
    """The next messages of a conversation after `after_sequence`, and the one before them, oldest first.

    `has_more`: others follow.
    """

    conversation_id: str
    after_sequence: int
    turns: Sequence[UnreadTurn]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A message as the model is shown it. Of the user's, `text` is their own words."""

    number: int
    turn: UnreadTurn
    text: str = field(repr=False)

    @property
    def is_users(self) -> bool:
        """Whether it may be learned from."""
        return self.turn.role == "user"


@dataclass(frozen=True, slots=True)
class Batch:
    """What one call is about. `turn_count` are the user's messages that it covers, those that hold nothing included."""

    conversation_id: str
    after_sequence: int
    last_sequence: int
    shown: Sequence[Shown]
    turn_count: int
    has_more: bool

    @property
    def said(self) -> Sequence[Shown]:
        """The messages that may be learned from."""
        return [one for one in self.shown if one.is_users]


def next_batch(unread: Unread, *, most_tokens: int) -> Batch | None:
    """The batch that comes next: at most `most_tokens` and one message; None where nothing is unread."""
    shown, tokens, turn_count, last_sequence = list[Shown](), 0, 0, unread.after_sequence
    assistant_lines, before = set[str](), None
    for turn in unread.turns:
        if turn.role != "user":
            assistant_lines |= lines_of(turn.text)
            before = turn
            last_sequence = max(last_sequence, turn.sequence)
            continue
        if turn.sequence <= unread.after_sequence:
            continue
        text = own_words(turn.text, assistant_lines=assistant_lines)
        new = [] if holds_nothing(text) else [*_context(before), (turn, text)]
        tokens += sum(message_tokens(one) for _, one in new)
        if shown and tokens > most_tokens:
            return _batch(unread, shown, turn_count, last_sequence, has_more=True)
        shown += [Shown(len(shown) + number, *one) for number, one in enumerate(new, 1)]
        turn_count, last_sequence, before = turn_count + 1, turn.sequence, None
    if last_sequence == unread.after_sequence:
        return None
    return _batch(unread, shown, turn_count, last_sequence, has_more=unread.has_more)


def _context(before: UnreadTurn | None) -> list[tuple[UnreadTurn, str]]:
    """The end of what the assistant said: its question."""
    text = before.text.strip() if before else ""
    return [(before, text[-_MOST_CONTEXT_CHARACTERS:])] if before and text else []


def _batch(unread: Unread, shown: Sequence[Shown], turn_count: int, last_sequence: int, *, has_more: bool) -> Batch:
    return Batch(unread.conversation_id, unread.after_sequence, last_sequence, shown, turn_count, has_more)
