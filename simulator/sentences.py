"""Sentences, and the statements that one of them joins.

Owns where plain English is parted: "My name is Ana and I live in Lisbon, but I work in Porto" makes three statements. What
the second leaves out ("I live in Lisbon and work at Acme") is put back. It understands nothing of what they say.
"""

import re
from collections.abc import Iterator

_SENTENCE_CHARACTERS = 400
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_JOINT = re.compile(
    r"\s*(?:[,;:]|[,;]?\s(?:and|but|so|while|though|because|since))\s+(?:(?:and|but|so)\s+)?(?:also\s+)?"
    r"(?=(?:I|I'm|I've|my|we|our|call me)\b)",
    re.IGNORECASE,
)
_LEFT_OUT = re.compile(
    r"\b(I(?:'m)?\b[^,;]*?),?\s+and\s+"
    r"(?=(?:live in|work (?:at|for|as|in)|speak|like|love|enjoy|hate|dislike|have an?|own an?|am allergic)\b)",
    re.IGNORECASE,
)


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, each with the mark that ends it; of a long one the whole words at its beginning."""
    return (_begun(found.strip()) for found in _SENTENCE.findall(text) if found.strip())


def _begun(sentence: str) -> str:
    """Whoever reads a sentence looks from many places of it to its end, so that a long one would hold everybody up."""
    if len(sentence) <= _SENTENCE_CHARACTERS:
        return sentence
    mark = sentence[-1] if sentence[-1] in ".!?" else ""
    return sentence[:_SENTENCE_CHARACTERS].rsplit(maxsplit=1)[0] + mark


def statements(sentence: str) -> list[str]:
    """The statements that a sentence joins, in its order; the sentence itself where it joins none."""
    return [part for part in _JOINT.split(_LEFT_OUT.sub(r"\1 and I ", sentence)) if part.strip()]
