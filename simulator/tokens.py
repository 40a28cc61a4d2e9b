"""The simulator's tokeniser: how a text is cut into deltas and how usage is counted.

A token is up to eight word characters or one other character, together with one white space before it; left-over white
space is a token of its own. Concatenating the tokens gives the text back exactly. It is no model's real vocabulary: its
counts are of the right order (English: about 1.2 tokens a word) and the same on every run.
"""

import re
from collections.abc import Iterable

_TOKEN = re.compile(r"\s?\w{1,8}|\s?[^\w\s]|\s")

_CACHE_FLOOR = 1024
_CACHE_STEP = 128


def tokenize(text: str) -> tuple[str, ...]:
    """The tokens of a text; their concatenation is the text."""
    return tuple(_TOKEN.findall(text))


def count_tokens(texts: Iterable[str]) -> int:
    """How many tokens several texts have together."""
    return sum(1 for text in texts for _ in _TOKEN.finditer(text))


def cached_tokens(prefix_tokens: int) -> int:
    """How much of a repeated prefix OpenAI's prompt cache would serve: from 1,024 tokens on, in steps of 128."""
    return prefix_tokens // _CACHE_STEP * _CACHE_STEP if prefix_tokens >= _CACHE_FLOOR else 0
