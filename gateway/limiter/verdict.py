"""What was found of a call: where it stands in each of its windows."""

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.limiter.windows import Window


@dataclass(frozen=True, slots=True)
class Standing:
    """One window of one caller after the call: what is left of it, when more is, and whether it refused the call."""

    window: Window
    left: int
    reset_seconds: float
    is_full: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a call stands in all of its windows; it is allowed when none of them was full."""

    standings: Sequence[Standing]

    @property
    def is_allowed(self) -> bool:
        """Whether the call was counted and may go on."""
        return not any(standing.is_full for standing in self.standings)

    @property
    def tightest(self) -> Standing:
        """The window that speaks for all: of a refused call the one that keeps it waiting longest, else the fullest."""
        if self.is_allowed:
            return min(self.standings, key=lambda standing: (standing.left, -standing.reset_seconds))
        return max((one for one in self.standings if one.is_full), key=lambda standing: standing.reset_seconds)
