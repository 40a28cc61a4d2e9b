"""Summaries by rule: what the simulated model says when it is told to summarize.

Owns the reading of material, one statement a line, and the listing of what it states. Questions and what the assistant said
are left out; a summary that stands in the material goes before what is new. Of what does not fit, the oldest is dropped.
"""

import re

from simulator.prompt import Prompt

_DEFAULT_CHARACTERS = 1_000
_WANTS_SUMMARY = re.compile(r"\s*summari[sz]e\b", re.IGNORECASE)
_BOUND = re.compile(r"\bat most ([\d,]+) characters\b", re.IGNORECASE)
_SUMMARY_SO_FAR = re.compile(r"^Summary so far:\n(.+)$", re.MULTILINE)
_SAID = re.compile(r"^User: (.+)$", re.MULTILINE)
_LISTED = re.compile(r"^- (.+)$", re.MULTILINE)
_SENTENCE = re.compile(r"[^.!?]+(?:[.!?]+|$)")


def asks_summary(prompt: Prompt) -> bool:
    """Whether the instructions want a summary, and nothing else."""
    return bool(_WANTS_SUMMARY.match(prompt.background))


def summary_of(prompt: Prompt) -> str:
    """What the material states, each statement once, within the bound that the instructions name."""
    text = prompt.last_user.text
    said = [f"The user said: {found.strip()}" for line in _SAID.findall(text) for found in _statements(line)]
    listed = [_closed(line) for line in _LISTED.findall(text)]
    so_far = [found.strip() for line in _SUMMARY_SO_FAR.findall(text) for found in _SENTENCE.findall(line)]
    return _within(list(dict.fromkeys([*so_far, *said, *listed])), _bound(prompt)) or "Nothing was stated."


def _statements(line: str) -> list[str]:
    return [_closed(found.strip()) for found in _SENTENCE.findall(line) if found.strip() and not found.endswith("?")]


def _closed(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!")) else f"{sentence}."


def _bound(prompt: Prompt) -> int:
    found = _BOUND.search(prompt.background)
    return int(found[1].replace(",", "")) if found else _DEFAULT_CHARACTERS


def _within(statements: list[str], most_characters: int) -> str:
    while statements and len(" ".join(statements)) > most_characters:
        statements = statements[1:]
    return " ".join(statements)
