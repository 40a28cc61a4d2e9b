"""Calls of memory functions by intent: what the user wants remembered, recalled or forgotten.

Owns the reading of "remember that …", "what do you remember about …", "forget that …" where the functions of those names are
offered in `tools`, once a turn each. To forget takes an id: that of a memory which the prompt tells of, else recall is
asked first and the id taken from its output.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from simulator.answers import Answer, FunctionCall
from simulator.prompt import Call, Output, Prompt

_INTENTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern, re.IGNORECASE | re.DOTALL))
    for name, pattern in (
        (
            "recall",
            r"\bwhat\s+(?:do|can)\s+you\s+(?:remember|recall|know)\s+(?:about|of)\s+(?P<subject>.+?)\s*[.?!]*\s*$",
        ),
        (
            "forget",
            r"\b(?<!not\s)(?<!n't\s)forget\s+(?:that\b|about\b|what\s+you\s+know\s+(?:about|of)\b)\s*(?P<subject>.+?)\s*[.!]*\s*$",
        ),
        (
            "remember",
            r"\b(?:remember|note|keep\s+in\s+mind)\s*(?:that\b|:|(?=(?:my|our|i|i'm|we)\b))\s*(?P<subject>.+?)\s*$",
        ),
    )
)
_INTENT_CHARACTERS = 400
# Of a fact; a message is one that somebody said.
_SHOWN = re.compile(r'^- \[([0-9a-f-]{36})\] \([^)]*(?<! said)\) "(.*)"$')
_SMALL = frozenset(
    ["a", "about", "am", "an", "and", "are", "i", "is", "me", "my", "of", "s", "that", "the", "to", "user", "was"]
)


@dataclass(frozen=True, slots=True)
class Intent:
    """What the user wants of the memory of what."""

    function: str
    subject: str


def read_intent(text: str) -> Intent | None:
    """The memory intent of a message, if it has one; of a long message its beginning counts."""
    text = " ".join(text.split())[:_INTENT_CHARACTERS]
    for function, pattern in _INTENTS:
        if found := pattern.search(text):
            return Intent(function, found["subject"])
    return None


def next_call(prompt: Prompt) -> Answer:
    """The next function call of this turn; empty where none is (any longer) needed."""
    intent = read_intent(prompt.last_user.text)
    offered = {tool.get("name") for tool in prompt.tools if tool.get("type") == "function"}
    made = [item.name for item in prompt.since_last_user if isinstance(item, Call)]
    if intent is None or intent.function not in offered or intent.function in made:
        return ()
    if intent.function == "remember":
        return (_call("remember", text=intent.subject[:1].upper() + intent.subject[1:]),)
    if intent.function == "recall":
        return (_call("recall", query=intent.subject),)
    memory_id = _find(prompt, intent.subject)
    if memory_id is not None:
        return (_call("forget", memory_id=memory_id),)
    return (_call("recall", query=intent.subject),) if "recall" in offered and "recall" not in made else ()


def tell_results(prompt: Prompt) -> str | None:
    """The results of this turn's memory calls, in words; None where there are none to tell."""
    intent = read_intent(prompt.last_user.text)
    names = {item.call_id: item.name for item in prompt.since_last_user if isinstance(item, Call)}
    outputs = [(names.get(item.call_id), item.text) for item in prompt.since_last_user if isinstance(item, Output)]
    if intent is None or not outputs or outputs[-1][0] not in ("remember", "recall", "forget"):
        return None
    name, text = outputs[-1]
    told = _loaded(text)
    if not isinstance(told, dict):
        return f"I called {name} and it returned: {text}"
    if name == "recall" and intent.function == "forget":
        return f'I remember nothing like "{intent.subject}".'
    if name == "recall":
        return _recalled(intent, [str(memory.get("text")) for memory in told.get("memories") or ()])
    return "I will remember it." if name == "remember" else "I have forgotten it."


def _recalled(intent: Intent, texts: list[str]) -> str:
    if not texts:
        return f"I remember nothing about {intent.subject}."
    return f"About {intent.subject} I remember: {'; '.join(texts)}."


def _call(name: str, **arguments: str) -> FunctionCall:
    return FunctionCall(name, orjson.dumps(arguments).decode())


def _find(prompt: Prompt, subject: str) -> str | None:
    """The id of the newest memory that the prompt tells of, with every word of the subject."""
    words = _words(subject)
    found = [memory_id for memory_id, text in _known(prompt) if words and words <= _words(text)]
    return found[-1] if found else None


def _known(prompt: Prompt) -> Iterator[tuple[str, str]]:
    """The facts that an output of this turn holds, after the memories that were told before the user's message."""
    for line in prompt.background.splitlines():
        if shown := _SHOWN.match(line):
            yield shown[1], shown[2]
    for item in prompt.since_last_user:
        told = _loaded(item.text) if isinstance(item, Output) else None
        for memory in reversed((told.get("memories") or ()) if isinstance(told, dict) else ()):
            if memory.get("kind") == "fact":
                yield str(memory["memory_id"]), str(memory.get("text"))


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower())) - _SMALL


def _loaded(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
