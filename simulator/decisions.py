"""Decisions about texts, by rule: what a request for a decision with a reply is answered.

It knows a request by its schema, and the text by the input's JSON. A text that gives orders to its reader, wants nothing,
or of which nobody can tell what it wants is `no`; a question or a request is `yes`, in the language that is named or that
its words are of. The same input always comes to the same decision.
"""

import re
from dataclasses import dataclass
from typing import Final

import orjson

from simulator.prompt import Prompt
from simulator.requests import JsonObject

_FIELDS: Final = frozenset({"decision", "reply", "reason", "confidence"})
_ORDERS: Final = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\b.{0,60}\b(?:instructions?|rules?|prompt|everything|above)\b"
    r"|\b(?:system prompt|you are now|developer mode|jailbreak|answer yes to|say yes to|always (?:say|answer|decide))\b"
    r"|\b(?:ignora|olvida|ignorez|oublie|ignoriere|vergiss)\w*\b.{0,60}"
    r"\b(?:instruc\w*|instruktion\w*|anweisung\w*|consignes?|reglas)\b"
    r"|\bdecision\W{1,5}yes\b",
    re.IGNORECASE | re.DOTALL,
)
_REFUSES: Final = re.compile(
    r"\b(?:stop|unsubscribe|no thanks|not interested|(?:do not|don't) (?:reply|contact|text|write)|leave me alone"
    r"|no gracias|non merci|nein danke|kein interesse|não obrigad[oa])\b",
    re.IGNORECASE,
)
_THANKS: Final = re.compile(
    r"^\W*(?:(?:ok(?:ay)?|k|thanks?|thank you|thx|ty|lol|bye|cool|great|np|see you|good night"
    r"|gracias|vale|adiós|merci|d'accord"
    r"|salut|danke|super|tschüss|grazie|ciao|obrigad[oa]|tchau|ありがとう|谢谢|спасибо|شكرا)\b\W*)*$",
    re.IGNORECASE,
)
_ASKS: Final = re.compile(
    r"[?\uff1f\u061f]|^\W*¿"
    r"|\b(?:can|could|will|would|are|is|do|does|did|shall|should|may|have|has) (?:you|we|i|it|they|he|she|that|the)\b"
    r"|\b(?:please|let me know|call me|tell me|send me|what|when|where|who|why|how)\b"
    r"|\b(?:por favor|avísame|llámame|s'il (?:te|vous) pla[iî]t|bitte|sag mir|ruf mich an|per favore)\b",
    re.IGNORECASE,
)
_LANGUAGES: Final[tuple[tuple[str, re.Pattern[str]], ...]] = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("zh", re.compile(r"[\u4e00-\u9fff]")),
    ("ru", re.compile(r"[\u0430-\u044f\u0451]", re.IGNORECASE)),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("es", re.compile(r"[¿¡ñ]|\b(?:por favor|puedes|vienes|mañana|gracias|qué|cuándo|avísame)\b", re.IGNORECASE)),
    ("fr", re.compile(r"\b(?:est-ce|vous|demain|peux-tu|viens|merci|quand|où|s'il)\b", re.IGNORECASE)),
    ("de", re.compile(r"\b(?:kommst|kannst|bitte|morgen|wann|danke|ich|nicht|du)\b|ß", re.IGNORECASE)),
)
_REPLIES: Final = {
    "en": "Got your message. I will come back to you about it.",
    "es": "Recibí tu mensaje. Te respondo pronto.",
    "fr": "J'ai bien reçu ton message. Je reviens vers toi.",
    "de": "Deine Nachricht ist da. Ich melde mich dazu.",
    "ja": "メッセージを受け取りました。追ってお返事します。",
    "zh": "已收到您的消息。稍后回复您。",
    "ru": "Сообщение получено. Я отвечу позже.",
    "ar": "وصلت رسالتك. سأعود إليك قريبا.",
}


@dataclass(frozen=True, slots=True)
class _Ruling:
    is_yes: bool
    reason: str
    confidence: float


def asks_decision(schema: JsonObject) -> bool:
    """Whether a schema is that of a decision about a text."""
    return frozenset(schema.get("properties") or ()) == _FIELDS


def decision_for(prompt: Prompt) -> str:
    """The decision about the text of the input, as JSON."""
    text, language = _read(prompt.last_user.text)
    ruling = _rule(text)
    reply = _REPLIES.get(language.partition("-")[0].lower() or _language_of(text), _REPLIES["en"]) if ruling.is_yes else ""
    answer = {
        "decision": "yes" if ruling.is_yes else "no",
        "reply": reply,
        "reason": ruling.reason,
        "confidence": ruling.confidence,
    }
    return orjson.dumps(answer).decode()


def _read(asked: str) -> tuple[str, str]:
    try:
        told = orjson.loads(asked)
    except orjson.JSONDecodeError:
        return asked, ""
    if not isinstance(told, dict):
        return asked, ""
    return str(told.get("text") or ""), str(told.get("language") or "")


def _rule(text: str) -> _Ruling:
    if _ORDERS.search(text):
        return _Ruling(is_yes=False, reason="It tries to give orders to its reader.", confidence=0.95)
    if _REFUSES.search(text):
        return _Ruling(is_yes=False, reason="It is a refusal.", confidence=0.9)
    if _THANKS.match(text):
        return _Ruling(is_yes=False, reason="It wants nothing.", confidence=0.9)
    if _ASKS.search(text):
        return _Ruling(is_yes=True, reason="It asks for an answer.", confidence=0.9)
    return _Ruling(is_yes=False, reason="It is not clear what it wants.", confidence=0.3)


def _language_of(text: str) -> str:
    return next((language for language, pattern in _LANGUAGES if pattern.search(text)), "en")
