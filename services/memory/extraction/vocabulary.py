"""Word lists of the extraction, and the form in which words are compared.

Owns the lists of vocabulary.txt and that form, nothing else. They only ever spare a model call or tell a fact's frame from
what it says: a language that is missing costs a call more, never a memory.
"""

import re
import unicodedata
from collections.abc import Mapping
from importlib.resources import files
from typing import Final

_CONTRACTED: Final = re.compile(r"(?<=\w)n['\u2019]t\b")
_MOODS: Final = re.compile(r"['\u2019](?:s|m|re|ve|ll|d)\b")
# Accents of Latin, Greek and Cyrillic; marks of other scripts are letters in their own right.
_FIRST_MARK, _LAST_MARK = "\u0300", "\u036f"


def folded(text: str) -> str:
    """A text without case, accents and contractions."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(letter for letter in decomposed if not _FIRST_MARK <= letter <= _LAST_MARK)
    return _MOODS.sub("", _CONTRACTED.sub(" not", unicodedata.normalize("NFC", plain)))


def _read_lists() -> Mapping[str, frozenset[str]]:
    text = (files("services.memory.extraction") / "vocabulary.txt").read_text(encoding="utf-8")
    parts = re.split(r"^\[(\w+)\]$", text, flags=re.MULTILINE)
    return {name: frozenset(folded(words).split()) for name, words in zip(parts[1::2], parts[2::2], strict=True)}


_LISTS: Final = _read_lists()

USERS: Final = _LISTS["users"]
"""What a fact calls the one whom it is about, without accents."""

FUNCTION_WORDS: Final = _LISTS["function_words"]
"""Words that tell nothing alone."""

FRAMES: Final = _LISTS["frames"]
"""Words by which a fact is put, and which its source may have put otherwise."""

NEGATIONS: Final = _LISTS["negations"]
"""Words by which something is denied, ended or disliked."""

UNSPACED_NEGATIONS: Final = ("不", "没", "沒", "ない", "ません", "ไม่")
"""The same in scripts without spaces, wherever they stand."""

NUMBERS: Final = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    )
}

SMALL_TALK: Final = _LISTS["small_talk"]
"""Greetings, thanks, acknowledgements: a message of nothing else holds nothing."""

ASKING: Final = _LISTS["asking"]
"""English words with which a question or a command begins."""

FIRST_PERSON: Final = _LISTS["first_person"]
"""English words by which somebody speaks of themselves."""
