"""Pages of a list: sizes are clamped, tokens opaque.

A token holds the sort key of the last row of its page and the name of its list; it grants nothing, since every list is
confined to its caller anyway.
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

import orjson

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import InvalidArgument

T = TypeVar("T")


def page_size(requested: int, *, default: int = 50, greatest: int = 200) -> int:
    """The size to use: the default for 0, the greatest for more than that."""
    return min(requested, greatest) if requested else default


def cut_page(
    found: Sequence[T], size: int, *, list_name: str, key: Callable[[T], Sequence[str | int]]
) -> tuple[Sequence[T], str]:
    """The page, and the token of the next one: empty when `found` does not hold one item more than the page."""
    page = found[:size]
    return page, encode_page_token(list_name, key(page[-1])) if len(found) > size else ""


def encode_page_token(list_name: str, key: Sequence[str | int]) -> str:
    """The token of the page that begins after `key`."""
    return base64.urlsafe_b64encode(orjson.dumps([list_name, *key])).decode().rstrip("=")


def decode_page_token(list_name: str, token: str, *, kinds: Sequence[type[str | int]]) -> list[str | int] | None:
    """The key in a token, one value of each of `kinds`; None for an empty token.

    Raises InvalidArgument (INVALID_PAGE_TOKEN) for a token that this list did not make.
    """
    if not token:
        return None
    try:
        name: object
        key: list[str | int]
        name, *key = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, ValueError, TypeError):
        name, key = None, []
    if name != list_name or [type(value) for value in key] != list(kinds):
        raise bad_page_token()
    return key


def bad_page_token() -> InvalidArgument:
    """The refusal of a token that its list did not make."""
    return InvalidArgument(
        "The page token is not one of this list: start again without it.", reasons.ERROR_REASON_INVALID_PAGE_TOKEN
    )
