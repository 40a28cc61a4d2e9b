"""One history of turns, calls, texts and decisions.

Owns their one order: by time, the latest first, and by id where the time is the same. Each source gives its latest
entries from before one place, which may be that of another source's entry; so a page costs one look into each source,
whatever its size, nothing is left out and nothing comes twice. A source that does not answer fails the page: a hole would
look like the end.
"""

import asyncio
import datetime as dt
import heapq
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from services.sms.call_store import CallStore
from services.sms.conversations import Conversations, Turn
from services.sms.decision_store import DecisionStore
from services.sms.message_store import MessageStore
from services.sms.records import Call, Decision, TextMessage

Kind = Literal["turn", "call", "message", "decision"]
ALL: Final[tuple[Kind, ...]] = ("turn", "call", "message", "decision")
Place = tuple[dt.datetime, str]


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened, and where it stands."""

    kind: Kind
    id: str
    time: dt.datetime
    what: Turn | Call | TextMessage | Decision


Source = Callable[[str, int, Place | None], Awaitable[Sequence[Entry]]]


class History:
    """The history of users."""

    def __init__(
        self, conversations: Conversations, messages: MessageStore, calls: CallStore, decisions: DecisionStore
    ) -> None:
        self._conversations = conversations
        self._messages = messages
        self._calls = calls
        self._decisions = decisions
        self._sources: Mapping[Kind, Source] = {
            "turn": self._turns, "call": self._of_calls, "message": self._of_messages, "decision": self._of_decisions,
        }  # fmt: skip

    async def read(self, kinds: Sequence[Kind], *, user_id: str, limit: int, before: Place | None) -> Sequence[Entry]:
        """The user's latest entries of these kinds from before a place. Raises ServiceError when chat does not answer."""
        found = await asyncio.gather(*(self._sources[kind](user_id, limit, before) for kind in kinds))
        merged = heapq.merge(*found, key=lambda entry: (entry.time, entry.id), reverse=True)
        return [entry for entry, _ in zip(merged, range(limit), strict=False)]

    async def _turns(self, user_id: str, limit: int, before: Place | None) -> Sequence[Entry]:  # noqa: ARG002 - who calls
        turns = await self._conversations.read_turns(limit=limit, before=before)
        return [Entry("turn", one.id, one.time, one) for one in turns]

    async def _of_calls(self, user_id: str, limit: int, before: Place | None) -> Sequence[Entry]:
        calls = await self._calls.list_calls(user_id=user_id, limit=limit, after=before)
        return [Entry("call", one.id, one.start_time, one) for one in calls]

    async def _of_messages(self, user_id: str, limit: int, before: Place | None) -> Sequence[Entry]:
        messages = await self._messages.list_messages(user_id=user_id, limit=limit, after=before)
        return [Entry("message", one.id, one.create_time, one) for one in messages]

    async def _of_decisions(self, user_id: str, limit: int, before: Place | None) -> Sequence[Entry]:
        decisions = await self._decisions.list_decisions(user_id=user_id, limit=limit, after=before)
        return [Entry("decision", one.id, one.create_time, one) for one in decisions]
