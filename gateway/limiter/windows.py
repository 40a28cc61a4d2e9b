"""What an operator writes of a limit: `20/minute,100/hour` is twenty in any minute and a hundred in any hour."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

OFF = "off"
# A window keeps a time for each call in it.
MOST_CALLS = 10_000
_UNITS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
_WINDOW = re.compile(r"(\d{1,9})/(second|minute|hour|day)")


@dataclass(frozen=True, slots=True)
class Window:
    """At most `calls` in any `seconds`."""

    calls: int
    seconds: int


def read_windows(text: str) -> tuple[Window, ...]:
    """The windows of a setting, none for `off`. ValueError says what is wrong."""
    if text.strip().lower() == OFF:
        return ()
    windows = tuple(_read(part.strip()) for part in text.split(","))
    if len({window.seconds for window in windows}) != len(windows):
        raise ValueError("names one span twice: write each once, as 20/minute,100/hour")
    return windows


def _read(text: str) -> Window:
    match = _WINDOW.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= MOST_CALLS:
        raise ValueError(
            f"must be calls/span, like 20/minute,100/hour (spans: {', '.join(_UNITS)}; 1 to {MOST_CALLS} calls), or {OFF}"
        )
    return Window(int(match[1]), _UNITS[match[2]])


def policy(windows: Sequence[Window]) -> str:
    """The windows as the header RateLimit-Policy has them: `20;w=60, 100;w=3600`."""
    return ", ".join(f"{window.calls};w={window.seconds}" for window in windows)


def _validate(value: object) -> object:
    return read_windows(value) if isinstance(value, str) else value


Windows = Annotated[tuple[Window, ...], NoDecode, BeforeValidator(_validate)]
