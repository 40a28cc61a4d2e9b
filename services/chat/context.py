"""What the model is told of the conversation so far, and of what is remembered beyond it.

Owns the join of what memory knows with what only chat has yet. Invariants: the user's new message comes last, and directly
before it, in one message, what was recalled for it: all before that is the same in the next turn while nothing changed;
nothing is told twice; the whole stays within the token budget, the oldest going first. Memory that does not answer in time
costs the turn its long memory and nothing else: the messages come from chat's own tables, and the reader is told. Nothing
of a turn without memory is asked of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from services.chat.memory.client import MemoryClient
from services.chat.memory.recalled import estimated_tokens, told_instructions, told_memories, within_budget
from services.chat.message_store import MessageStore
from services.chat.options import ReplyOptions
from services.chat.records import ContextMessage, Image, KnownConversation, Memory, Message, Remembered, Turn
from services.runtime.errors import ServiceError, reason_name

log = structlog.get_logger(__name__)

_MOST_QUERY_CHARACTERS: Final = 10_000
_RECALL: Final = "recall"
_NOTHING: Final = Remembered()


@dataclass(frozen=True, slots=True)
class Context:
    """The model's messages, oldest first, the parts of the suite that could not contribute, and the last one's images.

    `memories` are those that the messages tell of; `person_summary` is for the end of the instructions.
    """

    messages: Sequence[ContextMessage]
    degraded: Sequence[str]
    images: Sequence[Image] = ()
    memories: Sequence[Memory] = ()
    person_summary: str = ""

    def told(self, options: ReplyOptions) -> ReplyOptions:
        """The options with what is remembered of the person in their instructions."""
        return replace(options, instructions=told_instructions(options.instructions, self.person_summary))


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """Bounds of a context. Of `token_budget` what is remembered may take `memory_token_budget`, half of it at most."""

    token_budget: int
    memory_token_budget: int
    timeout_seconds: float

    @property
    def memory_tokens(self) -> int:
        """Most tokens of memories; 0: none are asked for."""
        return min(self.memory_token_budget, self.token_budget // 2)


class ContextAssembly:
    """Assembles the context of a turn."""

    def __init__(self, store: MessageStore, memory: MemoryClient, limits: ContextLimits) -> None:
        self._store = store
        self._memory = memory
        self._limits = limits

    async def assemble(self, turn: Turn, conversation: KnownConversation) -> Context:
        """The context of a turn."""
        said, options = _said(turn.user_message), turn.generation.options
        remembered, degraded = _NOTHING, list(options.get("degraded", ()))
        if options.get("memory_enabled", True):
            found = await self._remembered(turn)
            remembered = found or _NOTHING
            degraded += ["memory"] if found is None or _RECALL in found.degraded else []
        earlier = await self._earlier(turn, conversation, remembered)
        memories = within_budget(_untold(remembered.memories, earlier, turn), self._limits.memory_tokens)
        recalled = _recalled(said, memories, remembered.conversation_summary)
        taken = sum(estimated_tokens(one.text) for one in recalled) + estimated_tokens(remembered.person_summary)
        kept = _within(earlier, self._limits.token_budget - taken)
        return Context([*kept, *recalled, said], degraded, await self._images(turn), memories, remembered.person_summary)

    async def _earlier(self, turn: Turn, conversation: KnownConversation, remembered: Remembered) -> list[ContextMessage]:
        """What was said before, by memory and, where that knows it not yet or no longer, by chat."""
        before = turn.user_message.sequence
        # What lies beyond a hole (a turn without memory) comes from chat with the rest.
        known_until = remembered.last_sequence
        messages = [one for one in remembered.messages if one.sequence <= known_until]
        if conversation.rewritten_sequence and known_until:
            messages, known_until = await self._without_stale(turn, messages, known_until)
        if known_until < before - 1:
            messages = [*messages, *await self._missing(turn, known_until)]
        return [one for one in messages if one.text and one.sequence < before]

    async def _images(self, turn: Turn) -> Sequence[Image]:
        message = turn.user_message
        if not message.images:
            return ()
        return await self._store.read_images(message.id, user_id=turn.generation.user_id)

    async def _remembered(self, turn: Turn) -> Remembered | None:
        """What memory knows; None where it does not answer."""
        conversation_id, limits = turn.generation.conversation_id, self._limits
        query = turn.user_message.text[:_MOST_QUERY_CHARACTERS] if limits.memory_tokens else ""
        if not query and turn.user_message.sequence == 1:
            return _NOTHING
        try:
            return await self._memory.assemble_context(
                conversation_id,
                # So that the summary, which ends where the messages begin, leaves no gap.
                token_budget=limits.token_budget - limits.memory_tokens,
                query=query,
                memory_token_budget=limits.memory_tokens,
                timeout_seconds=limits.timeout_seconds,
            )
        except ServiceError as error:
            log.warning("chat.memory_degraded", conversation_id=conversation_id, reason=reason_name(error.reason))
            return None

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
            token_budget=self._limits.token_budget,
        )


def _untold(memories: Sequence[Memory], earlier: Sequence[ContextMessage], turn: Turn) -> list[Memory]:
    """Without messages that are told anyway, or that this turn takes the place of."""
    told, conversation_id = {one.sequence for one in earlier}, turn.generation.conversation_id
    return [
        one
        for one in memories
        if one.conversation_id != conversation_id or (one.sequence < turn.user_message.sequence and one.sequence not in told)
    ]


def _recalled(said: ContextMessage, memories: Sequence[Memory], conversation_summary: str) -> list[ContextMessage]:
    """What was recalled, as the one message that it is told in; none where there is nothing."""
    text = told_memories(memories, conversation_summary)
    return [ContextMessage(said.sequence, "developer", text, 0)] if text else []


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
