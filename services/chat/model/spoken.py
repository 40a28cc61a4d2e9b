"""The text of one round as the user may see it, and where the provider's offsets lie in it.

Owns what is taken out: citation markers of the provider (private-use characters around `cite` and source ids), whole or
half, however they are split across deltas, and control characters, which Postgres and memory do not take. Invariant: an
offset into the provider's text is translated by what was taken out before it. Text without either costs one check.
"""

import re
from typing import Final

from services.runtime.rules import CONTROL_CHARACTERS

MAX_MARKER_CHARACTERS: Final = 512
_INSIDE: Final = "[^\ue200\ue201\n]"
# A marker that is whole; one that may become whole; a delimiter by itself; a control character.
_TAKEN_OUT: Final = re.compile(
    f"\ue200{_INSIDE}{{0,{MAX_MARKER_CHARACTERS}}}\ue201"
    f"|(?P<open>\ue200{_INSIDE}{{0,{MAX_MARKER_CHARACTERS}}}\\Z)"
    f"|[\ue200-\ue202]|{CONTROL_CHARACTERS.pattern}"
)
_DELIMITERS: Final = dict.fromkeys((0xE200, 0xE201, 0xE202))


class Spoken:
    """The text of a round, part by part as the provider numbers its offsets."""

    def __init__(self) -> None:
        self.length = 0
        """Characters told so far."""
        self._begin = 0
        self._seen = 0
        self._held = ""
        self._cuts: list[tuple[int, int]] = []

    def end_part(self) -> str:
        """The last text of the part; what follows has offsets of its own.

        Half a marker is dropped. What has a blank in it was none, and is told.
        """
        held = self._held
        told = held.translate(_DELIMITERS) if " " in held else ""
        self.length += len(told)
        self._begin, self._seen, self._held, self._cuts = self.length, 0, "", []
        return told

    def tell(self, text: str) -> str:
        """What of this text, and of what was held back, can be told now."""
        if not self._held and (text.isprintable() or not _TAKEN_OUT.search(text)):
            self._seen += len(text)
            self.length += len(text)
            return text
        return self._cleaned(text)

    def place(self, offset: int) -> int:
        """Where an offset into the part lies in the text of the round."""
        taken_out = 0
        for begin, end in self._cuts:
            if offset <= begin:
                break
            taken_out += min(offset, end) - begin
        return min(self._begin + max(offset, 0) - taken_out, self.length)

    def _cleaned(self, text: str) -> str:
        text, begin = self._held + text, self._seen - len(self._held)
        self._held = ""
        kept, at = [], 0
        for found in _TAKEN_OUT.finditer(text):
            kept.append(text[at : found.start()])
            at = found.end()
            if found.group("open"):
                self._held = found.group()
            else:
                self._cuts.append((begin + found.start(), begin + at))
        kept.append(text[at:])
        told = "".join(kept)
        self._seen = begin + len(text)
        self.length += len(told)
        return told
