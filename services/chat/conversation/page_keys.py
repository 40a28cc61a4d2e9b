"""The keys in the page tokens of lists of conversations and messages.

Owns what stands in them. What a client made up is refused here (INVALID_PAGE_TOKEN) and not by the database.
"""

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Final, Protocol

from services.runtime.paging import bad_page_token

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MOST: Final = 2**31 - 1
_Key = Sequence[str | int]


class _Listed(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def latest_time(self) -> dt.datetime: ...


def key_of_conversation(one: _Listed) -> tuple[int, str]:
    """Where a conversation stands in a list by its latest message."""
    return (one.latest_time - _EPOCH) // dt.timedelta(microseconds=1), one.id


def conversation_key(key: _Key | None) -> tuple[dt.datetime, str] | None:
    """What `key_of_conversation` was made from."""
    if key is None:
        return None
    try:
        return _EPOCH + dt.timedelta(microseconds=int(key[0])), str(uuid.UUID(str(key[1])))
    except (OverflowError, ValueError):
        raise bad_page_token() from None


def message_key(key: _Key | None) -> tuple[int, int]:
    """Sequence and version of a message; zeros before the first."""
    if key is None:
        return 0, 0
    sequence, version = int(key[0]), int(key[1])
    if not (0 <= sequence <= _MOST and 0 <= version <= _MOST):
        raise bad_page_token()
    return sequence, version


def found_key(key: _Key | None) -> tuple[int, str] | None:
    """Score and id of a conversation that was found."""
    if key is None:
        return None
    try:
        score, conversation_id = int(key[0]), str(uuid.UUID(str(key[1])))
    except ValueError:
        raise bad_page_token() from None
    if not 0 <= score <= _MOST:
        raise bad_page_token()
    return score, conversation_id
