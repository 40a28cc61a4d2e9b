"""Tasks as plain values, and what a title and a description may be.

Invariant: what `clean_title` and `clean_description` return can be stored.
"""

import datetime as dt
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypedDict

from services.runtime.errors import FieldViolation, invalid_request

MAX_TITLE_CHARACTERS: Final = 200
MAX_DESCRIPTION_CHARACTERS: Final = 2000
_TIMES: Final = ("due_time", "complete_time", "create_time", "update_time")


@dataclass(frozen=True, slots=True)
class Task:
    """Something to do. `complete_time` is None while it is not done."""

    id: str
    title: str
    description: str
    due_time: dt.datetime | None
    complete_time: dt.datetime | None
    create_time: dt.datetime
    update_time: dt.datetime


@dataclass(frozen=True, slots=True)
class TaskDraft:
    """A task to be."""

    title: str
    description: str = ""
    due_time: dt.datetime | None = None


class TaskEdit(TypedDict, total=False):
    """The fields of a task that are to change, and what they are to be."""

    title: str
    description: str
    due_time: dt.datetime | None
    completed: bool


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks of a list are meant; what is None does not count."""

    completed: bool | None = None
    due_before: dt.datetime | None = None
    due_from: dt.datetime | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class TaskChange:
    """A change of a user's tasks: the task as it then was, None where it was deleted."""

    sequence: int
    kind: Literal["created", "updated", "deleted"]
    task_id: str
    task: Task | None


def stored_task(task: Task) -> dict[str, Any]:
    """A task as a change holds it."""
    values = asdict(task)
    return values | {name: values[name] and values[name].isoformat() for name in _TIMES}


def task_of(stored: Mapping[str, Any]) -> Task:
    """The task that `stored_task` came from."""
    times = {name: stored[name] and dt.datetime.fromisoformat(stored[name]) for name in _TIMES}
    return Task(**{**stored, **times})


def clean_title(text: str) -> str:
    """The title without the space around it. Raises InvalidArgument when it is no line of 1 to 200 characters."""
    title = text.strip()
    if not 1 <= len(title) <= MAX_TITLE_CHARACTERS:
        raise _wrong("title", f"has {len(title)} characters, 1 to {MAX_TITLE_CHARACTERS} are allowed")
    if any(unicodedata.category(one) == "Cc" for one in title):
        raise _wrong("title", "holds a control character (a line break, say): remove it")
    return title


def clean_description(text: str) -> str:
    """The description. Raises InvalidArgument when it is too long or holds what is not text."""
    if len(text) > MAX_DESCRIPTION_CHARACTERS:
        raise _wrong("description", f"has {len(text)} characters, at most {MAX_DESCRIPTION_CHARACTERS} are allowed")
    if any(unicodedata.category(one) == "Cc" and one not in "\n\r\t" for one in text):
        raise _wrong("description", "holds a control character (NUL, say): remove it")
    return text


def _wrong(field: str, description: str) -> Exception:
    return invalid_request([FieldViolation(field, description)])
