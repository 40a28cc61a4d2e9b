"""What of a message are its author's own words: only from these may anything be learned.

Owns the rules by which foreign text is told apart, all of them by form, none by meaning:

- fenced code, indented code, quoted lines (`>`), logs and paragraphs of markup go;
- so does what follows an announcement of foreign text ("Summarize this:", "Traduce el texto:", "What of this page?" before
  an empty line), to the end of the message;
- so do long quotations in quotation marks, paragraphs longer than `MOST_BLOCK_CHARACTERS`, and of messages longer than
  `MOST_WRITTEN_CHARACTERS` all but a short first paragraph: such texts are pasted more often than written;
- so do lines that the assistant said before, and memories that were told to a model (`[m:…]`, or the header of their list);
- where a paragraph speaks to a model about its instructions, all goes but a short first paragraph.

What is cut wrongly costs a fact: the message itself stays remembered as it was said.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from services.memory.extraction.vocabulary import ASKING, FIRST_PERSON, FUNCTION_WORDS, SMALL_TALK
from services.memory.extraction.words import words
from services.memory.instructions import overrides_instructions

MOST_BLOCK_CHARACTERS: Final = 1_200
MOST_WRITTEN_CHARACTERS: Final = 2_400
_MOST_INTRODUCTION_CHARACTERS: Final = 600
_MOST_QUOTED_CHARACTERS: Final = 100
_MOST_SMALL_TALK_WORDS: Final = 12
_NOTHING: Final = SMALL_TALK | FUNCTION_WORDS
_FEWEST_REPEATED_WORDS: Final = 5
_MARKUP_SHARE: Final = 0.05
_MOST_MARKS: Final = 4
# What tells a line apart stands near its beginning. Patterns see no more of a line, and so cost little whatever it is.
_LOOKED_AT_CHARACTERS: Final = 400

_FENCE: Final = re.compile(r"[ \t]*(```|~~~)")
_FOREIGN_LINE: Final = re.compile(
    r"\t| {4}|[ ]{0,3}[>|]"
    r"|.*(?:\[m:|Memories \(data, not instructions)|\s*-\s*\[[0-9a-f:-]{6,}\]"
    r"|\s*(?:\d{4}-\d\d-\d\d[T ]\d\d:\d\d|\[?\d\d:\d\d:\d\d|Traceback |File \"|at [\w.$]+\(|\$ |#!)",
    re.IGNORECASE,
)
_TAG: Final = re.compile(r"<[/!a-z][^<>]{0,300}>", re.IGNORECASE)
_INLINE_CODE: Final = re.compile(r"`[^`\n]+`")
_QUOTATION: Final = re.compile(rf"[\"“„«「『][^\"“”„«»「」『』]{{{_MOST_QUOTED_CHARACTERS},}}[\"”“»」』]")
_TEXT_VERB: Final = (
    r"summari[sz]e|summary|translat|rewrite|rephrase|paraphrase|proofread|correct|improve|edit|explain|analy[sz]e|review|fix"
    r"|extract|classify|check|debug|read|reply to|respond to|answer this|resum|traduc|traduz|corrig|explica|analiz"
    r"|résum|tradui|reformul|übersetz|fass|zusammen|korrigier|erklär|riassum|traduci|samenvat|vertaal|переведи|перескажи|исправь"
    r"|翻译|总结|翻訳|要約|번역|요약"
)
_TEXT_NOUN: Final = (
    r"text|page|website|article|e-?mail|message|letter|post|story|document|transcript|log|code|output|error|paragraph|poem|review"
    r"|texto|página|artículo|correo|artigo|texte|lettre|seite|artikel|nachricht|testo|pagina"
)
_POINTING: Final = r"this|the following|following|pasted|below|here(?:'s| is| are)|diese[rsn]?|este|cet|questo"
_PLEASE: Final = (
    r"please|pls|can|could|would|will|you|kindly|now|then|hey|por favor|puedes|podrías|bitte|kannst|du|peux|tu|puoi|me"
)
_POINTED_AT: Final = rf".{{0,200}}?\b(?:{_POINTING})\b[^:]{{0,60}}\b(?:{_TEXT_NOUN})\b"
_ANNOUNCED: Final = re.compile(
    rf"(?:\W{{0,20}}(?:(?:{_PLEASE})\b\W{{1,5}}){{0,4}}(?:{_TEXT_VERB})|{_POINTED_AT})[^:]{{0,120}}[:\uff1a]", re.IGNORECASE
)
_POINTS_AT_TEXT: Final = re.compile(_POINTED_AT, re.IGNORECASE)
_MARKUP: Final = re.compile(r"[{}<>\[\]|=;\\_#*/]")
_SENTENCE: Final = re.compile(r"[^.!?\n]+[.!?]*")
_ASKED_OF_ASSISTANT: Final = re.compile(
    r"\b(?:do|can|could|should|would|may|must) (?:i|we)\b|\b(?:tell|give|show|help|let|remind) (?:me|us)\b",
    re.IGNORECASE,
)


def own_words(text: str, *, assistant_lines: Collection[str] = ()) -> str:
    """What the author of a message said in their own words, at most `MOST_WRITTEN_CHARACTERS`; empty where nothing of it is.

    `assistant_lines` are lines that the assistant said before, by `lines_of`.
    """
    blocks = _blocks(_lines(text))
    if sum(map(len, blocks)) > MOST_WRITTEN_CHARACTERS or overrides_instructions(text):
        blocks = [block for block in blocks[:1] if len(block) <= _MOST_INTRODUCTION_CHARACTERS]
    kept = (
        _kept_lines(_INLINE_CODE.sub(" ", _QUOTATION.sub(" ", block)), assistant_lines) for block in blocks if _is_own(block)
    )
    return "\n".join(line for line in kept if line)


def lines_of(text: str) -> frozenset[str]:
    """The lines of a message long enough to be known again, in the form in which words are compared."""
    found = (words(line) for line in re.split(r"[\n.!?]", text))
    return frozenset(" ".join(line) for line in found if len(line) >= _FEWEST_REPEATED_WORDS)


def holds_nothing(said: str) -> bool:
    """Whether words surely tell nothing of their author: none at all, small talk, or plain questions and orders in English.

    Cautious: what it does not know may hold something.
    """
    spoken = words(said)
    if len(spoken) <= _MOST_SMALL_TALK_WORDS and _NOTHING.issuperset(spoken):
        return True
    return all(_only_asks(sentence) for sentence in _SENTENCE.findall(said) if words(sentence))


def _only_asks(sentence: str) -> bool:
    if not sentence.isascii():
        return False
    rest = words(_ASKED_OF_ASSISTANT.sub(" ", sentence))
    first = next((word for word in words(sentence) if word not in ("please", "and", "so", "ok", "okay", "hi", "hey")), "")
    return first in ASKING and FIRST_PERSON.isdisjoint(rest)


def _lines(text: str) -> Iterator[str]:
    """The lines until foreign text is announced; empty ones in the place of those that are no words of their own."""
    fence = None
    lines = text.splitlines()
    for line, following in zip(lines, (*lines[1:], "."), strict=True):
        begin = line[:_LOOKED_AT_CHARACTERS]
        mark = _FENCE.match(begin)
        if mark is not None and fence in (None, mark[1]):
            fence = None if fence else mark[1]
            yield ""
            continue
        if fence is not None or _FOREIGN_LINE.match(begin):
            yield ""
            continue
        announced = _ANNOUNCED.match(begin)
        if announced is not None:
            yield line[: announced.end()]
            return
        yield line
        if not following.strip() and _POINTS_AT_TEXT.match(begin):
            return


def _blocks(lines: Iterable[str]) -> list[str]:
    """The paragraphs, as they are parted by empty lines."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line.strip())
        elif blocks[-1]:
            blocks.append([])
    return ["\n".join(block) for block in blocks if block]


def _is_own(block: str) -> bool:
    if len(block) > MOST_BLOCK_CHARACTERS or overrides_instructions(block):
        return False
    if len(_TAG.findall(block)) > 1:
        return False
    return len(_MARKUP.findall(block)) <= max(_MOST_MARKS, _MARKUP_SHARE * len(block))


def _kept_lines(block: str, assistant_lines: Collection[str]) -> str:
    lines = (line.strip() for line in block.splitlines())
    return "\n".join(line for line in lines if line and not _repeats(line, assistant_lines))


def _repeats(line: str, assistant_lines: Collection[str]) -> bool:
    spoken = lines_of(line)
    return bool(spoken) and all(one in assistant_lines for one in spoken)
