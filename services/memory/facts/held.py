"""The facts of one user inside a transaction that nobody else writes beside.

Owns what a change entails. Invariants: it is counted in the person's version in the same transaction, and what follows from
it (embedding, the person's summary, expiry) is owed there; the statements are as many for one change as for many.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.cascades import drop_facts, drop_portrait, renounce_portrait
from services.memory.facts import statements
from services.memory.facts.changes import Add, Basis, Change, Content, FactEdit, Outcome, Stale
from services.memory.facts.plan import Plan, Writes
from services.memory.facts.refusals import memory_not_found, request_id_reused, source_gone
from services.memory.people import erased_until, is_erased, touch_person
from services.memory.records import Fact, Source, Stamp, body_hash
from services.memory.upkeep.store import owe, owe_all, set_due

_VERSION_WITH_TIME: Final = 7


@dataclass(frozen=True, slots=True)
class FactLimits:
    """Facts that a user may have, closed ones included, and versions that a fact keeps: the oldest go."""

    facts: int
    versions: int


@dataclass(frozen=True, slots=True)
class Request:
    """The request that adds a fact: its id, and what tells it from another."""

    id: str
    digest: bytes


class HeldFacts:
    """The facts of a user inside a transaction, which nobody else changes meanwhile."""

    def __init__(
        self,
        connection: AsyncConnection,
        user_id: str,
        limits: FactLimits,
        *,
        portray_delay_seconds: float,
    ) -> None:
        self._connection = connection
        self._user_id = user_id
        self._limits = limits
        self._portray_delay_seconds = portray_delay_seconds
        self._whole = (user_id, user_id)

    async def check(self, basis: Basis) -> None:
        """Holds the conversation and notes how far was extracted. Raises Stale."""
        values = statements.of_basis(basis)
        if not (await self._run(statements.ADVANCE, values)).rowcount:
            raise Stale
        if (await self._run(statements.UNCHANGED, values)).scalar_one() != len(basis.messages):
            raise Stale

    async def check_source(self, source: Source) -> None:
        """Raises InvalidArgument for a message that was deleted, or written before everything was."""
        written, erased = _time_in(source.message_id), await erased_until(self._connection, self._user_id)
        values = {"conversation_id": source.conversation_id, "message_id": source.message_id, "write_time": written}
        is_gone = (await self._run(statements.IS_SOURCE_GONE, values)).scalar_one()
        if is_gone or (written is not None and is_erased(written, erased.messages)):
            raise source_gone()

    async def make(self, changes: Sequence[Change]) -> list[Outcome]:
        """Makes changes, in their order."""
        if not changes:
            return []
        ids = [change.fact_id for change in changes if not isinstance(change, Add)]
        texts = [change.text for change in changes if isinstance(change, Content)]
        plan = await self._plan(ids, texts, has_new=any(isinstance(change, Add) for change in changes))
        outcomes = [plan.make(change) for change in changes]
        await self._write(plan.writes())
        return outcomes

    async def edit(self, fact_id: str, edit: FactEdit, *, stamped_by: Stamp) -> None:
        """Changes a current fact. Raises NotFound and AlreadyExists (MEMORY_EXISTS)."""
        plan = await self._plan([fact_id], [edit["text"]] if "text" in edit else [], has_new=False)
        plan.edit(fact_id, edit, stamped_by=stamped_by)
        await self._write(plan.writes())

    async def delete(self, fact_ids: Sequence[str]) -> int:
        """Deletes facts with their history, or versions, and the person's summary, which may tell of them; counts them."""
        deleted = await drop_facts(self._connection, self._user_id, fact_ids)
        if deleted:
            await renounce_portrait(self._connection, self._user_id)
        return deleted

    async def expire(self) -> int:
        """Deletes the facts whose time has come, and sets when the next ones are due."""
        expired = await self.delete((await self._run(statements.EXPIRED)).scalars().all())
        seconds = (await self._run(statements.NEXT_EXPIRY)).scalar_one()
        if seconds is not None:
            await set_due(self._connection, "expire", self._whole, delay_seconds=seconds)
        return expired

    async def made_by(self, request: Request) -> str | None:
        """The fact that a request made before. Raises AlreadyExists when it was another request."""
        row = (await self._run(statements.MADE_BY, {"request_id": request.id})).one_or_none()
        if row is not None and row.request_digest != request.digest:
            raise request_id_reused(request.id)
        return None if row is None else row.id

    async def name_request(self, fact_id: str, request: Request) -> None:
        """Remembers which request made a fact."""
        values = {"id": fact_id, "request_id": request.id, "request_digest": request.digest}
        await self._run(statements.NAME_REQUEST, values)

    async def read(self, fact_id: str) -> Fact:
        """One fact. Raises NotFound."""
        row = (await self._run(statements.READ, {"id": fact_id})).mappings().one_or_none()
        if row is None:
            raise memory_not_found(fact_id)
        return statements.fact_of(row)

    async def _plan(self, fact_ids: Sequence[str], texts: Sequence[str], *, has_new: bool) -> Plan:
        state = (await self._run(statements.STATE, {"is_counted": has_new})).one()
        values = {"ids": list(fact_ids), "hashes": [body_hash(text) for text in texts]}
        known = [statements.fact_of(row) for row in (await self._run(statements.CONCERNED, values)).mappings()]
        expired = [fact.id for fact in known if fact.expire_time is not None and fact.expire_time <= state.now]
        # The sweep has not come by yet; their words are free.
        await self.delete(expired)
        kept = [fact for fact in known if fact.id not in expired]
        return Plan(kept, now=state.now, room=self._limits.facts - state.count)

    async def _write(self, writes: Writes) -> None:
        if not writes.rows:
            return
        if writes.moved:
            # First: a fact that is rewritten loses its embedding.
            await self._run(statements.MOVE_EMBEDDINGS, statements.of_pairs(writes.moved))
        if writes.hidden:
            await self._run(statements.HIDE, {"ids": list(writes.hidden)})
        await self._run(statements.WRITE, statements.of_facts(writes.rows))
        if writes.heirs:
            await self._run(statements.INHERIT, statements.of_pairs(writes.heirs))
        if writes.shortened or writes.heirs:
            await self._run(statements.SHORTEN, {"ids": [*writes.shortened, *writes.heirs.values()]})
        if writes.unsourced:
            await self._run(statements.DROP_SOURCES, {"fact_ids": list(writes.unsourced)})
        if any(fact.sources for fact in writes.resourced):
            await self._run(statements.WRITE_SOURCES, statements.of_sources(writes.resourced))
        if writes.versioned:
            values = {"ids": list(writes.versioned), "most": self._limits.versions}
            old = (await self._run(statements.OLD_VERSIONS, values)).scalars().all()
            await drop_facts(self._connection, self._user_id, old)
        await self._note_change(writes)

    async def _note_change(self, writes: Writes) -> None:
        portray_delay_seconds = self._portray_delay_seconds
        if writes.moved or writes.hidden:
            # What was superseded or closed is not to be told as if it held: rather no summary until there is another, soon.
            await drop_portrait(self._connection, self._user_id)
            portray_delay_seconds = 0.0
        await owe_all(self._connection, {"embed": 0.0, "portray": portray_delay_seconds}, [self._whole])
        expiring = [fact.expire_time for fact in writes.rows if fact.expire_time is not None]
        if expiring:
            seconds = (min(expiring) - datetime.now(UTC)).total_seconds()
            await owe(self._connection, "expire", [self._whole], delay_seconds=max(0.0, seconds))
        await touch_person(self._connection, self._user_id)

    async def _run(self, statement: Any, values: Mapping[str, Any] | None = None) -> Any:
        return await self._connection.execute(statement, {"user_id": self._user_id, **(values or {})})


def _time_in(message_id: str) -> datetime | None:
    """When a message was written, where its id says so."""
    value = uuid.UUID(message_id)
    if value.version != _VERSION_WITH_TIME:
        return None
    return datetime.fromtimestamp((value.int >> 80) / 1000, UTC)
