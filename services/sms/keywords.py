"""The words by which people say that they want no text messages, or want them again, or want help.

Owns the lists: Twilio's, and the usual ones of other languages. A word counts only as the whole message, in any case,
with or without its accents and whatever punctuation or quotes are around it. `YES` means "again" only to a number that
wanted none: to anybody else it is an answer.
"""

import unicodedata
from dataclasses import dataclass
from typing import Final

from services.sms.records import Keyword

_STOP: Final = {
    "en": "stop stopall unsubscribe cancel end quit optout revoke",
    "de": "stopp abbestellen abmelden",
    "es": "alto parar baja cancelar",
    "fr": "arret arreter desabonner",
    "it": "ferma annulla disiscrivi",
    "nl": "stoppen afmelden",
    "pt": "pare sair cancele",
    "sv": "avsluta",
    "pl": "koniec",
    "tr": "dur iptal",
    "ru": "стоп отписаться",
    "uk": "відписатися",
    "ar": "توقف",
    "hi": "रोकें",
    "ja": "停止 配信停止",
    "ko": "중지 수신거부",
    "zh": "停止 退订",
}
_START: Final = {
    "en": "start unstop",
    "de": "starten",
    "es": "empezar comenzar",
    "fr": "commencer",
    "it": "inizia",
    "pt": "comecar",
    "ja": "開始",
    "ko": "시작",
    "zh": "开始",
}
_HELP: Final = {"en": "help info", "de": "hilfe", "es": "ayuda", "fr": "aide", "it": "aiuto", "pt": "ajuda"}
_AGAIN: Final = "yes"
_MOST_CHARACTERS: Final = 40


@dataclass(frozen=True, slots=True)
class Said:
    """A keyword, and the language of the word."""

    keyword: Keyword
    language: str


def _plain(text: str) -> str:
    """Without case, accents (of Latin letters), and what is around the letters."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    # Not the breve: it makes another letter of a Cyrillic one.
    kept = "".join(one for one in folded if not "\u0300" <= one <= "\u036f" or one == "\u0306")
    kept = unicodedata.normalize("NFC", kept)
    first = next((at for at, one in enumerate(kept) if unicodedata.category(one)[0] in "LN"), len(kept))
    last = next((at for at in range(len(kept) - 1, -1, -1) if unicodedata.category(kept[at])[0] in "LMN"), -1)
    return " ".join(kept[first : last + 1].split())


def _read(lists: dict[str, str], keyword: Keyword) -> dict[str, Said]:
    return {_plain(word): Said(keyword, language) for language, words in reversed(lists.items()) for word in words.split()}


_WORDS: Final = {**_read(_HELP, "help"), **_read(_START, "start"), **_read(_STOP, "stop")}


def read_keyword(text: str, *, is_opted_out: bool) -> Said | None:
    """The keyword that a whole message is; None for any other message."""
    if len(text) > _MOST_CHARACTERS:
        return None
    word = _plain(text)
    # "opt out", "opt-out" and "STOP ALL" are those words too.
    found = _WORDS.get(word) or _WORDS.get(word.replace("-", "").replace(" ", ""))
    if found is None and word == _AGAIN and is_opted_out:
        return Said("start", "en")
    return found
