"""What the model is told of the conversation so far.

Owns the join of what memory knows with what only chat has yet. Invariants: the user's new message comes last; nothing is
told twice; the whole stays within the token budget, the oldest going first. Memory that does not answer in time costs the
turn its long memory and nothing else: the messages come from chat's own tables, and the reader is told.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from services.chat.memory.client import MemoryClient
from services.chat.message_store import MessageStore
from services.chat.records import ContextMessage, Image, KnownConversation, Message, Turn
from services.runtime.errors import ServiceError, reason_name

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Context:
    """The model's messages, oldest first, the parts of the suite that could not contribute, and the last one's images."""

    messages: Sequence[ContextMessage]
    degraded: Sequence[str]
    images: Sequence[Image] = ()


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
        options = turn.generation.options
        # Without memory the conversation itself is all there is, and chat has it; of one that begins here there is nothing.
        is_asked = options.get("memory_enabled", True) and said.sequence > 1
        remembered, known_until, degraded = await self._remembered(turn) if is_asked else ([], 0, [])
        if conversation.rewritten_sequence and known_until:
            remembered, known_until = await self._without_stale(turn, remembered, known_until)
        if known_until < said.sequence - 1:
            remembered = [*remembered, *await self._missing(turn, known_until)]
        earlier = [one for one in remembered if one.text and one.sequence < said.sequence]
        degraded = [*options.get("degraded", ()), *degraded]
        return Context([*_within(earlier, self._token_budget), said], degraded, await self._images(turn))

    async def _images(self, turn: Turn) -> Sequence[Image]:
        message = turn.user_message
        if not message.images:
            return ()
        return await self._store.read_images(message.id, user_id=turn.generation.user_id)

    async def _remembered(self, turn: Turn) -> tuple[list[ContextMessage], int, list[str]]:
        conversation_id = turn.generation.conversation_id
        try:
            known, known_until = await self._memory.assemble_context(
                conversation_id, token_budget=self._token_budget, timeout_seconds=self._timeout_seconds
            )
        except ServiceError as error:
            log.warning("chat.memory_degraded", conversation_id=conversation_id, reason=reason_name(error.reason))
            return [], 0, ["memory"]
        # What lies beyond a hole (a turn without memory) comes from chat with the rest.
        return [one for one in known if one.sequence <= known_until], known_until, []

    async def _without_stale(
        self, turn: Turn, remembered: list[ContextMessage], known_until: int
    ) -> tuple[list[ContextMessage], int]:
        """Drops what memory holds of a message that was written anew since, and all after it: chat has it better."""
        rewritten = await self._store.read_rewritten(
            turn.generation.conversation_id,
            user_id=turn.generation.user_id,
            first=remembered[0].sequence if remembered else 1,
            last=min(known_until, turn.user_message.sequence - 1),
        )
        held = {one.sequence: one.revision for one in remembered}
        for sequence, revision, is_empty in rewritten:
            # Memory leaves empty messages out: one that is not there is empty, or was when memory heard of it.
            if held.get(sequence, revision if is_empty else -1) < revision:
                return [kept for kept in remembered if kept.sequence < sequence], sequence - 1
        return remembered, known_until

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


def _within(messages: Sequence[ContextMessage], token_budget: int) -> list[ContextMessage]:
    """The latest messages that fit, oldest first, without holes."""
    kept: list[ContextMessage] = []
    for message in reversed(messages):
        token_budget -= estimated_tokens(message.text)
        if token_budget < 0:
            break
        kept.append(message)
    return kept[::-1]
