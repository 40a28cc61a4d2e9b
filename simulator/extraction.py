"""Facts out of a conversation, by rule: what a request for memory operations is answered.

Owns plain English statements in the first person ("I live in …", "my name is …", "I no longer …") and what they come to
beside the facts that the request shows; each statement of a compound sentence counts. It knows a request by its schema and
reads nothing but its input. Questions, small talk and the assistant's messages come to nothing; the same input always comes
to the same operations.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import orjson

from simulator.dates import resolved, stands_apart
from simulator.prompt import Prompt
from simulator.requests import JsonObject
from simulator.sentences import sentences, statements

_FIELDS = frozenset({"operation", "fact", "sources", "text", "subject", "attribute", "importance", "valid_from", "valid_to"})
_END = r"(?=\s*(?:[,;:]|\b(?:and|but|because|which|who|since|so|now|these days|any ?more|though|as well)\b|[.!?]*$))"
_THING = rf"(?P<value>\S.*?){_END}"
_I_AM = r"\bI(?:'m| am)(?: (?:now|currently|still|also))?"
_I = r"\bI(?: (?:now|currently|still|also|really|just|absolutely|have|do))*"
_KIN = (
    r"(?:wife|husband|partner|girlfriend|boyfriend|mother|mum|mom|father|dad|brother|sister|son|daughter|boss|doctor|friend)"
)
_POINTING = frozenset({"it", "that", "this", "there", "here", "them", "him", "her", "you", "so", "one", "to", "not"})
_FORMER_HOME = "former home city"
_SINGLE = frozenset({"home city", "name", "employer", "occupation", "age", "answer language", "hometown"})
_OPPOSITE = {"likes": "dislikes", "dislikes": "likes"}


@dataclass(frozen=True, slots=True)
class _Said:
    """A fact that a sentence tells."""

    text: str
    attribute: str
    value: str
    importance: int = 5


@dataclass(frozen=True, slots=True)
class _Rule:
    """A form of sentence: `text` is the fact that it tells, with {name} for what the pattern found."""

    pattern: re.Pattern[str]
    attribute: str
    text: str
    importance: int = 5

    def read(self, sentence: str) -> _Said | None:
        """The fact, if the sentence has this form."""
        found = self.pattern.search(sentence)
        if found is None:
            return None
        words = {name: " ".join((word or "").split()) for name, word in found.groupdict().items()}
        if words["value"].casefold() in _POINTING:
            return None
        return _Said(self.text.format(**words), self.attribute.format(**words).lower(), words["value"], self.importance)


def _rule(pattern: str, attribute: str, text: str, importance: int = 5) -> _Rule:
    return _Rule(re.compile(pattern, re.IGNORECASE), attribute, text, importance)


_HOME = ("home city", "The user lives in {value}.", 8)
_RULES = (
    _rule(rf"\b(?:moved|moving|relocated) (?:house )?(?:from .+? )?to {_THING}", *_HOME),
    _rule(rf"(?:{_I_AM}|{_I}) (?:live|living|reside|residing|based|stay|staying) (?:here )?in {_THING}", *_HOME),
    _rule(rf"\bI(?:'ve| have)(?: (?:now|always|also))? lived (?:here )?in {_THING}", *_HOME),
    _rule(
        rf"\bI (?:once |previously |formerly )?(?:lived|used to live) in {_THING}",
        _FORMER_HOME,
        "The user lived in {value}.",
    ),
    _rule(rf"\bmy (?:home|home city|city|town|place|apartment|house|flat)(?: is| is in|'s in) (?:in )?{_THING}", *_HOME),
    _rule(rf"\bhome (?:for me )?is (?:in )?{_THING}", *_HOME),
    _rule(r"^\W*(?P<value>[\w' -]+?) is (?:where I live|my home|home for me|home)\b", *_HOME),
    _rule(
        rf"\b(?:my name is|my name's|call me|I(?:'m| am) called|I go by) {_THING}", "name", "The user's name is {value}.", 9
    ),
    _rule(rf"{_I_AM} from {_THING}", "hometown", "The user is from {value}.", 6),
    _rule(rf"{_I_AM} allergic to {_THING}", "allergy", "The user is allergic to {value}.", 10),
    _rule(rf"{_I_AM} (?P<value>\d+) years old", "age", "The user is {value} years old.", 6),
    _rule(rf"\bI work (?:at|for) (?P<value>.+?)(?= as an? |{_END})", "employer", "The user works at {value}.", 7),
    _rule(rf"\bI work as {_THING}", "occupation", "The user works as {value}.", 7),
    _rule(rf"{_I_AM} (?P<value>an? [\w' -]+?){_END}", "is", "The user is {value}.", 6),
    _rule(rf"{_I} prefer {_THING}", "preference", "The user prefers {value}."),
    _rule(
        rf"\bI (?:hate|dislike|detest|can't stand|don't like|do not like) {_THING}", "dislikes", "The user dislikes {value}."
    ),
    _rule(rf"{_I} (?:like|love|enjoy|adore) {_THING}", "likes", "The user likes {value}."),
    _rule(rf"{_I} have (?P<value>an? (?:dog|cat|horse|rabbit|parrot|pet)\b.*?){_END}", "pet", "The user has {value}.", 6),
    _rule(rf"{_I} (?:have|own) (?!to\b){_THING}", "has", "The user has {value}."),
    _rule(rf"{_I} speak {_THING}", "language", "The user speaks {value}."),
    _rule(
        rf"\bmy (?P<kin>{_KIN})(?:'s name is| is called| is named| is) {_THING}", "{kin}", "The user's {kin} is {value}.", 7
    ),
    _rule(rf"\bmy (?P<name>[\w' -]{{2,40}}?) (?:is|are) {_THING}", "{name}", "The user's {name} is {value}."),
    _rule(
        rf"\b(?:always |please |only )+(?:answer|reply|write|respond)(?: to)?(?: me)? in {_THING}",
        "answer language",
        "The user wants answers in {value}.",
        8,
    ),
)
_ENDED = re.compile(
    r"\bI (?:no longer|don't|do not|stopped|quit|gave up)\b(?P<what>.*?)(?P<anymore>\bany ?more\b)?\W*$", re.IGNORECASE
)
_REMEMBER = re.compile(r"^\W*(?:please\s+)?(?:remember|note|don't forget)(?:\s+that)?[,:]?\s+(?P<what>.+)$", re.IGNORECASE)
_AS_THIRD_PERSON: tuple[tuple[str, str], ...] = (
    (r"\bI(?:'m| am)\b", "the user is"),
    (r"\bI(?:'ve| have)\b", "the user has"),
    (r"\bI(?:'ll| will)\b", "the user will"),
    (r"\bI (?:don't|do not)\b", "the user does not"),
    (r"^my\b", "the user's"),
    (r"\bmy\b", "their"),
    (r"\bI ((?:would|can|could|should|may|might|must|was|had|did|can't|cannot|won't|didn't)|\w+ed)\b", r"the user \1"),
    (r"\bI (\w+(?:s|sh|ch|x|go|do))\b", r"the user \1es"),
    (r"\bI (\w+[^\Waeiou])y\b", r"the user \1ies"),
    (r"\bI (\w+)\b", r"the user \1s"),
    (r"\bme\b", "the user"),
)
_WORD = re.compile(r"\w{3,}")


def asks_operations(schema: JsonObject) -> bool:
    """Whether a schema is that of memory operations."""
    items = ((schema.get("properties") or {}).get("operations") or {}).get("items") or {}
    return frozenset(items.get("properties") or ()) == _FIELDS


def operations_for(prompt: Prompt) -> str:
    """The operations that the user's messages come to, as JSON."""
    lines = [_parsed(line) for line in prompt.last_user.text.splitlines()]
    known = [line for line in lines if "fact" in line]
    operations: dict[str, JsonObject] = {}
    for line in lines:
        if "message" in line and line.get("who") == "user":
            for operation in _read(line, known):
                _join(operations, operation)
    return orjson.dumps({"operations": list(operations.values())}).decode()


def _parsed(line: str) -> JsonObject:
    try:
        parsed = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _join(operations: dict[str, JsonObject], new: JsonObject) -> None:
    """The same said in several messages is one operation."""
    key = f"{new['operation']} {new['fact']} {new['text'].casefold()}"
    if key in operations:
        operations[key]["sources"] += new["sources"]
    else:
        operations[key] = new


def _read(message: JsonObject, known: list[JsonObject]) -> Iterator[JsonObject]:
    on = date.fromisoformat(str(message["date"])[:10])
    for sentence in sentences(str(message["text"])):
        if sentence.endswith("?"):
            continue
        asked = _REMEMBER.match(sentence)
        for statement in statements(asked["what"] if asked else sentence):
            operation = _operation_of(statement, known, on=on, is_asked=asked is not None)
            if operation is not None:
                yield operation | {"sources": [message["message"]]}


def _operation_of(statement: str, known: list[JsonObject], *, on: date, is_asked: bool) -> JsonObject | None:
    rest, since = resolved(statement, said=on)
    ending = _ending(rest, known)
    if ending is not None:
        return ending | {"valid_to": since}
    said, since = _heard(statement, on=on, is_asked=is_asked)
    if said is None:
        return None
    return _telling(said, known) | {"valid_to" if said.attribute == _FORMER_HOME else "valid_from": since}


def _heard(statement: str, *, on: date, is_asked: bool) -> tuple[_Said | None, str | None]:
    """The fact that a statement tells, and since when it holds. A date stays where nothing is left without it."""
    rest, since = resolved(statement, said=on)
    plain, dated = _by_rule(rest), _by_rule(statement)
    if since is not None and since > on.isoformat()[: len(since)]:
        # Of what is still to come nothing holds yet.
        return (_in_third_person(statement, "plan") if is_asked or plain or dated else None), None
    if plain is not None:
        return plain, since
    if dated is not None or not is_asked:
        return dated, None
    return (_in_third_person(rest), since) if stands_apart(statement) else (_in_third_person(statement), None)


def _by_rule(statement: str) -> _Said | None:
    return next((found for rule in _RULES if (found := rule.read(statement)) is not None), None)


def _ending(sentence: str, known: list[JsonObject]) -> JsonObject | None:
    """The end of a known fact, if the sentence tells one."""
    found = _ENDED.search(sentence)
    if found is None or (re.search(r"\b(?:don't|do not)\b", found[0], re.IGNORECASE) and not found["anymore"]):
        return None
    wanted = {word.casefold().removesuffix("ing") for word in _WORD.findall(found["what"])}
    for fact in known:
        words = " ".join(word.casefold() for word in _WORD.findall(fact["text"]))
        if wanted and all(word in words for word in wanted):
            return _operation("INVALIDATE", fact["fact"], _Said("", str(fact["attribute"]), ""))
    return None


def _telling(said: _Said, known: list[JsonObject]) -> JsonObject:
    same = _first(known, lambda fact: str(fact["text"]).casefold() == said.text.casefold())
    if same is not None:
        return _operation("NOOP", same["fact"], _Said("", said.attribute, ""))
    before = _first(known, lambda fact: _is_replaced(fact, said))
    return _operation("ADD" if before is None else "UPDATE", before["fact"] if before else None, said)


def _is_replaced(fact: Mapping[str, Any], said: _Said) -> bool:
    attribute = str(fact["attribute"])
    if said.attribute in _SINGLE or said.attribute.startswith("favo"):
        return attribute == said.attribute
    return attribute == _OPPOSITE.get(said.attribute) and said.value.casefold() in str(fact["text"]).casefold()


def _first(facts: list[JsonObject], fits: Callable[[JsonObject], bool]) -> JsonObject | None:
    return next((fact for fact in facts if fits(fact)), None)


def _in_third_person(statement: str, attribute: str = "note") -> _Said:
    """What no rule knows, but the user wants remembered or plans."""
    text = statement.strip(" ,;.!")
    for mine, theirs in _AS_THIRD_PERSON:
        text = re.sub(mine, theirs, text, flags=re.IGNORECASE)
    return _Said(f"{text[:1].upper()}{text[1:]}.", attribute, text, 7)


def _operation(kind: str, fact: int | None, said: _Said) -> JsonObject:
    return {
        "operation": kind,
        "fact": fact,
        "sources": [],
        "text": said.text,
        "subject": "user",
        "attribute": said.attribute,
        "importance": said.importance,
        "valid_from": None,
        "valid_to": None,
    }
