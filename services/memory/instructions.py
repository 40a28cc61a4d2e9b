"""Texts that no fact may be: orders to a model, and secrets.

Owns the patterns. They look at form alone, and are the second wall: the first is that only the user's own words are learned
from, the third that memories are shown to a model as data. A user's wish how to be answered is a fact about them, as long as
it is put as one.
"""

import re
import unicodedata
from typing import Final

_OVERRIDE: Final = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\b[^.\n]{0,60}\b(?:instruction|prompt|rule|guideline|polic|safety|above|previous)"
    r"|\bsystem\s*(?:prompt|message|instruction)|\bdeveloper (?:mode|message)|\bjail\s?break|\bprompt injection"
    r"|\byou are (?:now|no longer)\b|\byou are (?:a|an|the) (?:\w+ ){0,3}(?:assistant|ai|model|bot|agent|expert)\b"
    r"|\b(?:act|behave|respond) as (?:if|though|a|an)\b|\bpretend (?:to be|you)|\bnew instructions?\b|\bfrom now on,? you\b"
    r"|<\|?(?:system|im_start|im_end|endoftext)|^[^\S\n]*(?:system|assistant|developer)\s*:|\[/?inst\]"
    r"|\b(?:ignoriere|vergiss)\b[^.\n]{0,40}(?:anweisung|regel)|\b(?:ignora|olvida)\b[^.\n]{0,40}(?:instruccion|reglas)"
    r"|\b(?:ignore|oublie)[sz]?\b[^.\n]{0,40}(?:consigne|instruction|regle)|игнорируй[^.\n]{0,40}инструкц|忽略[^。\n]{0,20}(?:指令|指示)",
    re.IGNORECASE | re.MULTILINE,
)
_ORDER: Final = re.compile(
    r"^\W*(?:please\s+)?(?:always|never|do not|don't|you (?:must|should|shall|have to|need to)|make sure|be sure"
    r"|when(?:ever)? (?:asked|the user)|if (?:asked|the user)|remember to|say|reply|respond|answer|send|visit|open|click|run"
    r"|execute|call|email|forward|tell|reveal|recommend)\b"
    r"|\b(?:the )?(?:assistant|ai|model|chatbot|bot) (?:must|should|shall|has to|needs to|will)\b",
    re.IGNORECASE,
)
_WISH: Final = re.compile(
    r"\b(?:wants?|wishes|prefers?|likes?|would like|asks?|asked|expects?|hates?|dislikes?)\b", re.IGNORECASE
)
_SENTENCE_END: Final = re.compile(r"[.!?;]\s+")
_COMMAND_WITH_LINK: Final = re.compile(
    r"\b(?:visit|open|click|go to|fetch|download|run|curl|wget|send|post|install|subscribe|load)\b[^\n]{0,80}(?:https?://|www\.)"
    r"|(?:https?://|www\.)\S+[^\n]{0,40}\b(?:visit|open|click|fetch|download|run|send)\b",
    re.IGNORECASE,
)
_ASSISTANT: Final = re.compile(
    r"^\W*(?:the |this |an? )?(?:ai|assistant|chatbot|language model|model|bot|chatgpt|gpt|parley|you|your)\b",
    re.IGNORECASE,
)
_CONFIDENTIAL: Final = (
    r"pass\s?(?:word|code|phrase|wort|wd|key)|pwd|pin(?:\s?(?:code|number))?|cvv|cvc|api[\s_-]?key|(?:access|bearer)[\s_-]?token"
    r"|secret key|private key"
    r"|(?:2fa|mfa|otp|security|recovery|backup|unlock|entry|access|alarm|door|gate|safe|lock)(?: \w+)? codes?"
    r"|(?:code|combination) (?:for|of|to) (?:the|my|their)(?: user's)? (?:safe|door|gate|lock|alarm|phone|house|vault)"
    r"|recovery phrase|seed phrase|contrase(?:ñ|n)a|clave|mot de passe|kennwort|senha|parola"
    r"|wachtwoord|пароль|密码|パスワード|비밀번호"
)
_TOLD_SECRET: Final = re.compile(
    rf"\b(?:{_CONFIDENTIAL})\b(?:\s+(?:for|of|to|at|on)\s+[^.\n]{{1,40}}?)?\s*(?:is|are|was|es|est|ist|é|è|:|=|は|是)\s*['\"]?\S",
    re.IGNORECASE,
)
_IS_SECRET: Final = re.compile(rf"^\W*(?:\w+\W+)?(?:{_CONFIDENTIAL})s?\W*$", re.IGNORECASE)
_KEY: Final = re.compile(
    r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{12,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bAKIA[0-9A-Z]{12,}|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{20,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*|-----BEGIN [A-Z ]*PRIVATE KEY|\bglpat-[\w-]{10,}|\b[0-9a-f]{40,}\b"
)
# What a reader does not see, and a pattern would stumble over.
_UNSEEN: Final = re.compile(
    "[\u00ad\u034f\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\ufeff\U000e0000-\U000e007f]"
)
_SOCIAL_SECURITY: Final = re.compile(r"\b\d{3}-\d{2}-\d{4}\b")
_DIGITS: Final = re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)")
_IBAN: Final = re.compile(r"\b[A-Z]{2}\d{2}(?:[ ]?[0-9A-Z]{4}){3,7}(?:[ ]?[0-9A-Z]{1,3})?\b")


def overrides_instructions(text: str) -> bool:
    """Whether a text speaks to a model about what it is told to do."""
    return bool(_OVERRIDE.search(_plain(text)))


def is_order(text: str) -> bool:
    """Whether a fact is an order to a model rather than something about the user; a wish, put as one, is not."""
    text = _plain(text)
    if overrides_instructions(text) or _COMMAND_WITH_LINK.search(text):
        return True
    return any(_ORDER.search(sentence) and not _WISH.search(sentence) for sentence in _SENTENCE_END.split(text))


def is_about_assistant(text: str, subject: str) -> bool:
    """Whether a fact tells of the assistant instead of the user."""
    return bool(_ASSISTANT.search(text) or _ASSISTANT.search(subject))


def holds_secret(text: str, attribute: str) -> bool:
    """Whether a text tells a password, a key, a card's or an account's number, or a social security number."""
    text = _plain(text)
    if _TOLD_SECRET.search(text) or _KEY.search(text) or _SOCIAL_SECURITY.search(text) or _IS_SECRET.match(attribute):
        return True
    return any(_is_card(found) for found in _DIGITS.findall(text)) or any(
        _is_account(found) for found in _IBAN.findall(text)
    )


def _plain(text: str) -> str:
    """As it reads: without what is not seen, in the usual form of its letters."""
    return unicodedata.normalize("NFKC", _UNSEEN.sub("", text))


def _is_card(text: str) -> bool:
    """By Luhn's sum (ISO/IEC 7812)."""
    digits = [int(character) for character in text if character.isdigit()][::-1]
    doubled = (digit * 2 - 9 * (digit > 4) for digit in digits[1::2])  # noqa: PLR2004 - two digits from 5 on
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_account(text: str) -> bool:
    """By the check digits of an IBAN (ISO 13616)."""
    plain = text.replace(" ", "")
    moved = plain[4:] + plain[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1
