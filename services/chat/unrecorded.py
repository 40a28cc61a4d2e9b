"""Which conversations memory has yet to be told of, as this process knows it, and what it is told of one.

The list only spares looking: the truth is in the database (record_store.py), where what is lost with a process, or does not
fit, is found.
"""

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

_LISTED: Final = 20_000


class Unrecorded:
    """The conversations in which this process has ended turns since memory was last told. At most 20,000 are listed."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}
        self._news = asyncio.Event()

    def note(self, conversation_id: str) -> None:
        """Lists a conversation in which a turn has ended."""
        if len(self._ids) < _LISTED:
            self._ids[conversation_id] = None
            self._news.set()

    def take(self, most: int) -> list[str]:
        """Takes the conversations that were listed first off the list."""
        taken = list(self._ids)[:most]
        for conversation_id in taken:
            del self._ids[conversation_id]
        if not self._ids:
            self._news.clear()
        return taken

    async def wait(self) -> None:
        """Waits until there is one."""
        await self._news.wait()


@dataclass(frozen=True, slots=True)
class SaidMessage:
    """One message, as memory is told of it."""

    id: str
    sequence: int
    role: str
    text: str = field(repr=False)
    revision: int
    create_time: dt.datetime


@dataclass(frozen=True, slots=True)
class OwedTurns:
    """What memory has yet to be told of one conversation, in order; `due_time` names the state that was read.

    `is_all` is False where more follows.
    """

    user_id: str
    conversation_id: str
    messages: Sequence[SaidMessage]
    due_time: dt.datetime
    is_all: bool
