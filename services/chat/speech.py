"""A reply as it can be spoken: plain text, and how long speaking it takes.

Owns the way from Markdown to sentences. Invariants: what was said in words stays, in order; nothing is left that a speech
engine would spell out (marks, addresses, emoji); the work grows with the text's length and not faster, whatever is in it.
Code in blocks is left out where there is anything else to say.
"""

import html
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

WORDS_A_MINUTE: Final = 150
"""Speech in English at a calm pace (National Center for Voice and Speech: about 150 words a minute); used for every
language that is written in words."""
HAN_A_MINUTE: Final = 250
"""Chinese characters: newsreaders are near 300, everyday speech near 200 to 250."""
KANA_A_MINUTE: Final = 300
"""Japanese characters: what newsreaders of NHK are trained to."""
HANGUL_A_MINUTE: Final = 300
"""Korean syllables, each one character: newsreaders are near 300 to 350."""
_LETTERS_OF_A_WORD: Final = 5
"""In scripts that are written without spaces: Thai, Lao, Khmer, Burmese."""

_FENCE: Final = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_DEFINITION: Final = re.compile(r"^ {0,3}\[[^\]\n]{1,200}\]:[ \t]*\S")
_RULE: Final = re.compile(r"^ {0,3}(?:[-*_=][ \t]*){3,}$")
_UNDERLINE: Final = re.compile(r"^ {0,3}(?:-+|=+)[ \t]*$")
# Nothing in it can be read in two ways: where a line fails at its end, every way would be tried.
_TABLE_RULE: Final = re.compile(r"\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*(?:(?::-*:?|-+:?)[ \t]*)?)*")
_QUOTE: Final = re.compile(r"^[ \t]*(?:>[ \t]?)+")
_HEADING: Final = re.compile(r"^ {0,3}#{1,6}[ \t]+(.*)$")
_ITEM: Final = re.compile(r"^[ \t]*(?:[-*+•]|(\d{1,9})[.)])[ \t]+(?:\[[ xX]\][ \t]+)?")

# Where escaped characters wait, in a private plane, until the marks are gone.
_SET_ASIDE: Final = 0xF0000
_PUT_ASIDE: Final = re.compile("[\U000f0000-\U000f007f]")
_ESCAPED: Final = re.compile(r"\\([!-/:-@\[-`{-~])")
_LINK: Final = r"\[[^\[\]\n]{0,500}\]\([^()\s]{0,2000}(?:[ \t]+\"[^\"\n]{0,300}\")?\)"
_CITED_LINKS: Final = re.compile(rf"[ \t]?\((?:{_LINK}[,; ]{{0,3}})+\)")
_IMAGE_OR_LINK: Final = re.compile(r"!?\[([^\[\]\n]{0,500})\]\([^()\s]{0,2000}(?:[ \t]+\"[^\"\n]{0,300}\")?\)")
_REFERENCE: Final = re.compile(r"\[(?!\^?\d{1,3}\])([^\[\]\n]{1,500})\]\[[^\[\]\n]{0,200}\]")
_MARK: Final = re.compile(
    r"[ \t]?(?:\[\^?\d{1,3}\]|\[\^[\w-]{1,40}\]|【[^【】\n]{0,200}】|[\ue200-\ue2ff][^\s]{0,200}[\ue200-\ue2ff])"
)
_ADDRESS: Final = re.compile(r"<?\b(?:https?://|www\.)[^\s<>\"]{1,2000}>?", re.IGNORECASE)
_TAG: Final = re.compile(r"</?[A-Za-z][^<>\n]{0,300}>|<!--[^<>]{0,1000}-->")
_BACKTICKS: Final = re.compile(r"`+")
_STARS: Final = re.compile(r"\*{1,3}|_{1,3}|~~")
_EMOJI: Final = re.compile(
    "[\U0001f000-\U0001faff\u2600-\u27bf\u2b00-\u2bff\u231a-\u231b\u23e9-\u23fa\ufe0e\ufe0f\u200d\u20e3\U000e0020-\U000e007f]+"
)
_SPACES: Final = re.compile(r"[ \t\u00a0]{2,}")
_BEFORE_STOP: Final = re.compile(r"[ \t]+([.,;:!?\u2026])")
_STOPS: Final = ".,;:!?)\"'\u2026\u3002\uff01\uff1f\uff1b\uff1a\u3001\u201d\u2019\u00bb"

_HAN: Final = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA: Final = re.compile("[\u3040-\u30ff\uff66-\uff9f]")
_HANGUL: Final = re.compile("[\uac00-\ud7a3]")
_UNSPACED: Final = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
_WORD: Final = re.compile(r"[^\W_]+(?:['\u2019.,-][^\W_]+)*")


def spoken_text(markdown: str) -> str:
    """The text free of markup, links, citations and emoji: one sentence or more a line, no empty lines."""
    spoken = "\n".join(_lines(markdown, with_code=False))
    return spoken or "\n".join(_lines(markdown, with_code=True))


def spoken_seconds(text: str, language: str) -> float:
    """About how long speaking a text takes, to a tenth of a second; `language` is a BCP 47 tag or empty."""
    han, kana, hangul, unspaced = (len(script.findall(text)) for script in (_HAN, _KANA, _HANGUL, _UNSPACED))
    is_japanese = kana > 0 or language.lower().partition("-")[0] == "ja"
    rest = text
    for script in (_HAN, _KANA, _HANGUL, _UNSPACED):
        rest = script.sub(" ", rest)
    words = len(_WORD.findall(rest)) + unspaced / _LETTERS_OF_A_WORD
    minutes = words / WORDS_A_MINUTE + han / (KANA_A_MINUTE if is_japanese else HAN_A_MINUTE)
    minutes += kana / KANA_A_MINUTE + hangul / HANGUL_A_MINUTE
    return round(minutes * 60, 1)


def _lines(markdown: str, *, with_code: bool) -> Iterator[str]:
    fence = ""
    for line in markdown.splitlines():
        found = _FENCE.match(line)
        if fence:
            is_end = found is not None and found[1].startswith(fence) and not line.strip().strip(fence[0])
            if is_end:
                fence = ""
            elif with_code and line.strip():
                yield line.strip()
        elif found is not None:
            fence = found[1]
        elif spoken := _line(line):
            yield spoken


def _line(line: str) -> str:
    bare = _QUOTE.sub("", line)
    if not bare.strip() or any(one.match(bare) for one in (_RULE, _UNDERLINE, _DEFINITION)):
        return ""
    if "|" in bare and _TABLE_RULE.fullmatch(bare.strip(" \t")):
        return ""
    heading = _HEADING.match(bare)
    if heading is not None:
        return _ended(_plain(_without_closing(heading[1])))
    item = _ITEM.match(bare)
    if item is not None:
        number = f"{item[1]}. " if item[1] else ""
        words = _plain(bare[item.end() :])
        return _ended(number + words) if words else ""
    if bare.strip().startswith("|") and bare.strip().endswith("|"):
        cells = [_plain(cell) for cell in bare.strip().strip("|").split("|")]
        return _ended(", ".join(cell for cell in cells if cell))
    return _plain(bare)


def _without_closing(heading: str) -> str:
    """A heading without the marks that close it, which stand apart: those of `C#` do not."""
    bare = heading.rstrip(" \t")
    rest = bare.rstrip("#")
    return bare if rest and rest[-1] not in " \t" else rest


def _ended(text: str) -> str:
    """A heading, item or row as a sentence, so that the voice pauses after it."""
    return f"{text}." if text and text[-1] not in _STOPS else text


def _plain(text: str) -> str:
    """One line without inline markup."""
    text = _ESCAPED.sub(lambda found: chr(_SET_ASIDE + ord(found[1])), text)
    text = _CITED_LINKS.sub("", text)
    text = _IMAGE_OR_LINK.sub(lambda found: found[1], text)
    text = _REFERENCE.sub(lambda found: found[1], text)
    text = _MARK.sub("", text)
    text = _ADDRESS.sub(_host, text)
    text = html.unescape(_TAG.sub(" ", text))
    text = _STARS.sub(_kept_stars, _BACKTICKS.sub("", text))
    text = _EMOJI.sub("", text)
    text = _PUT_ASIDE.sub(lambda found: chr(ord(found[0]) - _SET_ASIDE), text)
    return _BEFORE_STOP.sub(lambda found: found[1], _SPACES.sub(" ", text)).strip()


def _host(found: re.Match[str]) -> str:
    """An address as people say it: its host. What ends the sentence stays."""
    address = found[0].strip("<>")
    kept = address.rstrip(".,;:!?)]}'*_")
    try:
        host = urlsplit(kept if "://" in kept else f"https://{kept}").hostname or ""
    except ValueError:
        host = ""
    return host.removeprefix("www.") + address[len(kept) :]


def _kept_stars(found: re.Match[str]) -> str:
    """The marks of emphasis go; those that stand for themselves (2 * 3, snake_case) stay."""
    text, begin, end = found.string, found.start(), found.end()
    before = text[begin - 1] if begin else " "
    after = text[end] if end < len(text) else " "
    if before.isspace() and after.isspace():
        return found[0]
    is_within = before.isalnum() and after.isalnum()
    if is_within and (found[0] in {"*", "_"} or (before.isdigit() and after.isdigit())):
        return found[0]
    return ""
