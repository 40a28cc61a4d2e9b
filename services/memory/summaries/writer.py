"""The two chores that write summaries: `summarize`, a conversation, and `portray`, the person.

Owns what is asked of the model and when nothing need be asked. Invariants: one call a piece of work, bounded on both sides;
none where nothing changed; no transaction is open meanwhile, and what was made of anything that changed or went meanwhile is
thrown away (store.py); the person's summary is made of what the user has said and of nothing else, since it stands among the
model's instructions. Words that the model adds to the input stay bounded and plain: wording.py.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

import structlog

from services.memory.model_calls import CountedModel
from services.memory.summaries import wording
from services.memory.summaries.limits import SummaryLimits
from services.memory.summaries.records import Person, SaidTurn, Talk
from services.memory.summaries.store import SummaryStore
from services.memory.tokens import text_tokens
from services.memory.turns import ConversationKey
from services.memory.upkeep.runner import Chore
from services.memory.upkeep.store import Owed

log = structlog.get_logger(__name__)

_LINE_TOKENS: Final = 1


class SummaryWriter:
    """Writes summaries as they are owed; `conversations` and `people` are the model, counted for each task."""

    def __init__(
        self, store: SummaryStore, limits: SummaryLimits, *, conversations: CountedModel, people: CountedModel
    ) -> None:
        self._store = store
        self._limits = limits
        self._conversations = conversations
        self._people = people
        self._conversation_instructions = wording.conversation_instructions(most_characters=limits.most_characters)
        self._person_instructions = wording.person_instructions(most_characters=limits.most_characters)

    def chores(self, *, timeout_seconds: float) -> Sequence[Chore]:
        """What the upkeep does with them."""
        return [
            Chore("summarize", self._summarize, timeout_seconds=timeout_seconds),
            Chore("portray", self._portray, timeout_seconds=timeout_seconds),
        ]

    async def _summarize(self, owed: Sequence[Owed]) -> None:
        for one in owed:
            await self._summarize_one(ConversationKey(one.user_id, one.scope_id))

    async def _summarize_one(self, key: ConversationKey) -> None:
        talk = await self._store.read_talk(key)
        if talk is None or not self._has_outgrown(talk):
            return
        turns, lines = self._fitting(talk)
        material = wording.conversation_material(talk.summary.text if talk.summary else "", lines)
        answer = await self._conversations.ask(instructions=self._conversation_instructions, text=material)
        text = wording.tidy_summary(answer.text, most_characters=self._limits.most_characters)
        if not text:
            log.warning("summary.empty", conversation_id=key.conversation_id, is_cut=answer.is_cut)
        elif not await self._store.keep_summary(key, text, talk=talk, turns=turns):
            log.info("summary.outdated", conversation_id=key.conversation_id)
            await self._store.owe_again(key.user_id, key.conversation_id)

    def _has_outgrown(self, talk: Talk) -> bool:
        grown = talk.last_sequence - talk.summarized >= self._limits.every_messages
        return bool(talk.turns) and grown and talk.last_sequence >= self._limits.after_messages

    def _fitting(self, talk: Talk) -> tuple[Sequence[SaidTurn], Sequence[str]]:
        """The oldest messages that fit one call, at least one; the rest is owed when these are kept."""
        turns, lines, total = list[SaidTurn](), list[str](), 0
        for turn in talk.turns:
            line = wording.turn_line(turn)
            total += text_tokens(line) + _LINE_TOKENS
            if turns and total > self._limits.most_input_tokens:
                break
            turns.append(turn)
            # An empty reply, one that failed before its first word, is passed over.
            lines += [line] if turn.text.strip() else []
        return turns, lines

    async def _portray(self, owed: Sequence[Owed]) -> None:
        for one in owed:
            await self._portray_one(one.user_id)

    async def _portray_one(self, user_id: str) -> None:
        person = await self._store.read_person(user_id)
        material = self._material(person)
        digest = _digest(self._people.name, self._person_instructions, material)
        if digest == person.digest or not (material or person.has_summary):
            return
        text = await self._portrait(material, user_id)
        if text is not None and not await self._store.keep_portrait(user_id, text, version=person.version, digest=digest):
            log.info("summary.outdated", user_id=user_id)
            await self._store.owe_again(user_id, user_id)

    async def _portrait(self, material: str, user_id: str) -> str | None:
        """The text; empty where nothing is known, None where the model had none."""
        if not material:
            return ""
        answer = await self._people.ask(instructions=self._person_instructions, text=material)
        text = wording.tidy_summary(answer.text, most_characters=self._limits.most_characters)
        if text:
            return text
        log.warning("summary.empty", user_id=user_id, is_cut=answer.is_cut)
        return None

    def _material(self, person: Person) -> str:
        """The facts that matter most, within the bound."""
        lines = [wording.fact_line(fact) for fact in person.facts]
        return wording.person_material(_within(self._limits.most_input_tokens, lines))


def _within(tokens: int, lines: Sequence[str]) -> Sequence[str]:
    """The first lines that fit."""
    for index, line in enumerate(lines):
        cost = text_tokens(line) + _LINE_TOKENS
        if cost > tokens:
            return lines[:index]
        tokens -= cost
    return lines


def _digest(*parts: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part.encode())
    return digest.digest()
