"""The messages of a conversation as memory holds them, and the rule for those that arrive again, late or in conflict.

RecordTurn may be repeated, delayed and overtaken, so the rule makes the outcome the same in any order of arrival:

- Of one message, the greatest revision stays.
- Of two messages with the same sequence (the conversation was edited, and memory has not heard of it yet) the later written
  stays, by `create_time` and then `message_id`. The other is noted as forgotten.
- A forgotten message comes back only with a greater revision, never by a repeat.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from services.runtime.errors import FieldViolation, invalid_request


@dataclass(frozen=True, slots=True)
class ConversationKey:
    """A conversation, by its user: the same id of another user is another conversation."""

    user_id: str
    conversation_id: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `create_time` is in UTC, in whole microseconds; `token_count` is estimated, 0 for an empty text."""

    message_id: str
    sequence: int
    role: str
    text: str = field(repr=False)
    revision: int
    create_time: datetime
    token_count: int


@dataclass(frozen=True, slots=True)
class Place:
    """What is known of a recorded message, without its text."""

    message_id: str
    sequence: int
    revision: int
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Merge:
    """What recording changes: turns to write, ids of messages to delete, and the revisions of ids not to take again."""

    accepted: Sequence[Turn]
    displaced: Sequence[str]
    forgotten: Mapping[str, int]


def merge(told: Iterable[Turn], *, known: Iterable[Place], forgotten: Mapping[str, int]) -> Merge:
    """Decides what recording `told` changes, by the rule above. `told` holds each message and each sequence once.

    `known` are the recorded messages with the same ids or sequences, `forgotten` the revisions of forgotten ones by id.
    Raises InvalidArgument when a message comes with another sequence than before.
    """
    by_id = {place.message_id: place for place in known}
    by_sequence = {place.sequence: place for place in by_id.values()}
    accepted, displaced, lost = list[Turn](), list[str](), dict[str, int]()
    for turn in told:
        if not _is_news(turn, by_id.get(turn.message_id), forgotten):
            continue
        holder = by_sequence.get(turn.sequence)
        if holder is None or holder.message_id == turn.message_id:
            accepted.append(turn)
        elif _age(holder) < _age(turn):
            accepted.append(turn)
            displaced.append(holder.message_id)
            lost[holder.message_id] = holder.revision
        else:
            lost[turn.message_id] = turn.revision
    return Merge(accepted, displaced, lost)


def _is_news(turn: Turn, known: Place | None, forgotten: Mapping[str, int]) -> bool:
    if known is not None and known.sequence != turn.sequence:
        problem = f"message {turn.message_id} is number {known.sequence}: a message keeps its place"
        raise invalid_request([FieldViolation("messages.sequence", problem)])
    recorded = -1 if known is None else known.revision
    return turn.revision > max(recorded, forgotten.get(turn.message_id, -1))


def _age(item: Turn | Place) -> tuple[datetime, str]:
    return item.create_time, item.message_id
