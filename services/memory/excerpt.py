"""The part of a long text that is about what was asked.

Invariant: never longer than its bound, and marked with … wherever something was left out.
"""

from collections.abc import Sequence
from typing import Final

_GAP: Final = "…"


def excerpt(text: str, asked: Sequence[str], *, most_characters: int) -> str:
    """The window of a text that begins a little before the place where most of the asked words stand close together."""
    if len(text) <= most_characters:
        return text
    room = max(1, most_characters - 2 * len(_GAP))
    begin = _begin(text, asked, room)
    if begin > 0:
        begin = text.find(" ", begin, begin + room // 4) + 1 or begin
    end = begin + room
    if end < len(text):
        blank = text.rfind(" ", begin + room // 2, end)
        end = blank if blank > 0 else end
    return f"{_GAP if begin else ''}{text[begin:end].strip()}{_GAP if end < len(text) else ''}"


def _begin(text: str, asked: Sequence[str], room: int) -> int:
    """Where the window begins: its first quarter is what comes before the words."""
    low = text.lower()
    places = sorted(place for word in set(asked) if (place := low.find(word)) >= 0)
    if not places:
        return 0
    best = max(places, key=lambda first: (sum(first <= place < first + 3 * room // 4 for place in places), -first))
    return max(0, min(best - room // 4, len(text) - room))
