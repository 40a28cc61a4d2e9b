"""How much work code does, told by what is the same on every machine and under every load.

A time is not: where a test has to tell one from another all the same, what it rejects takes many times longer than
PATIENCE_SECONDS, and what it accepts a small part of it.
"""

import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

PATIENCE_SECONDS: Final = 30.0

_LINEAR: Final = 16
# Quadratic work would be 256 times as much.
_MOST_GROWTH: Final = 64
# Below this a time says nothing.
_LEAST_SECONDS: Final = 0.1


def function_calls(work: Callable[[], object]) -> int:
    """The calls that `work` makes, of functions in Python and in C."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls


def grows_with_its_input(work: Callable[[int], object], size: int) -> bool:
    """Whether `work(16 * size)` costs about 16 times what `work(size)` costs, and not the square of that."""
    return _least_seconds(work, size * _LINEAR) < max(_MOST_GROWTH * _least_seconds(work, size), _LEAST_SECONDS)


def _least_seconds(work: Callable[[int], object], size: int) -> float:
    """The least of three, of this thread: what else the machine does only adds."""

    def seconds() -> float:
        begin = time.thread_time()
        work(size)
        return time.thread_time() - begin

    return min(seconds() for _ in range(3))
