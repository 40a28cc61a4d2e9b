"""What a search reads, from Postgres. One public method is one transaction, of one user.

Its SQL stands in statements.py and word_statements.py. A search is a fixed number of statements. Nothing is
written but what is owed, and nothing is of one moment with anything else: what is gone when its row is read is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from services.memory.postings.store import SEGMENT_MESSAGES
from services.memory.recall import statements, word_statements
from services.memory.recall.fusion import Candidate, FactKey, Key, Place
from services.memory.recall.moments import Window
from services.memory.recall.scope import Scope
from services.memory.records import Fact, Source
from services.memory.turns import Turn
from services.memory.upkeep.store import owe
from services.runtime.database import Database


@dataclass(frozen=True, slots=True)
class FoundTurn:
    """A message that was found, where it stands, and when memory heard of it."""

    turn: Turn
    conversation_id: str
    record_time: datetime


@dataclass(frozen=True, slots=True)
class Extent:
    """What is searched: of whom, which part, and how many candidates each leg names."""

    user_id: str
    depth: int
    kind: str | None = None
    conversation_id: str | None = None
    superseded: bool = False
    excluded_message_ids: frozenset[str] = frozenset()
    window: Window | None = None


class RecallStore:
    """The searches of every user; each method acts for the user of its extent."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def by_words(self, extent: Extent, query: str, *, word_count: int) -> tuple[list[Candidate], list[Candidate]]:
        """What shares words with the query, which has about so many; and, where there is a window, the latest of it.

        Where much had to be looked at one by one, lists of its words are owed: see services/memory/postings.
        """
        room = next((count for count in word_statements.WORD_COUNTS if count >= word_count), word_statements.MOST_WORDS)
        of = {"user_id": extent.user_id, "query": query, "depth": extent.depth}
        values = of | _place_values(extent) | _window_values(extent)
        async with self._database.transaction(user_id=extent.user_id) as connection:
            has_lists = (await connection.execute(word_statements.HAS_LISTS, of)).scalar_one()
            scope = replace(_scope(extent), has_lists=has_lists)
            found = (await connection.execute(word_statements.by_words(scope, room), values)).all()
            looked_at = sum(row.score for row in found if row.leg == "looked_at")
            if extent.conversation_id is None and looked_at >= SEGMENT_MESSAGES:
                await owe(connection, "index", [(extent.user_id, extent.user_id)])
        words = [_candidate(row) for row in found if row.leg == "words"]
        return words, [_candidate(row) for row in found if row.leg == "recent"]

    async def by_meaning(self, extent: Extent, vector: str, *, model: str) -> list[Candidate]:
        """What is nearest to the vector, in exact order; only what the same model embedded is compared."""
        values = {"vector": vector, "model": model, "depth": extent.depth, **_place_values(extent)}
        found = await self._read(extent, statements.by_meaning(_scope(extent)), values)
        return [_candidate(row) for row in found]

    async def read(self, extent: Extent, keys: Sequence[Key]) -> dict[Key, Fact | FoundTurn]:
        """What stands there now, of what the extent holds."""
        places = [key if isinstance(key, Place) else None for key in keys]
        wanted = {
            "ordinals": list(range(len(keys))),
            "conversation_ids": [place and place.conversation_id for place in places],
            "sequences": [place and place.sequence for place in places],
            "fact_ids": [key.id if isinstance(key, FactKey) else None for key in keys],
            **_excluded_value(extent),
        }
        found = await self._read(extent, statements.rows(_scope(extent)), wanted)
        return {keys[row.ordinal]: _memory(row, keys[row.ordinal]) for row in found}

    async def _read(self, extent: Extent, statement: sa.TextClause, values: Mapping[str, Any]) -> Sequence[sa.Row[Any]]:
        async with self._database.transaction(user_id=extent.user_id) as connection:
            return (await connection.execute(statement, {"user_id": extent.user_id, **values})).all()


def _scope(extent: Extent) -> Scope:
    return Scope(
        messages=extent.kind != "fact",
        in_conversation=extent.conversation_id is not None,
        superseded=extent.superseded,
        excluding=bool(extent.excluded_message_ids),
        in_window=extent.window is not None,
    )


def _place_values(extent: Extent) -> dict[str, Any]:
    place = {"conversation_id": extent.conversation_id} if extent.conversation_id is not None else {}
    return {**place, **_excluded_value(extent)}


def _excluded_value(extent: Extent) -> dict[str, Any]:
    return {"excluded": sorted(extent.excluded_message_ids)} if extent.excluded_message_ids else {}


def _window_values(extent: Extent) -> dict[str, Any]:
    return {"start": extent.window.start, "end": extent.window.end} if extent.window is not None else {}


def _candidate(row: sa.Row[Any]) -> Candidate:
    key = Place(row.conversation_id, row.sequence) if row.is_message else FactKey(row.id)
    sources = tuple(_place(source) for source in row.sources)
    return Candidate(key, row.score, row.moment, sources, is_embedded=row.is_embedded)


def _place(source: str) -> Place:
    conversation_id, _, sequence = source.partition(":")
    return Place(conversation_id, int(sequence))


def _memory(row: sa.Row[Any], key: Key) -> Fact | FoundTurn:
    return _found_turn(row, key) if isinstance(key, Place) else _fact(row)


def _found_turn(row: sa.Row[Any], place: Place) -> FoundTurn:
    turn = Turn(
        message_id=row.message_id,
        sequence=place.sequence,
        role=row.role,
        text=row.body,
        revision=row.revision,
        create_time=row.create_time,
        token_count=row.token_count,
    )
    return FoundTurn(turn, place.conversation_id, row.record_time)


def _fact(row: sa.Row[Any]) -> Fact:
    return Fact(
        id=row.fact_id,
        text=row.fact_body,
        subject=row.subject,
        attribute=row.attribute,
        importance=row.importance,
        stamped_by=row.stamped_by,
        origin=row.origin,
        valid_from=row.valid_from,
        valid_to=row.valid_to,
        record_time=row.fact_record_time,
        invalidate_time=row.invalidate_time,
        superseded_by=row.superseded_by,
        expire_time=row.expire_time,
        sources=tuple(Source(*source.split(":")) for source in row.sources),
    )
