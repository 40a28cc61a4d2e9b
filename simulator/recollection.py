"""What the user asks about themselves, answered from what they said before and from the memories that the prompt tells of.

Owns the questions ("where do I live?", "what is my dog called?", "what is my X?") and where their answers are looked for:
the user's earlier messages, the newest first; then current facts, messages that are remembered, and the rest of the
background, each the newest first. What held once answers only a question about it. What the assistant said answers nothing.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import orjson

from simulator.prompt import Prompt
from simulator.sentences import sentences, statements

_LINE = re.compile(r'- \[[0-9a-f-]{36}\] \((?P<begin>\d{4}-\d\d-\d\d)(?P<end> to [\d-]+)?, (?P<who>[^)]*)\) (?P<text>".*")')
_CHARACTERS = r"[^.!?\n;,\"\\]{1,80}"
_BREAK = r"(?:but|until|because|which|who|since|so|now|these days|any ?more|though|as well|in (?:19|20)\d\d|last|this)"
_VALUES = rf"(?P<value>{_CHARACTERS}?)(?=\s*(?:[.!?;,\"\\]|$|\b{_BREAK}\b))"
_VALUE = rf"(?P<value>{_CHARACTERS}?)(?=\s*(?:[.!?;,\"\\]|$|\b(?:and|{_BREAK})\b))"
_WHO = r"\b(?:I|user)(?:'m|'ve| am| is| have| has)?(?: (?:now|currently|still|also|really|just|absolutely|do))*"
_WHOSE = r"\b(?:my|user's|their|your)"
_NOT = r"(?:no longer|don't|do not|doesn't|does not|stopped)"
_LIKE, _DISLIKE = r"(?:lik|lov|enjoy|ador)(?:e|es|s|ing)?", r"(?:hat|dislik|detest)(?:e|es|s|ing)?"
_DISLIKED = rf"{_WHO} (?:{_DISLIKE}|can't stand|{_NOT} {_LIKE}) {_VALUES}"
_LIVES = rf"{_WHO} (?:(?:liv|resid)(?:e|es|ing)|based) in {_VALUE}"
_ATTRIBUTE = re.compile(r"\bwhat(?:'s| is| are| was)\s+my\s+(?P<kind>[\w' -]{2,40}?)\s*(?:\?|\.|!|$)", re.IGNORECASE)
_TASKS = frozenset({"list", "tasks", "to-do list", "todo list"})


@dataclass(frozen=True, slots=True)
class _Topic:
    """A question, the statements that answer it, and the answer. {kind} is what the question names.

    `denied` are statements that take an answer away; `many`: more than one answer can hold.
    """

    asked: str
    stated: Sequence[str]
    answer: str
    unknown: str
    denied: Sequence[str] = ()
    many: bool = False


@dataclass(frozen=True, slots=True)
class _Told:
    """A text of the prompt, and whether what it says has ended."""

    text: str
    has_ended: bool = False


_HOME = _Topic(
    r"\bwhere\s+(?:do|am)\s+I\s+(?:live|living|reside|based)\b|\b(?:what|which)\s+(?:city|town|place)\s+do\s+I\s+live\b",
    (
        rf"\b(?:moved|relocated) (?:from .+? )?to {_VALUE}",
        _LIVES,
        rf"\b(?:I(?:'ve| have)|user has)(?: always| now)? lived in {_VALUE}",
        rf"{_WHOSE} home(?: city| town)? is (?:in )?{_VALUE}",
    ),
    "You live in {value}.",
    "You have not told me where you live.",
    denied=(rf"{_WHO} {_NOT} (?:live|living|reside) in {_VALUE}",),
)
_TOPICS = (
    _Topic(
        r"\bwho\s+am\s+I\b|\bwhat\s+am\s+I\s+called\b|\bwhat(?:'s|\s+is)\s+my\s+name\b|\bdo\s+you\s+know\s+my\s+name\b",
        (
            rf"{_WHOSE} name(?: is|'s) {_VALUE}",
            rf"\bcall me {_VALUE}",
            rf"\b(?:I(?:'m| am)|user is) called {_VALUE}",
            rf"\b(?:I go|user goes) by {_VALUE}",
        ),
        "Your name is {value}.",
        "You have not told me what your name is.",
    ),
    _HOME,
    _Topic(
        r"\bwhat\s+am\s+I\s+allergic\b|\bwhat(?:'s|\s+are|\s+is)\s+my\s+allerg(?:y|ies)\b|\b(?:am\s+I\s+allergic|do\s+I\s+have\s+any\s+allerg)",
        (rf"{_WHO} allergic to {_VALUES}",),
        "You are allergic to {value}.",
        "You have not told me what you are allergic to.",
        denied=(rf"{_WHO} (?:not|no longer) allergic to {_VALUES}",),
        many=True,
    ),
    _Topic(
        r"\bwhat\s+do\s+I\s+(?:hate|dislike|not\s+like)\b|\bwhat\s+don't\s+I\s+like\b",
        (_DISLIKED,),
        "You dislike {value}.",
        "You have not told me what you dislike.",
        denied=(rf"{_WHO} {_LIKE} {_VALUES}",),
        many=True,
    ),
    _Topic(
        r"\bwhat\s+do\s+I\s+(?:like|love|enjoy)\b",
        (rf"{_WHO} {_LIKE} {_VALUES}",),
        "You like {value}.",
        "You have not told me what you like.",
        denied=(_DISLIKED,),
        many=True,
    ),
    _Topic(
        r"\b(?:where|whom?)\s+do\s+I\s+work\b",
        (rf"{_WHO} work(?:s|ing)? (?:at|for|in) (?P<value>{_CHARACTERS}?)(?=\s*(?:[.!?;,\"\\]|$|\b(?:as|and|{_BREAK})\b))",),
        "You work at {value}.",
        "You have not told me where you work.",
        denied=(rf"{_WHO} {_NOT} work(?:ing)? (?:at|for|in) {_VALUE}",),
    ),
    _Topic(
        r"\bwhat(?:'s|\s+is|\s+are)\s+my\s+(?P<kind>[\w -]{2,40}?)(?:\s+(?:called|named)\b|'s\s+name\b)"
        r"|\bwhat(?:'s|\s+is)\s+the\s+name\s+of\s+my\s+(?P<other_kind>[\w -]{2,40}?)\s*(?:[?.!]|$)",
        (
            rf"{_WHOSE} {{kind}}(?:(?: is| are|'s) (?:called|named)|'s name is| is| are) {_VALUE}",
            rf"\ban? (?:\w+ )?{{kind}},? (?:called|named) {_VALUE}",
        ),
        "Your {kind} is called {value}.",
        "You have not told me what your {kind} is called.",
    ),
)
_FORMER_HOME = re.compile(
    r"\bwhere\s+(?:did\s+I\s+(?:use\s+to\s+)?live\b|have\s+I\s+lived\b|did\s+I\s+move\s+from\b)", re.IGNORECASE
)
_LEFT = (
    rf"\b(?:moved|relocated)(?: away)? from (?P<value>{_CHARACTERS}?)(?=\s+to\b|\s*(?:[.!?;,\"\\]|$|\b(?:and|{_BREAK})\b))",
    rf"\b(?:I|user) (?:used to live|(?:once |previously |formerly )?lived) in {_VALUE}",
)


def answer_of(prompt: Prompt) -> str | None:
    """The answer to a question of the user about themselves; None where the last message is none."""
    asked = prompt.last_user.text
    told = list(_told(prompt))
    if _FORMER_HOME.search(asked):
        return _former_home(told)
    for topic in _TOPICS:
        if found := re.search(topic.asked, asked, re.IGNORECASE):
            return _answered(topic, told, kind=next((kind for kind in found.groupdict().values() if kind), ""))
    found = _ATTRIBUTE.search(asked)
    return _attribute(told, found["kind"].strip()) if found else None


def _told(prompt: Prompt) -> Iterator[_Told]:
    """What the prompt tells of the user, in the order in which it is believed."""
    yield from (_Told(text) for text in reversed(prompt.earlier_user_texts))
    lines = [line for line in reversed(prompt.background.splitlines()) if line.strip()]
    found = {line: remembered for line in lines if (remembered := _LINE.fullmatch(line))}
    newest = sorted(found.values(), key=lambda one: one["begin"], reverse=True)
    facts = [one for one in newest if not one["who"].endswith(" said")]
    said = [one for one in newest if one["who"] == "user said"]
    yield from (_Told(_unquoted(one["text"]), one["end"] is not None) for one in (*facts, *said))
    yield from (_Told(line) for line in lines if line not in found)


def _unquoted(text: str) -> str:
    try:
        return str(orjson.loads(text))
    except orjson.JSONDecodeError:
        return text


def _answered(topic: _Topic, told: Iterable[_Told], *, kind: str) -> str:
    values = _values(topic, [one for one in told if not one.has_ended], kind=kind)
    if not values:
        return topic.unknown.format(kind=kind)
    chosen = values if topic.many else values[:1]
    return topic.answer.format(kind=kind, value=" and ".join(filter(None, (", ".join(chosen[:-1]), chosen[-1]))))


def _values(topic: _Topic, told: Iterable[_Told], *, kind: str = "") -> list[str]:
    """What the statements name, in their order, each once; nothing that a statement before it denies."""
    values, denied = list[str](), list[str]()
    stated = [pattern.replace("{kind}", re.escape(kind)) for pattern in topic.stated]
    for statement in _statements(told):
        if value := _found(topic.denied, statement):
            denied.append(value)
        elif (value := _found(stated, statement)) and not _is_among(value, (*values, *denied)):
            values.append(value)
    return values


def _is_among(value: str, others: Iterable[str]) -> bool:
    return any(value.casefold() in one.casefold() for one in others)


def _statements(told: Iterable[_Told]) -> Iterator[str]:
    """Every statement; of one text the last one first, since it is the newer one."""
    for one in told:
        parts = [part for sentence in sentences(one.text) if not sentence.endswith("?") for part in statements(sentence)]
        yield from reversed(parts)


def _found(patterns: Iterable[str], statement: str) -> str | None:
    found = (re.search(pattern, statement, re.IGNORECASE) for pattern in patterns)
    return next((one["value"].strip() for one in found if one), None)


def _former_home(told: Sequence[_Told]) -> str:
    """Where the user said that they lived, or what they called their home before the latest."""
    current = _values(_HOME, [one for one in told if not one.has_ended])[:1]
    left = [value for statement in _statements(told) if (value := _found(_LEFT, statement))]
    ended = _values(_HOME, [one for one in told if one.has_ended])
    others = [value for value in (*left, *ended, *_values(_HOME, told)) if value not in current]
    return f"You lived in {others[0]} before." if others else "You have not told me where you lived before."


def _attribute(told: Iterable[_Told], attribute: str) -> str | None:
    """`Your <attribute> is …`."""
    stated = rf"{_WHOSE[:-1]}|user)\s+{re.escape(attribute)}\s+(?:is|are|was|:)\s+(?P<value>{_CHARACTERS})"
    value = next((value for statement in _statements(told) if (value := _found([stated], statement))), None)
    if value is not None:
        return f"Your {attribute} is {value}."
    return None if attribute.lower() in _TASKS else f"You have not told me what your {attribute} is."
