"""What goes out and comes in, as plain values."""

from dataclasses import dataclass

from services.memory.records import Fact
from services.memory.turns import Turn


@dataclass(frozen=True, slots=True)
class SaidMessage:
    """A message, with its conversation."""

    conversation_id: str
    turn: Turn


@dataclass(frozen=True, slots=True)
class ToldMessage:
    """A message that is to be imported; `field` is the path of the record in the request."""

    field: str
    said: SaidMessage


@dataclass(frozen=True, slots=True)
class ToldFact:
    """A fact that is to be imported; `field` is the path of the record in the request."""

    field: str
    fact: Fact
