"""What the model is told of the conversation so far.

Owns the join of what memory knows with what only chat has yet. Invariants: the user's new message comes last; nothing is
told twice; the whole stays within the token budget, the oldest going first. Memory that does not answer in time costs the
turn its long memory and nothing else: the messages come from chat's own tables, and the reader is told.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from services.chat.memory import MemoryClient
from services.chat.message_store import MessageStore
from services.chat.records import ContextMessage, KnownConversation, Message, Turn
from services.runtime.errors import ServiceError, reason_name

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Context:
    """The model's messages, oldest first, and the parts of the suite that could not contribute."""

    messages: Sequence[ContextMessage]
    degraded: Sequence[str]


class ContextAssembly:
    """Assembles the context of a turn."""

    def __init__(self, store: MessageStore, memory: MemoryClient, *, token_budget: int, timeout_seconds: float) -> None:
        self._store = store
        self._memory = memory
        self._token_budget = token_budget
        self._timeout_seconds = timeout_seconds

    async def assemble(self, turn: Turn, conversation: KnownConversation) -> Context:
        """The context of a turn."""
        said = _said(turn.user_message)
        remembered, known_until, degraded = await self._remembered(turn)
        remembered, known_until = _without_stale(remembered, known_until, conversation)
        if known_until < said.sequence - 1:
            remembered = [*remembered, *await self._missing(turn, known_until)]
        earlier = [one for one in remembered if one.text and one.sequence < said.sequence]
        return Context([*_within(earlier, self._token_budget), said], degraded)

    async def _remembered(self, turn: Turn) -> tuple[list[ContextMessage], int, list[str]]:
        conversation_id = turn.generation.conversation_id
        try:
            known, known_until = await self._memory.assemble_context(
                conversation_id, token_budget=self._token_budget, timeout_seconds=self._timeout_seconds
            )
        except ServiceError as error:
            log.warning("chat.memory_degraded", conversation_id=conversation_id, reason=reason_name(error.reason))
            return [], 0, ["memory"]
        return known, known_until, []

    async def _missing(self, turn: Turn, known_until: int) -> list[ContextMessage]:
        return await self._store.read_context(
            turn.generation.conversation_id,
            user_id=turn.generation.user_id,
            after=known_until,
            before=turn.user_message.sequence,
            token_budget=self._token_budget,
        )


def estimated_tokens(text: str) -> int:
    """About four characters a token, and what surrounds a message; `read_context` estimates alike in SQL."""
    return len(text) // 4 + 4


def _said(message: Message) -> ContextMessage:
    return ContextMessage(message.sequence, message.role, message.text, message.revision)


def _without_stale(
    remembered: list[ContextMessage], known_until: int, conversation: KnownConversation
) -> tuple[list[ContextMessage], int]:
    """Drops what memory holds of a reply that was written anew since, and all after it: chat has it better."""
    rewritten = conversation.rewritten_sequence
    if not rewritten or rewritten > known_until or (remembered and rewritten < remembered[0].sequence):
        return remembered, known_until
    # Memory leaves empty replies out: one that is not there is the first try, which failed before its first word.
    held = next((one.revision for one in remembered if one.sequence == rewritten), -1)
    if held >= conversation.rewritten_revision:
        return remembered, known_until
    return [kept for kept in remembered if kept.sequence < rewritten], rewritten - 1


def _within(messages: Sequence[ContextMessage], token_budget: int) -> list[ContextMessage]:
    """The latest messages that fit, oldest first, without holes."""
    kept: list[ContextMessage] = []
    for message in reversed(messages):
        token_budget -= estimated_tokens(message.text)
        if token_budget < 0:
            break
        kept.append(message)
    return kept[::-1]
