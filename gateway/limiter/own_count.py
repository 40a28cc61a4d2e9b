"""The count that a limiter keeps for itself while Redis is away: for what must not be tried without end.

Invariant: at most MOST_NAMES names are remembered; those that were heard of longest ago are forgotten first.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Final

from gateway.limiter.verdict import Standing, Verdict
from gateway.limiter.windows import Window

MOST_NAMES: Final = 10_000


class OwnCount:
    """Windows in this process. `clock` tells seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def count(self, name: str, windows: Sequence[Window]) -> Verdict:
        """Counts a call of `name` unless one of the windows is full."""
        now = self._clock()
        times = self._times.setdefault(name, deque(maxlen=max(window.calls for window in windows)))
        self._times.move_to_end(name)
        if len(self._times) > MOST_NAMES:
            self._times.popitem(last=False)
        verdict = Verdict([_standing(window, times, now) for window in windows])
        if verdict.is_allowed:
            times.appendleft(now)
        return verdict


def _standing(window: Window, times: Sequence[float], now: float) -> Standing:
    inside = [one for one in times if now - one < window.seconds]
    is_full = len(inside) >= window.calls
    first_to_go = inside[window.calls - 1] if is_full else now
    left = max(0, window.calls - len(inside) - (0 if is_full else 1))
    return Standing(window, left, window.seconds - (now - first_to_go), is_full)
