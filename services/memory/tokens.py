"""How many tokens a text costs, estimated without any model's vocabulary.

Owns the one estimate that budgets are counted in. It is cheap (a few passes over the bytes in C) and the same on every
machine; it is no model's exact count, so a budget is a size and not a promise.

The rules of thumb: English costs a token per four characters or 0.75 words, whichever is more (OpenAI's help centre,
"What are tokens and how to count them?"); alphabets beyond ASCII cost about a token per two characters; Chinese,
Japanese, Korean and the scripts of India and South East Asia about one a character; emoji and rare scripts two.
"""

import math
from typing import Final

# What a message costs beyond its text: its role and its frame (OpenAI cookbook, "How to count tokens", 3 and 1).
FRAME_TOKENS: Final = 4

_CHARACTERS_A_TOKEN: Final = 4
_TOKENS_A_WORD: Final = 4 / 3

# The first byte of a character tells its length in UTF-8, and the length tells the kind of script.
_ASCII: Final = bytes(range(0x80))
_TWO_BYTES: Final = bytes(range(0xC0, 0xE0))
_THREE_BYTES: Final = bytes(range(0xE0, 0xF0))
_FOUR_BYTES: Final = bytes(range(0xF0, 0xF8))


def message_tokens(text: str) -> int:
    """Tokens of one message, its frame included; 0 for an empty text, which is never sent to a model."""
    return FRAME_TOKENS + text_tokens(text) if text else 0


def text_tokens(text: str) -> int:
    """Tokens of a text, rounded up."""
    data = text.encode()
    words = len(data.split()) if len(data) == len(text) else 0
    latin = max(_count(data, _ASCII) / _CHARACTERS_A_TOKEN, words * _TOKENS_A_WORD)
    others = _count(data, _TWO_BYTES) / 2 + _count(data, _THREE_BYTES) + 2 * _count(data, _FOUR_BYTES)
    return math.ceil(latin + others)


def _count(data: bytes, wanted: bytes) -> int:
    return len(data) - len(data.translate(None, wanted))
