"""Records that come in, into Postgres: all of a call in one transaction, in which nobody else writes for that user.

Owns what is taken. Invariants: what is known stays as it is, by id; a fact with the words of a current one is that one; what
was deleted here (a conversation, a message that was edited away, whatever an erasure covers) is not taken, and neither is
what has expired or whose place another message has; a fact keeps its id, times and history; of its sources those that are
known here, and one that has any was learned from them (`extracted`), another was `imported`. It refuses a message whose id
is known at another place, and more than a user may have. What was imported is embedded, and not learned from again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from parley.type.v1 import error_reason_pb2 as reasons
from services.memory import statements as turn_statements
from services.memory.cascades import drop_facts
from services.memory.facts import statements as fact_statements
from services.memory.facts.refusals import too_many_facts
from services.memory.people import Erased, erased_until, exclude_writers, is_erased, touch_person
from services.memory.records import Fact, Source, body_hash
from services.memory.transfer import statements
from services.memory.transfer.fact_plan import KnownFact, NewFacts
from services.memory.transfer.records import ToldFact, ToldMessage
from services.memory.turns import ConversationKey, Turn
from services.memory.upkeep.store import owe, owe_all
from services.runtime.database import Database
from services.runtime.errors import FieldViolation, ResourceExhausted, invalid_request
from services.runtime.fairness import FairGate

# What is left of the pool is for those whose calls are short.
_IMPORTS_AT_ONCE: Final = 2


@dataclass(frozen=True, slots=True)
class ImportLimits:
    """What a user may have for an import to bring more, and versions that a fact keeps: the oldest go."""

    messages: int
    facts: int
    versions: int


@dataclass(frozen=True, slots=True)
class Imported:
    """How much was new."""

    facts: int
    messages: int


class ImportStore:
    """What is remembered, to be added to.

    A few imports run at a time in a process, and one of a user: the others wait here, and hold no connection.
    """

    def __init__(self, database: Database, limits: ImportLimits, *, portray_delay_seconds: float) -> None:
        self._database = database
        self._limits = limits
        self._portray_delay_seconds = portray_delay_seconds
        self._gate = FairGate(size=_IMPORTS_AT_ONCE)

    async def take(self, user_id: str, messages: Sequence[ToldMessage], facts: Sequence[ToldFact]) -> Imported:
        """Takes records in their order, all or nothing. Idempotent.

        Raises InvalidArgument for a message that is known at another place, and ResourceExhausted (LIMIT_REACHED).
        """
        async with self._gate.passed(user_id), self._database.transaction(user_id=user_id) as connection:
            await exclude_writers(connection, user_id)
            erased = await erased_until(connection, user_id)
            taking = _Taking(connection, user_id, self._limits)
            new_messages = await taking.messages(messages, erased)
            new_facts = await taking.facts(facts, erased)
            if new_messages or new_facts:
                whole = (user_id, user_id)
                await owe_all(connection, {"embed": 0.0, "portray": self._portray_delay_seconds}, [whole])
                await touch_person(connection, user_id)
        return Imported(new_facts, new_messages)


class _Taking:
    """One import, inside its transaction."""

    def __init__(self, connection: AsyncConnection, user_id: str, limits: ImportLimits) -> None:
        self._connection = connection
        self._user_id = user_id
        self._limits = limits

    async def messages(self, told: Sequence[ToldMessage], erased: Erased) -> int:
        """Takes messages; how many are new."""
        told = [one for one in told if not is_erased(one.said.turn.create_time, erased.messages)]
        keys = {self._key(one) for one in told}
        if not keys:
            return 0
        rows = await self._connection.execute(turn_statements.LOCK, turn_statements.of_conversations(keys))
        alive = {row.conversation_id: row.erase_time for row in rows}
        told = [
            one
            for one in told
            if one.said.conversation_id in alive
            and not is_erased(one.said.turn.create_time, alive[one.said.conversation_id])
        ]
        new = await self._unknown(told)
        if new:
            await self._check_room(len(new))
            await self._write([(self._key(one), one.said.turn) for one in new])
        return len(new)

    def _key(self, told: ToldMessage) -> ConversationKey:
        return ConversationKey(self._user_id, told.said.conversation_id)

    async def _unknown(self, told: Sequence[ToldMessage]) -> Sequence[ToldMessage]:
        """Those that are neither known nor forgotten, and whose place is free."""
        pairs = [(self._key(one), one.said.turn) for one in told]
        values = turn_statements.of_messages(pairs)
        rows = (await self._connection.execute(turn_statements.PLACES, values)).all() if pairs else []
        by_id = {row.message_id: row for row in rows}
        places = {(row.conversation_id, row.sequence) for row in rows if row.is_of_conversation and row.sequence}
        violations = []
        for one in told:
            row = by_id.get(one.said.turn.message_id)
            if row is not None and row.sequence and not _is_at(row, one):
                problem = "is known at another place, or of another conversation: a message keeps its place"
                violations.append(FieldViolation(f"{one.field}.message.message_id", problem))
        if violations:
            raise invalid_request(violations[:10])
        return [
            one
            for one in told
            if one.said.turn.message_id not in by_id and (one.said.conversation_id, one.said.turn.sequence) not in places
        ]

    async def _check_room(self, count: int) -> None:
        held = (await self._run(statements.COUNT_MESSAGES)).scalar_one()
        if held + count > self._limits.messages:
            raise _too_many_messages(self._limits.messages)

    async def _write(self, new: Sequence[tuple[ConversationKey, Turn]]) -> None:
        await self._connection.execute(turn_statements.WRITE, turn_statements.of_turns(new))
        sequences: dict[str, list[int]] = {}
        for key, turn in new:
            sequences.setdefault(key.conversation_id, []).append(turn.sequence)
        of = turn_statements.of_conversations(ConversationKey(self._user_id, one) for one in sequences)
        await self._connection.execute(turn_statements.EXTEND, of)
        extents = {
            "conversation_ids": list(sequences),
            "firsts": [min(numbers) for numbers in sequences.values()],
            "lasts": [max(numbers) for numbers in sequences.values()],
        }
        await self._run(statements.NOT_TO_EXTRACT, extents)
        await owe(self._connection, "embed", [(self._user_id, one) for one in sequences])

    async def facts(self, told: Sequence[ToldFact], erased: Erased) -> int:
        """Takes facts; how many are new."""
        now = datetime.now(UTC)
        facts = [one.fact for one in told if not _is_past(one.fact, erased, now)]
        if not facts:
            return 0
        plan = NewFacts(await self._known_facts(facts))
        for fact in facts:
            plan.take(fact)
        if not plan.new:
            return 0
        await self._check_facts(sum(fact.superseded_by is None for fact in plan.new))
        new = await self._grounded(plan.new)
        await self._run(fact_statements.WRITE, fact_statements.of_facts(new))
        if any(fact.sources for fact in new):
            await self._run(fact_statements.WRITE_SOURCES, fact_statements.of_sources(new))
        await self._prune(plan.versioned)
        await self._owe_expiry(new, now)
        return len(new)

    async def _known_facts(self, facts: Sequence[Fact]) -> Sequence[KnownFact]:
        ids = {fact.id for fact in facts} | {fact.superseded_by for fact in facts if fact.superseded_by}
        values = {"ids": list(ids), "hashes": [body_hash(fact.text) for fact in facts if not fact.invalidate_time]}
        rows = await self._run(statements.KNOWN_FACTS, values)
        return [KnownFact(row.id, row.superseded_by, bytes(row.body_hash), is_current=row.is_current) for row in rows]

    async def _check_facts(self, count: int) -> None:
        held = (await self._run(statements.COUNT_FACTS)).scalar_one()
        if held + count > self._limits.facts:
            raise too_many_facts(self._limits.facts)

    async def _grounded(self, facts: Sequence[Fact]) -> list[Fact]:
        """With those sources that are known, and an origin that follows from that."""
        rows = await self._run(statements.KNOWN_MESSAGES, fact_statements.of_sources(facts))
        known = {Source(row.conversation_id, row.message_id) for row in rows}
        grounded = []
        for fact in facts:
            sources = tuple(source for source in fact.sources if source in known)
            grounded.append(replace(fact, sources=sources, origin="extracted" if sources else "imported"))
        return grounded

    async def _prune(self, fact_ids: Sequence[str]) -> None:
        if fact_ids:
            values = {"ids": list(fact_ids), "most": self._limits.versions}
            old = (await self._run(fact_statements.OLD_VERSIONS, values)).scalars().all()
            await drop_facts(self._connection, self._user_id, old)

    async def _owe_expiry(self, facts: Sequence[Fact], now: datetime) -> None:
        times = [fact.expire_time for fact in facts if fact.expire_time is not None]
        if times:
            whole = (self._user_id, self._user_id)
            await owe(self._connection, "expire", [whole], delay_seconds=(min(times) - now).total_seconds())

    async def _run(self, statement: Any, values: dict[str, Any] | None = None) -> Any:
        return await self._connection.execute(statement, {"user_id": self._user_id, **(values or {})})


def _is_at(row: Any, told: ToldMessage) -> bool:
    return bool(row.is_of_conversation) and row.sequence == told.said.turn.sequence


def _is_past(fact: Fact, erased: Erased, now: datetime) -> bool:
    return is_erased(fact.record_time, erased.facts) or (fact.expire_time is not None and fact.expire_time <= now)


def _too_many_messages(limit: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"With these you would have more than {limit} messages, which is as many as an import may bring: import less.",
        reasons.ERROR_REASON_LIMIT_REACHED,
        metadata={"kind": "messages", "limit": str(limit)},
    )
