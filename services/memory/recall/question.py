"""What a query asks: its words, its meaning in the user's own voice, and the time that it speaks of.

Owns all that is read from the text of a query; nothing of it depends on what is remembered. The language of its cues is
English: a query in another one is searched as it is written.
"""

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from services.memory.recall.moments import Window, window_of

# What is embedded of a query. Meaning blurs with length, and the models end somewhere.
_MOST_CHARACTERS: Final = 2_000
_WORD: Final = re.compile(r"\w+")
_JOINED: Final = re.compile(r"\w[-/.@]\w")
# From Thai on scripts may do without spaces.
_SPACELESS: Final = 0x0E00
# Rough, and no more than that: Postgres decides what a word is.
_STOP_WORDS: Final = frozenset(
    {
        *("a", "about", "am", "an", "and", "any", "are", "as", "at", "be", "been", "but", "by", "can", "could", "did", "do"),
        *("does", "for", "from", "had", "has", "have", "how", "i", "if", "in", "is", "it", "its", "me", "my", "not", "of"),
        *("on", "or", "our", "s", "should", "so", "t", "than", "that", "the", "their", "them", "then", "they", "this", "to"),
        *("was", "we", "were", "what", "when", "where", "which", "who", "why", "will", "with", "would", "you", "your"),
    }
)
_THE_USER: Final = re.compile(r"\b(?:the )?(?:user|human|customer)['\u2019]s\b", re.IGNORECASE)
_USER: Final = re.compile(r"\bthe (?:user|human|customer)\b", re.IGNORECASE)
_FIRST_PERSON: Final = re.compile(r"\b(?:I|me|my|mine|we|our|us)\b", re.IGNORECASE)
_SOMEBODY: Final = re.compile(r"(?<=[\w,;:] )[A-Z][a-z]+")
_THEIR: Final = re.compile(r"\btheir\b", re.IGNORECASE)
_THEIRS: Final = re.compile(r"\btheirs\b", re.IGNORECASE)
_THEM: Final = re.compile(r"\bthem\b", re.IGNORECASE)
_THEY_ARE: Final = re.compile(r"\b(?:are they|they are|they['\u2019]re)\b", re.IGNORECASE)
_THEY: Final = re.compile(r"\bthey\b", re.IGNORECASE)
# What speaks of how things were and are not any more.
_PAST: Final = re.compile(
    r"\b(?:used to|previous(?:ly)?|former(?:ly)?|in the past|back then|once (?:lived|worked|liked|had|was)"
    r"|no longer|not any ?more|originally|at first|until (?:then|recently)|earlier|old(?:er)? (?:job|address|home|flat|phone"
    r"|number|name|employer|car|city|plan|preference)|ha(?:ve|s|d) changed|changed (?:my|their|the user)"
    r"|histor(?:y|ies|ical(?:ly)?)|last time)\b"
    # Not of what is still to come: `before Friday`, `before 5 pm`.
    r"|\bbefore\b(?!\s+(?:\d|(?:mon|tues|wednes|thurs|fri|satur|sun)day|tomorrow|tonight|next|noon|midnight"
    r"|the (?:end|deadline)))",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Question:
    """`words` are searched as such, about `word_count` of them; `meaning` is embedded.

    `asks_about_past`: what holds no more is asked for too.
    """

    words: str = field(repr=False)
    word_count: int
    meaning: str = field(repr=False)
    window: Window | None
    asks_about_past: bool


def read_question(query: str, *, now: datetime, name: str = "") -> Question:
    """Reads a query. `name` is what the user is called: asked about by name, they are looked for in their own words."""
    spoken = own_voice(query)
    return Question(
        words=spoken,
        word_count=_count_words(spoken),
        meaning=_shortened(_own_name(spoken, name)),
        window=window_of(query, now=now),
        asks_about_past=_PAST.search(query) is not None,
    )


def own_voice(query: str) -> str:
    """What is asked about the user, as the user would say it: what is remembered are the user's own words.

    `their` is taken for the user's where nobody else is in sight: no name, no first person.
    """
    spoken = _USER.sub("I", _THE_USER.sub("my", query))
    if spoken == query and (_FIRST_PERSON.search(query) or _SOMEBODY.search(query)):
        return spoken
    spoken = _THEIRS.sub("mine", _THEIR.sub("my", spoken))
    spoken = _THEY_ARE.sub(lambda match: "am I" if match[0][:3].casefold() == "are" else "I am", spoken)
    return _THEM.sub("me", _THEY.sub("I", spoken))


def _own_name(text: str, name: str) -> str:
    if not name.strip():
        return text
    called = re.escape(name.strip())
    possessive = re.sub(rf"\b{called}['\u2019]s?(?!\w)", "my", text, flags=re.IGNORECASE)
    return re.sub(rf"\b{called}\b", "I", possessive, flags=re.IGNORECASE)


def _count_words(text: str) -> int:
    """How many different words there are to look for, rather too many than too few.

    A word with a hyphen is looked for in three ways, and where no spaces are each character is a word.
    """
    words = {word for word in _WORD.findall(text.casefold()) if word not in _STOP_WORDS}
    return sum(len(word) if ord(word[0]) >= _SPACELESS else 1 for word in words) + len(_JOINED.findall(text))


def _shortened(text: str) -> str:
    """The beginning and the end of a long text: what is asked usually stands at one of them."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    half = _MOST_CHARACTERS // 2
    return f"{text[:half]} … {text[-half:]}"
