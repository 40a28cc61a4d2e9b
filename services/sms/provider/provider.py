"""What a provider of text messages is to the service.

Owns the words in which a provider says what became of a text. The difference that matters: a text that was surely not taken
may be tried again, one whose fate is not known must not.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol


class NotTakenError(Exception):
    """The provider surely did not take the text: trying again sends it once."""


class RefusedError(Exception):
    """The provider refused the text, and will again. `code` is its word for why."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class UnansweredError(Exception):
    """Whether the provider took the text is not known."""


@dataclass(frozen=True, slots=True)
class Text:
    """What to send. `message_id` is ours, and comes back in reports of the delivery."""

    message_id: str
    phone_number: str = field(repr=False)
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Taken:
    """What the provider has taken, under its own id."""

    provider_message_id: str
    status: Literal["sent", "delivered", "undelivered", "failed"]
    error_code: str = ""


class Provider(Protocol):
    """Somebody who carries texts. Every method has a deadline of its own."""

    async def send(self, text: Text) -> Taken:
        """Gives it a text. Raises NotTakenError, RefusedError, UnansweredError."""

    async def find(self, phone_number: str, text: str, *, since: dt.datetime) -> Sequence[Taken]:
        """What it has taken of this text to this number since then, the earliest first. Raises UnansweredError."""

    async def forget(self, provider_message_id: str) -> None:
        """Deletes what it keeps of a text. Idempotent. Raises UnansweredError where that may be tried again."""

    async def close(self) -> None:
        """Closes its connections."""
