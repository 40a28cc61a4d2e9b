"""Single values of old rows: what they can stand for here, and nothing that would be a guess.

Every function raises BadValueError with what is wrong with the value, never with the value itself.
"""

import datetime as dt
import json
import math
import re
import uuid
from typing import Any, Final

from services.runtime.rules import CONTROL_CHARACTERS

_NAMESPACE: Final = uuid.UUID("6f1f9b1e-3a39-5b0c-9a3e-0c6a5f5b7d11")
_TRUE: Final = frozenset({"1", "t", "true", "yes", "y", "on", "admin", "active", "enabled"})
_FALSE: Final = frozenset({"0", "f", "false", "no", "n", "off", "", "user", "inactive", "disabled"})
_DONE: Final = frozenset({"1", "t", "true", "yes", "done", "complete", "completed", "closed", "finished"})
_OPEN: Final = frozenset(
    {"0", "f", "false", "no", "", "open", "todo", "pending", "new", "in_progress", "in progress", "active"}
)
# Seconds until the year 5138: a greater number is one of milliseconds.
_MOST_SECONDS: Final = 100_000_000_000
_GREATEST: Final = 2_147_483_647
# Python refuses to read a number of more than some thousand.
_MOST_DIGITS: Final = 20
# In a dump numbers are texts; nine digits and more are no date.
_SECONDS: Final = re.compile(r"-?\d{9,16}(\.\d+)?")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_FIRST: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class BadValueError(Exception):
    """A value that cannot be what its column is read as."""


def new_id(system: str, table: str, old: str, part: str = "") -> str:
    """The id here of a row there: the same for the same row, whenever it is asked for."""
    # As JSON: no two lists make the same text.
    return str(uuid.uuid5(_NAMESPACE, json.dumps([system, table, old, part])))


def key(value: Any) -> str:
    """The id of an old row, as text."""
    if value is None:
        raise BadValueError("has no id")
    return value.hex() if isinstance(value, bytes) else str(value)


def text(value: Any) -> str:
    """The text; empty for none."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        raise BadValueError("is no text")
    found = str(value)
    if not is_utf8(found):
        raise BadValueError("is not UTF-8")
    return found


def is_utf8(found: str) -> bool:
    """Whether the text was UTF-8 where it was read. One that was not can be bound to no statement and written to no file."""
    return _SURROGATE.search(found) is None


def without_controls(found: str) -> str:
    """The text without the characters that no text here may hold (NUL, escapes of terminals)."""
    return CONTROL_CHARACTERS.sub("", found)


def time(value: Any, zone: dt.tzinfo) -> dt.datetime | None:
    """The moment, None for none: ISO 8601, or seconds or milliseconds since 1970. One without a zone is in `zone`."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and _SECONDS.fullmatch(value):
        value = float(value)
    try:
        found = _since_1970(value) if isinstance(value, int | float) else dt.datetime.fromisoformat(text(value).strip())
        # In UTC the first day of the year 1 and the last of 9999 may be none.
        found = (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(dt.UTC)
    except (ValueError, OverflowError, OSError):
        raise BadValueError("is no time") from None
    if not _FIRST <= found < dt.datetime.now(dt.UTC) + dt.timedelta(days=36_525):
        raise BadValueError("is a time before 1970 or in a hundred years")
    return found


def past(value: Any, zone: dt.tzinfo) -> dt.datetime | None:
    """A moment that has been: nothing was said tomorrow."""
    found = time(value, zone)
    if found is not None and found > dt.datetime.now(dt.UTC) + dt.timedelta(days=1):
        raise BadValueError("is a time in the future: say the zone of the old times with --timezone")
    return found


def _since_1970(value: float) -> dt.datetime:
    if math.isnan(value):
        raise ValueError
    return dt.datetime.fromtimestamp(value / 1000 if abs(value) > _MOST_SECONDS else value, dt.UTC)


def truth(value: Any) -> bool | None:
    """Yes or no; None for none."""
    if value is None:
        return None
    return _one_of(value, _TRUE, _FALSE, "is neither true nor false")


def done(value: Any) -> bool:
    """Whether a task is done, by a flag or a status."""
    return value is not None and _one_of(value, _DONE, _OPEN, "is no status that is known here")


def _one_of(value: Any, yes: frozenset[str], no: frozenset[str], problem: str) -> bool:
    word = _word(value)
    if word in yes:
        return True
    if word in no:
        return False
    raise BadValueError(problem)


def _word(value: Any) -> str:
    """`True`, `1.0` and `TaskStatus.DONE` are the words that they stand for."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return re.sub(r"^\w+\.", "", text(value).strip()).lower()


def role(value: Any, roles: dict[str, str]) -> str:
    """`user` or `assistant` by the table of roles, empty for one that is not loaded."""
    word = _word(value)
    if word not in roles:
        raise BadValueError("is no role that is known here: add it to `roles` in a mapping")
    return roles[word]


def count(value: Any) -> int | None:
    """A whole number of tokens; None for none, and for what is no such number."""
    if isinstance(value, str) and value.isdecimal() and len(value) <= _MOST_DIGITS:
        value = int(value)
    return value if isinstance(value, int) and 0 <= value <= _GREATEST else None
