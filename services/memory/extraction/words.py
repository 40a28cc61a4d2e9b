"""Words, as facts and messages are compared by them.

Owns what two texts share. Case, accents and the form of letters do not count; in scripts that put no space between words,
each pair of neighbouring characters is a word. It knows no language's grammar: an ending is what follows a common beginning.
"""

import re
from collections.abc import Collection, Iterable
from typing import Final

from services.memory.extraction.vocabulary import (
    FRAMES,
    FUNCTION_WORDS,
    NEGATIONS,
    NUMBERS,
    UNSPACED_NEGATIONS,
    USERS,
    folded,
)

# Thai, Lao, Burmese, Khmer, kana and Han: searched by the character too, see lexemes_of in migration 0002.
_UNSPACED: Final = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_PIECE: Final = re.compile(rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+")
_IS_UNSPACED: Final = re.compile(rf"[{_UNSPACED}]")
_UNSPACED_USERS: Final = re.compile(
    "|".join(sorted((user for user in USERS if _IS_UNSPACED.search(user)), key=len, reverse=True))
)
# A word inside a sentence: what begins one is written large for that alone.
_INNER_WORD: Final = re.compile(r"(?<=[^.!?:\s])\s+[\"'(\u201c]?([^\W_]+)")
_SHORTEST_STEM: Final = 3
# An inflected name keeps most of itself: "Lissabons", "Annát".
_NAME_STEM_SHARE: Final = 0.75


def words(text: str) -> list[str]:
    """Every word, in order; number words as digits."""
    return [NUMBERS.get(word, word) for piece in _PIECE.findall(folded(text)) for word in _words_of(piece)]


def content(text: str) -> frozenset[str]:
    """The words that carry what a text tells: without those that only frame it ("the user likes …")."""
    return statement(text) - FRAMES


def statement(text: str) -> frozenset[str]:
    """The words of a fact with what it says of them ("likes", "hates"), without those that mean nothing alone."""
    return frozenset(words(_UNSPACED_USERS.sub(" ", text))) - FUNCTION_WORDS - USERS


def names(text: str) -> frozenset[str]:
    """The words written like names inside sentences."""
    large = (word for word in _INNER_WORD.findall(text) if word[0].isupper())
    return frozenset(word for name in large for word in words(name)) - FUNCTION_WORDS - USERS - FRAMES


def numbers(text: str) -> frozenset[str]:
    """The words with a digit, or that are numbers."""
    return frozenset(word for word in words(text) if any(character.isdigit() for character in word))


def is_negative(text: str) -> bool:
    """Whether a text says that something is not so, or no longer, or unwelcome."""
    return not NEGATIONS.isdisjoint(words(text)) or any(mark in text for mark in UNSPACED_NEGATIONS)


def found_in(wanted: Iterable[str], said: Collection[str]) -> frozenset[str]:
    """Those of the wanted words that were said, in whatever form."""
    return frozenset(word for word in wanted if word in said or any(_may_be_one(word, other) for other in said))


def names_missing(wanted: Iterable[str], said: Collection[str]) -> frozenset[str]:
    """Those of the wanted names that were not said; an ending more or less does not count."""
    return frozenset(name for name in wanted if name not in said and not any(_is_inflected(name, word) for word in said))


def are_equal(one: Collection[str], other: Collection[str]) -> bool:
    """Whether two sets hold the same words, but for endings: "dogs", "goes", "flies"."""
    return holds_all(one, other) and holds_all(other, one)


def holds_all(said: Collection[str], wanted: Collection[str]) -> bool:
    """Whether each of the wanted words was said, but for endings."""
    return not missing(wanted, said)


def missing(wanted: Iterable[str], said: Collection[str]) -> frozenset[str]:
    """Those of the wanted words that were not said, but for endings."""
    return frozenset(word for word in wanted if word not in said and not any(_is_ending(word, other) for other in said))


def _may_be_one(one: str, other: str) -> bool:
    """Loosely: "works" and "working", "viven" and "vivo"."""
    shorter, longer, shared = _compared(one, other)
    return shared >= _SHORTEST_STEM and shared >= 0.6 * shorter and shared >= 0.45 * longer


def _is_inflected(one: str, other: str) -> bool:
    _, longer, shared = _compared(one, other)
    return shared >= _SHORTEST_STEM and shared >= _NAME_STEM_SHARE * longer


def _is_ending(one: str, other: str) -> bool:
    """Strictly: "dog" and "dogs", "hike" and "hiking"; not "Porto" and "Portugal"."""
    if _is_in_third_person(*sorted((one, other), key=len)):
        return True
    shorter, longer, shared = _compared(one, other)
    return shared >= _SHORTEST_STEM and shared >= shorter - 1 and 0 < longer - shorter <= 2  # noqa: PLR2004 - "s", "ed"


def _is_in_third_person(verb: str, form: str) -> bool:
    """Short verbs, of which an ending is half: "I go", "I fly", "the user goes", "the user flies"."""
    return verb.isalpha() and len(verb) > 1 and form in (f"{verb}es", f"{verb.removesuffix('y')}ies")


def _compared(one: str, other: str) -> tuple[int, int, int]:
    """The lengths of both and of their common beginning; no beginning in common where a digit is among them."""
    shorter, longer = sorted((one, other), key=len)
    if _IS_UNSPACED.match(one) or any(character.isdigit() for character in one + other):
        return len(shorter), len(longer), 0
    shared = next((index for index, letter in enumerate(shorter) if letter != longer[index]), len(shorter))
    return len(shorter), len(longer), shared


def _words_of(piece: str) -> list[str]:
    if not _IS_UNSPACED.match(piece):
        return [piece]
    return [piece[index : index + 2] for index in range(max(1, len(piece) - 1))]


def is_unspaced(text: str) -> bool:
    """Whether a text is of a script without spaces, for the most part."""
    letters = [character for character in text if character.isalpha()]
    return 2 * sum(1 for letter in letters if _IS_UNSPACED.match(letter)) > len(letters)
