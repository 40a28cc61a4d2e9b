"""Every statement about the life of a generation: its lease, its owner and epoch, and the wish to stop it.

Invariants: a generation has one owner at a time, and the epoch grows with each change; a lease is renewed by its owner only,
whoever else takes the generation over does so once it has expired. One public method is one transaction.
"""

import contextlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.chat.generation_store import translated
from services.chat.records import KnownConversation, Turn
from services.chat.rows import TURN, turn_of
from services.chat.schema import conversations, generations
from services.runtime.database import Database

# In text, since these unnest arrays: one statement for all the generations of a process.
_RENEW: Final = sa.text(
    "update generations set lease_expire_time = now() + make_interval(secs => :lease_seconds)"
    " from unnest(cast(:ids as uuid[]), cast(:epochs as int[])) as held (id, epoch)"
    " where generations.id = held.id and generations.epoch = held.epoch and status = 'running' and owner = :owner"
    " returning cast(generations.id as text) as id, is_cancel_requested"
)
_SAVE_TEXTS: Final = sa.text(
    "update messages set text = written.text, memory_ids = cast(string_to_array(written.memory_ids, ',') as uuid[])"
    " from unnest(cast(:ids as uuid[]), cast(:texts as text[]), cast(:memory_ids as text[]))"
    " as written (generation_id, text, memory_ids)"
    " join generations on generations.id = written.generation_id"
    " where messages.id = generations.reply_message_id and messages.generation_id = generations.id"
    " and messages.status = 'generating'"
)
_SAVE_RESPONSES: Final = sa.text(
    "update generations set provider_response_ids ="
    " array(select distinct unnest(provider_response_ids || string_to_array(kept.response_ids, ',')))"
    " from unnest(cast(:ids as uuid[]), cast(:response_ids as text[])) as kept (id, response_ids)"
    " where generations.id = kept.id"
)
_TAKE: Final = (
    "with dead as (select id from generations where status = 'running' and lease_expire_time < now()"
    " and not (owner = :owner and id = any(cast(:held as uuid[]))){condition}"
    " order by lease_expire_time limit :most for update skip locked)"
    " update generations set owner = :owner, epoch = epoch + 1,"
    " lease_expire_time = now() + make_interval(secs => :lease_seconds) from dead where generations.id = dead.id"
    " returning cast(generations.id as text) as id, is_cancel_requested, provider_response_ids, items_response_id,"
    " extract(epoch from now() - create_time)::float as age_seconds"
)
_TAKE_ANY: Final = sa.text(_TAKE.format(condition=""))
_TAKE_OF_CONVERSATION: Final = sa.text(_TAKE.format(condition=" and conversation_id = cast(:conversation_id as uuid)"))
_STATUSES: Final = sa.text("select cast(id as text) as id, status from generations where id = any(cast(:ids as uuid[]))")
_HAND_OVER: Final = sa.text(
    "update generations set lease_expire_time = now() - interval '1 microsecond'"
    " from unnest(cast(:ids as uuid[]), cast(:epochs as int[])) as held (id, epoch)"
    " where generations.id = held.id and generations.epoch = held.epoch and status = 'running' and owner = :owner"
    " returning cast(generations.id as text) as id"
)


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign of life of one generation: its epoch, and what is new of it since the last one, if anything is."""

    epoch: int
    text: str | None
    response_ids: Collection[str] | None
    memory_ids: Sequence[str] = ()
    """Saved with the text."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A generation that this process took over, as its owner left it; `age_seconds` since it began."""

    turn: Turn
    known: KnownConversation
    is_cancel_requested: bool
    response_ids: Sequence[str]
    items_response_id: str | None
    age_seconds: float


class LeaseStore:
    """The leases in the database.

    `owner` names this process; `lease_seconds` is how long it is believed after a sign of life.
    """

    def __init__(self, database: Database, *, owner: str, lease_seconds: float) -> None:
        self._database = database
        self._owner = owner
        self._lease_seconds = lease_seconds

    @contextlib.asynccontextmanager
    async def _of_service(self) -> AsyncIterator[AsyncConnection]:
        with translated():
            async with self._database.service_transaction() as connection:
                yield connection

    async def renew(self, signs: Mapping[str, Sign]) -> dict[str, bool]:
        """Tells that these generations of this process live, and saves what they have written since the last time.

        Returns those that are still this process's own, and whether each is asked to stop; nothing is written of the others.
        """
        values = self._held(signs) | {"lease_seconds": self._lease_seconds}
        async with self._of_service() as connection:
            ours: dict[str, bool] = {row.id: row.is_cancel_requested for row in await connection.execute(_RENEW, values)}
            await _save(connection, {key: signs[key] for key in ours})
        return ours

    def _held(self, signs: Mapping[str, Sign]) -> dict[str, object]:
        return {"ids": list(signs), "epochs": [sign.epoch for sign in signs.values()], "owner": self._owner}

    async def take_over(self, *, most: int, held: Collection[str], conversation_id: str | None = None) -> list[Taken]:
        """Makes generations that nobody keeps alive this process's own, the longest dead first. At most `most`.

        Not those in `held`, which this process works on, late as it is with its renewals.
        """
        values: dict[str, object] = {
            "owner": self._owner, "held": list(held), "most": most, "lease_seconds": self._lease_seconds,
        }  # fmt: skip
        statement = _TAKE_ANY
        if conversation_id is not None:
            statement, values = _TAKE_OF_CONVERSATION, values | {"conversation_id": conversation_id}
        async with self._of_service() as connection:
            rows = {row.id: row for row in (await connection.execute(statement, values)).all()}
            if not rows:
                return []
            return [_taken(row, rows[row["generation_id"]]) for row in await _turns(connection, list(rows))]

    async def hand_over(self, signs: Mapping[str, Sign]) -> None:
        """Saves what these generations of this process have written, and lets their leases expire now."""
        async with self._of_service() as connection:
            ours = [row.id for row in await connection.execute(_HAND_OVER, self._held(signs))]
            await _save(connection, {key: signs[key] for key in ours})

    async def request_cancel(self, generation_id: str, *, user_id: str) -> Turn | None:
        """Asks whoever writes a generation of the user to stop, if it is running. Returns it; None when there is none."""
        mine = (generations.c.id == generation_id, generations.c.user_id == user_id)
        async with self._database.transaction(user_id=user_id) as connection:
            await connection.execute(
                generations.update().where(*mine, generations.c.status == "running").values(is_cancel_requested=True)
            )
            row = (await connection.execute(TURN.where(*mine))).mappings().one_or_none()
        return None if row is None else turn_of(row)

    async def read_statuses(self, generation_ids: Collection[str]) -> dict[str, str]:
        """The status of each of these generations that is still there, whoever's it is."""
        async with self._of_service() as connection:
            return {row.id: row.status for row in await connection.execute(_STATUSES, {"ids": list(generation_ids)})}


async def _save(connection: AsyncConnection, signs: Mapping[str, Sign]) -> None:
    texts = {key: sign.text for key, sign in signs.items() if sign.text is not None}
    if texts:
        memory_ids = [",".join(signs[key].memory_ids) for key in texts]
        written = {"ids": list(texts), "texts": list(texts.values()), "memory_ids": memory_ids}
        await connection.execute(_SAVE_TEXTS, written)
    kept = {key: ",".join(sign.response_ids) for key, sign in signs.items() if sign.response_ids}
    if kept:
        await connection.execute(_SAVE_RESPONSES, {"ids": list(kept), "response_ids": list(kept.values())})


async def _turns(connection: AsyncConnection, generation_ids: Sequence[str]) -> Sequence[Any]:
    statement = (
        TURN.add_columns(conversations.c.rewritten_sequence, conversations.c.rewritten_revision)
        .join(conversations, conversations.c.id == generations.c.conversation_id)
        .where(generations.c.id.in_(generation_ids))
    )
    return (await connection.execute(statement)).mappings().all()


def _taken(row: Any, taken: Any) -> Taken:
    return Taken(
        turn=turn_of(row),
        known=KnownConversation(row["rewritten_sequence"], row["rewritten_revision"]),
        is_cancel_requested=taken.is_cancel_requested,
        response_ids=taken.provider_response_ids,
        items_response_id=taken.items_response_id,
        age_seconds=taken.age_seconds,
    )
