"""The turns of a conversation, and what becomes of turns that are told again, late, or of the same place.

Owns the rule by which any order of the same tellings ends in the same turns. Of one message the greatest revision
stays. Of two messages at one place, which happens when an edit was not heard of yet, the one written later stays
(`create_time`, then `message_id`); the other counts as edited away. What was edited away never comes back by a repeat,
only by a greater revision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import FieldViolation, InvalidArgument


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
    """What a telling changes: turns to write, messages that lose their place, revisions (by id) not to take again."""

    accepted: Sequence[Turn]
    displaced: Sequence[str]
    forgotten: Mapping[str, int]


def merge(told: Iterable[Turn], *, known: Iterable[Place], forgotten: Mapping[str, int]) -> Merge:
    """Decides what a telling changes. `told` names each message and each place once.

    `known` are the recorded messages of the same ids or places, `forgotten` the revisions that were edited away. Raises
    InvalidArgument when a message is told at another place than before.
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
        raise refused(
            "messages.sequence", f"message {turn.message_id} is number {known.sequence}: a message keeps its place"
        )
    recorded = -1 if known is None else known.revision
    return turn.revision > max(recorded, forgotten.get(turn.message_id, -1))


def _age(item: Turn | Place) -> tuple[datetime, str]:
    return item.create_time, item.message_id


def refused(where: str, description: str) -> InvalidArgument:
    """The error for a request that the contract's field rules cannot judge."""
    return InvalidArgument(
        f"{where}: {description}",
        reasons.ERROR_REASON_INVALID_REQUEST,
        metadata={"fields": where},
        violations=[FieldViolation(where, description)],
    )
