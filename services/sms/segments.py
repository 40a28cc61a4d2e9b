"""How many segments a text takes, as networks count them (3GPP TS 23.038 and 23.040).

A text of the GSM-7 alphabet has 160 septets in one message and 153 in each of several; any other is UCS-2, with 70 and 67
UTF-16 units. What is two of them (the euro sign in GSM-7, an emoji in UCS-2) is never cut in the middle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

Encoding = Literal["gsm7", "ucs2"]

_BASIC: Final = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENDED: Final = frozenset("\f^{}\\[~]|€")
_SINGLE: Final = {"gsm7": 160, "ucs2": 70}
_JOINED: Final = {"gsm7": 153, "ucs2": 67}
_BEYOND_BMP: Final = 0xFFFF
_MARK: Final = "..."


@dataclass(frozen=True, slots=True)
class Size:
    """How a text is sent."""

    encoding: Encoding
    segments: int


def size_of(text: str) -> Size:
    """The encoding and number of segments of a text; an empty one takes one."""
    encoding: Encoding = "gsm7" if all(one in _BASIC or one in _EXTENDED for one in text) else "ucs2"
    units = _septets if encoding == "gsm7" else _utf16_units
    if sum(map(units, text)) <= _SINGLE[encoding]:
        return Size(encoding, 1)
    return Size(encoding, _packed(text, units, _JOINED[encoding]))


def shortened(text: str, *, most_segments: int) -> str:
    """The text where it fits, else as many of its words as do, with dots behind; of a text without words its beginning."""
    if size_of(text).segments <= most_segments:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        fits = size_of(text[:middle].rstrip() + _MARK).segments <= most_segments
        low, high = (middle, high) if fits else (low, middle - 1)
    cut = text[:low]
    words = cut.rsplit(None, 1)
    is_inside_word = not text[low : low + 1].isspace()
    return (words[0] if is_inside_word and len(words) > 1 else cut).rstrip() + _MARK


def _packed(text: str, units: Callable[[str], int], room: int) -> int:
    segments, used = 1, 0
    for character in text:
        size = units(character)
        if used + size > room:
            segments, used = segments + 1, 0
        used += size
    return segments


def _septets(character: str) -> int:
    return 2 if character in _EXTENDED else 1


def _utf16_units(character: str) -> int:
    return 2 if ord(character) > _BEYOND_BMP else 1
