"""The model's input for one turn: which of the latest turns go in.

Owns the cut. Invariants: the turns are the latest ones, without holes (empty messages, replies that failed before their
first word, are left out), within the budget; and the same turns, budget and bound always give the same cut, wherever
they were read.

A provider caches the beginning of a prompt, so a window that slides by one message a turn would never hit. The cut
therefore jumps: between the longest context that fits and one of three quarters of that, it begins at the roundest
place, the message whose distance from the conversation's start is divisible by the greatest power of two. That place
stays the same while it lies in between, which is a quarter of the budget long, and needs no memory of earlier cuts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from services.memory.turns import Turn

_KEPT_QUARTERS: Final = 3


@dataclass(frozen=True, slots=True)
class Block:
    """The latest part of a conversation: every turn with text from `first_sequence` to the last, newest first.

    `preceding_tokens` is the size of the turn before `first_sequence` that did not fit; 0 where there was none to fit.
    """

    first_sequence: int
    preceding_tokens: int
    newest_first: Iterable[Turn]


@dataclass(frozen=True, slots=True)
class Context:
    """Turns, oldest first, and their estimated tokens."""

    turns: Sequence[Turn] = ()
    token_count: int = 0
    last_sequence: int = 0


def assemble(block: Block, *, last_sequence: int, token_budget: int, most_messages: int) -> Context | None:
    """The context of a conversation whose turns are known to `last_sequence`; None when the block begins too late for it.

    At most `most_messages` messages are looked at. A newest message larger than the budget gives an empty context.
    """
    lowest = max(1, last_sequence - most_messages + 1)
    fitting: list[Turn] = []
    total = 0
    for turn in block.newest_first:
        if turn.sequence < lowest:
            return _cut(fitting, last_sequence)
        if total + turn.token_count > token_budget:
            return _cut(fitting, last_sequence)
        fitting.append(turn)
        total += turn.token_count
    if block.first_sequence <= lowest:
        return _context(fitting, last_sequence) if lowest == 1 else _cut(fitting, last_sequence)
    return _cut(fitting, last_sequence) if total + block.preceding_tokens > token_budget else None


def _cut(newest_first: list[Turn], last_sequence: int) -> Context:
    """Drops the oldest turns down to the steadiest beginning."""
    total = sum(turn.token_count for turn in newest_first)
    candidates: list[int] = []
    kept = 0
    for index, turn in enumerate(newest_first):
        kept += turn.token_count
        if 4 * kept >= _KEPT_QUARTERS * total:
            candidates.append(index)
    if not candidates:
        return Context(last_sequence=last_sequence)
    of_user = [index for index in candidates if newest_first[index].role == "user"]
    start = max(of_user or candidates, key=lambda index: (_roundness(newest_first[index].sequence), index))
    return _context(newest_first[: start + 1], last_sequence)


def _roundness(sequence: int) -> int:
    distance = sequence - 1
    return distance & -distance if distance else 1 << 32


def _context(newest_first: Sequence[Turn], last_sequence: int) -> Context:
    return Context(
        turns=tuple(reversed(newest_first)),
        token_count=sum(turn.token_count for turn in newest_first),
        last_sequence=last_sequence,
    )
