"""What memory keeps beyond conversations, as plain values.

Owns no behaviour but what follows from a value alone. Ids are UUIDs in their text form; times are in UTC.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

Stamp = Literal["user", "assistant", "tool", "sms_peer"]
Origin = Literal["stated", "remembered", "extracted", "imported"]

# From the most trusted to the least.
STAMPS: Final[Sequence[Stamp]] = ("user", "assistant", "sms_peer", "tool")
_WORD: Final = re.compile(r"\w+")


def body_hash(text: str) -> bytes:
    """What two facts share that say the same: their words, whatever case, spaces and punctuation. 16 bytes."""
    words = _WORD.findall(text.casefold())
    return hashlib.blake2b(" ".join(words or [text]).encode(), digest_size=16).digest()


def least_trusted(one: Stamp, other: Stamp) -> Stamp:
    """The stamp of what comes from both."""
    return max(one, other, key=STAMPS.index)


@dataclass(frozen=True, slots=True)
class Source:
    """A message that a fact was learned from."""

    conversation_id: str
    message_id: str


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact, current (`invalidate_time` is None) or not.

    `valid_from` to `valid_to` is when it holds in the world, `record_time` to `invalidate_time` when it was known here.
    `superseded_by` names the fact that says now what this version said before.
    """

    id: str
    text: str = field(repr=False)
    subject: str
    attribute: str
    importance: int
    stamped_by: Stamp
    origin: Origin
    valid_from: datetime | None
    valid_to: datetime | None
    record_time: datetime
    invalidate_time: datetime | None
    superseded_by: str | None
    expire_time: datetime | None
    sources: Sequence[Source] = ()
