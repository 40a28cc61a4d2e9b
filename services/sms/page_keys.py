"""The keys in the page tokens of the lists of sms: a time in microseconds, and an id or a number.

What a client made up is refused here (INVALID_PAGE_TOKEN) and not by the database.
"""

import datetime as dt
import re
import uuid
from typing import Final

from services.runtime.paging import bad_page_token, decode_page_token

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NUMBER: Final = re.compile(r"\+?[A-Za-z0-9]{2,20}")


def key_of(time: dt.datetime, name: str) -> tuple[int, str]:
    """Where something stands in a list by time."""
    return (time - _EPOCH) // dt.timedelta(microseconds=1), name


def place_in(list_name: str, token: str) -> tuple[dt.datetime, str] | None:
    """The time and id in a token of this list; None for its beginning. Raises InvalidArgument (INVALID_PAGE_TOKEN)."""
    place = _read(list_name, token)
    if place is None:
        return None
    try:
        return place[0], str(uuid.UUID(place[1]))
    except ValueError:
        raise bad_page_token() from None


def number_place_in(list_name: str, token: str) -> tuple[dt.datetime, str] | None:
    """The time and number in a token of this list, likewise."""
    place = _read(list_name, token)
    if place is not None and not _NUMBER.fullmatch(place[1]):
        raise bad_page_token()
    return place


def _read(list_name: str, token: str) -> tuple[dt.datetime, str] | None:
    key = decode_page_token(list_name, token, kinds=(int, str))
    if key is None:
        return None
    try:
        return _EPOCH + dt.timedelta(microseconds=int(key[0])), str(key[1])
    except OverflowError:
        raise bad_page_token() from None
