"""What became of the rows: counted by kind, and each that was not loaded as it was named by its id and the reason.

No name, address or text of anybody stands in it. Of a reason the first ids are shown; a file takes all of them.
"""

from collections import Counter
from collections.abc import Iterator
from typing import IO, Final

import orjson

_SHOWN_IDS: Final = 10
_LONGEST_ID: Final = 80
OUTCOMES: Final = ("loaded", "here already", "changed", "not loaded")


class Report:
    """Counts and reasons. `file` gets a line of JSON for each row that was not loaded as it was."""

    def __init__(self, file: IO[str] | None = None) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._reasons: Counter[tuple[str, str, str]] = Counter()
        self._ids: dict[tuple[str, str, str], list[str]] = {}
        self._file = file

    def count(self, kind: str, outcome: str, number: int = 1) -> None:
        """So many more of a kind were loaded, or were here already."""
        self.counts[kind, outcome] += number

    def skip(self, kind: str, old_id: str, reason: str) -> None:
        """A row that is not loaded."""
        self._tell(kind, "not loaded", old_id, reason)

    def change(self, kind: str, old_id: str, reason: str) -> None:
        """A row that is loaded otherwise than it was."""
        self._tell(kind, "changed", old_id, reason)

    @property
    def is_whole(self) -> bool:
        """Whether every row was loaded or here already."""
        return not any(count for (_, outcome), count in self.counts.items() if outcome == "not loaded")

    def _tell(self, kind: str, outcome: str, old_id: str, reason: str) -> None:
        self.counts[kind, outcome] += 1
        # An id that was no UTF-8 where it stood can be written nowhere.
        old_id = old_id.encode(errors="replace").decode()
        where = (kind, outcome, reason)
        self._reasons[where] += 1
        ids = self._ids.setdefault(where, [])
        if len(ids) < _SHOWN_IDS:
            ids.append(old_id[:_LONGEST_ID])
        if self._file is not None:
            line = {"kind": kind, "outcome": outcome, "id": old_id, "reason": reason}
            self._file.write(orjson.dumps(line).decode() + "\n")

    def lines(self) -> Iterator[str]:
        """For the person at the terminal."""
        for kind in dict.fromkeys(kind for kind, _ in self.counts):
            said = ", ".join(f"{self.counts[kind, one]:,} {one}" for one in OUTCOMES if self.counts[kind, one])
            yield f"{kind + ':':<15}{said}"
            for (of, outcome, reason), number in self._reasons.items():
                if of == kind:
                    yield f"    {number:,} {outcome}: {reason} ({_listed(self._ids[of, outcome, reason], number)})"


def _listed(ids: list[str], number: int) -> str:
    return f"id {', '.join(ids)}{', …' if number > len(ids) else ''}"
