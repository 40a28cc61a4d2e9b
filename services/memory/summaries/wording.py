"""The words of summaries: what a model is given to sum up, and what is taken of its answer.

Invariants: each statement stands on a line of its own and cannot forge another; whatever the model says, a summary is one
paragraph of plain text within its bound. It refuses to decide what is summed up.
"""

import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Final

from services.memory.summaries.records import KnownFact, SaidTurn

_SPEAKERS: Final = {"user": "User", "assistant": "Assistant"}
_LINK: Final = re.compile(r"!?\[([^\]\n]*)\]\([^)\s]*\)")
_TAG: Final = re.compile(r"</?[A-Za-z][^<>]{0,100}>|<\|[^|<>]{0,100}\|>")
_LINE_MARKS: Final = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|[-*+•][ \t]+|>[ \t]?|\d{1,3}[.)][ \t]+)", re.MULTILINE)
_FENCE: Final = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
_MARKS: Final = re.compile(r"\*\*|__|`+|~~")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_LABEL: Final = re.compile(r"^\W*(?:here is (?:the|a) )?(?:new )?summary\W*:\s*", re.IGNORECASE)
_SENTENCE_END: Final = re.compile(r"[.!?…。！？][\"'”’)\]]*(?=\s|$)|[。！？]")  # noqa: RUF001 - full stops of many languages


def conversation_instructions(*, most_characters: int) -> str:
    """How a conversation is to be summed up."""
    return _prompt("conversation.md").replace("{characters}", str(most_characters))


def person_instructions(*, most_characters: int) -> str:
    """How a person is to be summed up."""
    return _prompt("person.md").replace("{characters}", str(most_characters))


def turn_line(turn: SaidTurn) -> str:
    """A message on one line."""
    return f"{_SPEAKERS[turn.role]}: {_flat(turn.text)}"


def conversation_material(summary: str, lines: Iterable[str]) -> str:
    """What a model is given of a conversation: the summary so far, and what was said since."""
    so_far = f"Summary so far:\n{_flat(summary)}\n\n" if summary else ""
    return so_far + "Messages:\n" + "\n".join(lines)


def fact_line(fact: KnownFact) -> str:
    """A fact on one line."""
    about = " ".join(part for part in (fact.subject if fact.subject != "user" else "", fact.attribute) if part)
    since = f" (since {fact.valid_from:%Y-%m-%d})" if fact.valid_from else ""
    return f"- {_flat(about) + ': ' if about else ''}{_flat(fact.text)}{since}"


def person_material(facts: Sequence[str]) -> str:
    """What a model is given of a person; empty where nothing is known."""
    return "\n".join(["Facts:", *facts]) if facts else ""


def tidy_summary(said: str, *, most_characters: int) -> str:
    """What a model said, as a summary: cut at the end of a sentence, or of a word; empty when nothing of it can be one."""
    plain = _CONTROL.sub(" ", _FENCE.sub("", said))
    plain = _MARKS.sub("", _LINE_MARKS.sub("", _TAG.sub(" ", _LINK.sub(r"\1", plain))))
    flat = _LABEL.sub("", _flat(plain))
    if not any(character.isalnum() for character in flat):
        return ""
    return flat if len(flat) <= most_characters else _cut(flat[: most_characters + 1], most_characters)


def _cut(text: str, most_characters: int) -> str:
    """The whole sentences of a text's beginning, where they are at least half of it."""
    ends = [found.end() for found in _SENTENCE_END.finditer(text) if found.end() <= most_characters]
    if ends and 2 * ends[-1] >= most_characters:
        return text[: ends[-1]]
    words = text[:most_characters].rsplit(" ", 1)[0]
    return f"{words[: most_characters - 1]}…"


def _flat(text: str) -> str:
    return " ".join(text.split())


def _prompt(name: str) -> str:
    return (files("services.memory.summaries") / "prompts" / name).read_text(encoding="utf-8")
