"""The embeddings in Postgres: what has none of the current model, and writing them.

Invariant: an embedding is of the text that stands there. It is written while its text is held and only if that is still the
one that was embedded, and goes with it or with its rewriting by triggers (migration 0002); so nothing outlives a deletion,
whichever comes first. One public method is one transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.upkeep.store import Owed, owe, set_due
from services.runtime.database import Database

_SCOPES: Final = "unnest(cast(:user_ids as uuid[]), cast(:scope_ids as uuid[])) as owed (user_id, scope_id)"
_NONE_OF_MODEL: Final = (
    "not exists (select from embeddings known where known.user_id = {item}.user_id and known.item_id = {item}.{id}"
    " and known.model = :model)"
)
_MISSING: Final = sa.text(
    "select 'turn' as kind, cast(turns.user_id as text) as user_id, cast(message_id as text) as item_id,"  # noqa: S608 - of constants
    " cast(conversation_id as text) as conversation_id, sequence, role, left(body, :most_characters) as body, revision,"
    " create_time"
    f" from {_SCOPES} join turns on turns.user_id = owed.user_id and turns.conversation_id = owed.scope_id"
    f" where body <> '' and {_NONE_OF_MODEL.format(item='turns', id='message_id')}"
    " union all"
    " select 'fact', cast(facts.user_id as text), cast(id as text), null, null, 'user', body, 0, record_time"
    f" from {_SCOPES} join facts on facts.user_id = owed.user_id and owed.scope_id = owed.user_id"
    f" where {_NONE_OF_MODEL.format(item='facts', id='id')}"
    " limit :most"
)
# What somebody changes or deletes at this moment is skipped: waiting for it could end in a ring, and the change owes the
# embedding anew. Held until the end, so that who comes next finds the embedding and takes it with the text.
_WRITE: Final = sa.text(
    "with made as (select * from unnest(cast(:user_ids as uuid[]), cast(:item_ids as uuid[]), cast(:kinds as text[]),"
    " cast(:bodies as text[]), cast(:revisions as integer[]), cast(:vectors as text[]), cast(:pieces as text[]))"
    " as made (user_id, item_id, kind, body, revision, vector, pieces)),"
    " held_turns as (select turns.user_id, message_id as item_id, conversation_id, sequence, vector, pieces"
    " from made join turns on made.kind = 'turn' and turns.user_id = made.user_id and message_id = item_id"
    " and turns.revision = made.revision for share of turns skip locked),"
    " held_facts as (select facts.user_id, id as item_id, vector, pieces"
    " from made join facts on made.kind = 'fact' and facts.user_id = made.user_id and id = item_id"
    " and facts.body = made.body for share of facts skip locked)"
    " insert into embeddings (user_id, item_id, kind, conversation_id, sequence, model, body, pieces)"
    " select user_id, item_id, 'turn', conversation_id, sequence, :model, cast(vector as halfvec), cast(pieces as halfvec[])"
    " from held_turns union all"
    " select user_id, item_id, 'fact', null, null, :model, cast(vector as halfvec), cast(pieces as halfvec[])"
    " from held_facts order by 1, 2"
    " on conflict (user_id, item_id) do update set model = excluded.model, body = excluded.body, pieces = excluded.pieces,"
    " conversation_id = excluded.conversation_id, sequence = excluded.sequence"
)
# Each model once: from one to the next in the index, however many rows they have.
_OTHER_MODELS: Final = sa.text(
    "with recursive models (model) as (select min(model) from embeddings union all"
    " select (select min(model) from embeddings where embeddings.model > models.model) from models where model is not null)"
    " select model from models where model is not null and model <> :model"
)
_SCOPES_OF_MODEL: Final = sa.text(
    "select distinct user_id, conversation_id from embeddings where model = :model and conversation_id is not null"
    " and (user_id, conversation_id) > (cast(:user_id as uuid), cast(:scope_id as uuid))"
    " order by user_id, conversation_id limit :most"
)
_USERS_OF_MODEL: Final = sa.text(
    "select distinct user_id, user_id from embeddings where model = :model and conversation_id is null"
    " and user_id > cast(:user_id as uuid) order by user_id limit :most"
)

# Of a longer message only the beginning is embedded.
_MOST_CHARACTERS: Final = 50_000
FIRST: Final = ("00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000000")
Kind = Literal["turn", "fact"]


@dataclass(frozen=True, slots=True)
class Item:
    """A message or a fact that is to be embedded, as it was read. `time` is in UTC."""

    kind: Kind
    user_id: str
    id: str
    role: str
    text: str = field(repr=False)
    revision: int
    time: datetime


@dataclass(frozen=True, slots=True)
class Embedded:
    """An item with its vectors, in pgvector's text form; no pieces where it is of one."""

    item: Item
    body: str = field(repr=False)
    pieces: Sequence[str] = field(repr=False)


class EmbeddingStore:
    """The embeddings of all users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def missing(self, owed: Sequence[Owed], *, model: str, most: int) -> Sequence[Item]:
        """Up to `most` texts of these conversations, and facts of these users, that have no embedding of the model."""
        values = {**_of(owed), "model": model, "most": most, "most_characters": _MOST_CHARACTERS}
        async with self._database.service_transaction() as connection:
            rows = (await connection.execute(_MISSING, values)).all()
        return [Item(row.kind, row.user_id, row.item_id, row.role, row.body, row.revision, row.create_time) for row in rows]

    async def write(self, made: Sequence[Embedded], *, model: str, still_owed: Sequence[Owed]) -> int:
        """Writes embeddings of texts that are still the same, counts them, and owes those scopes anew.

        Idempotent: the later of two writes stays. It leaves out what changes at this moment.
        """
        async with self._database.service_transaction() as connection:
            written = (await connection.execute(_WRITE, {**_columns(made), "model": model})).rowcount
            await owe(connection, "embed", [(one.user_id, one.scope_id) for one in still_owed])
        return written

    async def look_again(self, owed: Sequence[Owed], *, delay_seconds: float) -> None:
        """Owes these scopes anew, not before `delay_seconds` have passed."""
        async with self._database.service_transaction() as connection:
            for one in sorted(owed, key=lambda one: (one.user_id, one.scope_id)):
                await set_due(connection, "embed", (one.user_id, one.scope_id), delay_seconds=delay_seconds)

    async def other_models(self, model: str) -> Sequence[str]:
        """The models, besides this one, that embeddings are of."""
        async with self._database.service_transaction() as connection:
            return (await connection.execute(_OTHER_MODELS, {"model": model})).scalars().all()

    async def owe_of_model(self, model: str, *, after: tuple[str, str], most: int) -> tuple[str, str] | None:
        """Owes the embeddings of up to `most` conversations that have some of this model; the last, None when there is none.

        In the order of user and conversation, from behind `after` on.
        """
        return await self._owe_found(_SCOPES_OF_MODEL, model, after, most)

    async def owe_facts_of_model(self, model: str, *, after: tuple[str, str], most: int) -> tuple[str, str] | None:
        """The same for the facts of users."""
        return await self._owe_found(_USERS_OF_MODEL, model, after, most)

    async def _owe_found(
        self, statement: sa.TextClause, model: str, after: tuple[str, str], most: int
    ) -> tuple[str, str] | None:
        values = {"model": model, "user_id": after[0], "scope_id": after[1], "most": most}
        if statement is _USERS_OF_MODEL:
            del values["scope_id"]
        async with self._database.service_transaction() as connection:
            found = await _scopes(connection, statement, values)
            await owe(connection, "embed", found)
        return found[-1] if found else None


async def _scopes(connection: AsyncConnection, statement: sa.TextClause, values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(str(row[0]), str(row[1])) for row in await connection.execute(statement, values)]


def _of(owed: Sequence[Owed]) -> dict[str, list[str]]:
    return {"user_ids": [one.user_id for one in owed], "scope_ids": [one.scope_id for one in owed]}


def _columns(made: Sequence[Embedded]) -> dict[str, list[Any]]:
    return {
        "user_ids": [one.item.user_id for one in made],
        "item_ids": [one.item.id for one in made],
        "kinds": [one.item.kind for one in made],
        # Compared for facts only.
        "bodies": [one.item.text if one.item.kind == "fact" else "" for one in made],
        "revisions": [one.item.revision for one in made],
        "vectors": [one.body for one in made],
        "pieces": [_array(one.pieces) for one in made],
    }


def _array(vectors: Sequence[str]) -> str | None:
    """An array of vectors as Postgres reads it."""
    return "{" + ",".join(f'"{vector}"' for vector in vectors) + "}" if vectors else None
