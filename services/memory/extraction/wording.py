"""What the model is told: the instructions, the known facts and the messages, by small numbers instead of ids.

Invariant: every text stands in a JSON string of its own, so that no text can pass for another part of the input.
"""

from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from typing import Final

import orjson

from services.memory.extraction.batch import Batch
from services.memory.records import Fact

INSTRUCTIONS: Final = (files("services.memory.extraction") / "prompts" / "extract.md").read_text(encoding="utf-8")


def input_text(batch: Batch, facts: Sequence[Fact]) -> str:
    """The input of one call; facts are numbered from 1, in their order."""
    known = [_line(_told_fact(number, fact)) for number, fact in enumerate(facts, 1)]
    said = [
        _line({"message": one.number, "date": _day(one.turn.create_time), "who": one.turn.role, "text": one.text})
        for one in batch.shown
    ]
    return "\n".join(["KNOWN FACTS", *(known or ["none"]), "", "MESSAGES", *said])


def _told_fact(number: int, fact: Fact) -> dict[str, object]:
    told: dict[str, object] = {
        "fact": number,
        "subject": fact.subject,
        "attribute": fact.attribute,
        "text": fact.text,
    }
    return told | ({"since": f"{fact.valid_from:%Y-%m-%d}"} if fact.valid_from else {})


def _line(value: dict[str, object]) -> str:
    return orjson.dumps(value).decode()


def _day(time: datetime) -> str:
    return f"{time:%Y-%m-%d %A}"
