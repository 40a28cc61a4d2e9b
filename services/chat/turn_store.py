"""Every statement that begins a turn, or finds the one that was begun.

Owns idempotency. Invariants: a request id names one turn of a user, decided by a unique constraint and not by a look; a turn
that is tried again keeps its two messages; a conversation has one running turn, and a dead one does not block it.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.generation_store import GenerationStore, supersede
from services.chat.records import Generation, Image, KnownConversation, Message, MessageImage, Turn, title_of
from services.chat.refusals import conversation_not_found, request_id_reused
from services.chat.rows import message_columns, message_of
from services.chat.schema import ATTEMPT_CONSTRAINT, RUNNING_INDEX, conversations, generations, message_images, messages
from services.chat.tools.call_store import inherit_rounds
from services.chat.turn_beginning import BEGIN_CREATING, BEGIN_GROWING, beginning_values
from services.chat.turn_draft import TurnDraft, is_latest, latest_attempt, placed
from services.chat.versions import FORGET_REPLACED, NewReply, Replacement, replace_last_turn
from services.runtime.database import Database, violated_constraint
from services.runtime.errors import Aborted, ServiceError, reason_name
from services.runtime.ids import new_id
from services.runtime.jobs import Jobs
from services.runtime.lanes import UserTransaction

log = structlog.get_logger(__name__)

_CONFLICT_ROUNDS: Final = 3
_NOTHING_KNOWN: Final = KnownConversation(0, 0)
# The provider's no to the request itself: the same request gets the same answer.
_FINAL_REASONS: Final = (reason_name(reasons.ERROR_REASON_MODEL_REFUSED_REQUEST),)


@dataclass(frozen=True, slots=True)
class Begun:
    """What came of a draft: a turn, and whether this call started the generation and so has to run it."""

    turn: Turn
    is_new: bool
    known: KnownConversation


class TurnStore:
    """The beginnings of turns in the database.

    At most `concurrency` begin at a time; the others wait here, in order and as long as it takes, instead of at the
    connection pool, where a burst of new turns would keep running ones from being saved and their leases from being renewed.
    `rescue` takes over what is dead in a conversation and says whether it was closed. `open_log` is told of each generation
    before it is stored, so that one that is there has a log, too.
    """

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        database: Database,
        generation_store: GenerationStore,
        jobs: Jobs,
        *,
        rescue: Callable[[str], Awaitable[bool]],
        open_log: Callable[[str], None],
        concurrency: int,
    ) -> None:
        self._rescue = rescue
        self._open_log = open_log
        self._generations = generation_store
        self._jobs = jobs
        self._lane = database.lane(size=concurrency)

    async def begin_turn(self, draft: TurnDraft, *, refusal: ServiceError | None = None) -> Begun:
        """Starts the turn, or finds the one that its request id names; tries again one that failed where that helps.

        `refusal` is raised instead of starting a generation; finding one is always allowed. Several transactions when
        calls collide. Raises NotFound, AlreadyExists (REQUEST_ID_REUSED), Aborted (CONVERSATION_BUSY), and what
        `replace_last_turn` raises.
        """
        given = draft
        for attempt in range(_CONFLICT_ROUNDS):
            try:
                async with self._lane.transaction(user_id=draft.user_id) as transaction:
                    given = await placed(transaction.connection, draft)
                    return await self._begin(transaction, given, refusal)
            except IntegrityError as error:
                if not await self._may_try_again(error, given, is_first=attempt == 0):
                    raise _busy(given) from None
        raise _busy(given)

    async def _may_try_again(self, error: IntegrityError, draft: TurnDraft, *, is_first: bool) -> bool:
        constraint = violated_constraint(error)
        if constraint == ATTEMPT_CONSTRAINT:
            return True
        if constraint != RUNNING_INDEX:
            raise error
        # Whoever runs in this conversation may be this very request, a process ahead; or be dead.
        closed = await self._rescue(draft.conversation_id or "")
        return closed or (is_first and draft.request_id is not None)

    async def _begin(self, transaction: UserTransaction, draft: TurnDraft, refusal: ServiceError | None) -> Begun:
        connection = transaction.connection
        found = await latest_attempt(connection, draft)
        if found is not None:
            if found.generation.request_digest != draft.request_digest:
                raise request_id_reused(draft.request_id or "")
            return await self._begin_again(connection, found, draft, refusal)
        if refusal is not None:
            raise refusal
        if draft.replaces is not None:
            return await self._begin_replacing(connection, draft, draft.replaces)
        return await self._begin_new(transaction, draft)

    async def _begin_again(
        self, connection: AsyncConnection, found: Turn, draft: TurnDraft, refusal: ServiceError | None
    ) -> Begun:
        generation = found.generation
        failed = generation.failure is not None and generation.failure.reason not in _FINAL_REASONS
        if not failed or not await is_latest(connection, found):
            return Begun(found, is_new=False, known=_NOTHING_KNOWN)
        if refusal is not None:
            raise refusal
        return await self._attempt_again(connection, found, draft)

    async def _attempt_again(self, connection: AsyncConnection, found: Turn, draft: TurnDraft) -> Begun:
        old = found.generation
        retried = replace(
            old, id=new_id(), attempt=old.attempt + 1, status="running", is_expired=False, degraded=(), failure=None,
            epoch=1, options=draft.options, sealed_secrets=draft.sealed_secrets, last_sequence=0, end_time=None,
        )  # fmt: skip
        await supersede(connection, found)
        create_time = await self._insert_generation(connection, retried)
        await inherit_rounds(connection, from_id=old.id, to_id=retried.id, user_id=old.user_id)
        renewed = await connection.execute(
            messages.update()
            .where(messages.c.id == found.reply.id, messages.c.user_id == old.user_id)
            .values(_CLEAN_REPLY | {"generation_id": retried.id, "revision": messages.c.revision + 1})
            .returning(*message_columns())
        )
        reply = message_of(renewed.mappings().one())
        await connection.execute(
            conversations.update()
            .where(conversations.c.id == old.conversation_id, conversations.c.user_id == old.user_id)
            .values(rewritten_sequence=reply.sequence, rewritten_revision=reply.revision, update_time=sa.func.now())
        )
        turn = Turn(replace(retried, create_time=create_time), found.user_message, reply)
        return Begun(turn, is_new=True, known=KnownConversation(reply.sequence, reply.revision))

    async def _begin_replacing(self, connection: AsyncConnection, draft: TurnDraft, replaces: Replacement) -> Begun:
        user_id, conversation_id = draft.user_id, draft.conversation_id or ""
        new = NewReply(text=draft.said[-1][1] if draft.said else "", model=draft.model, generation_id=new_id())
        replaced = await replace_last_turn(connection, replaces, new, user_id=user_id, conversation_id=conversation_id)
        said, reply = replaced.user_message, replaced.reply
        generation = _first_attempt(draft, said, reply)
        create_time = await self._insert_generation(connection, generation)
        await self._jobs.defer(
            connection, FORGET_REPLACED, conversation_id=reply.conversation_id, user_id=user_id,
            from_sequence=replaced.known.rewritten_sequence,
        )  # fmt: skip
        turn = Turn(replace(generation, create_time=create_time), said, reply)
        return Begun(turn, is_new=True, known=replaced.known)

    async def _begin_new(self, transaction: UserTransaction, draft: TurnDraft) -> Begun:
        ids = [new_id() for _ in range(len(draft.said) + 1)]
        values = self._new_values(draft, ids)
        statement = BEGIN_CREATING if draft.conversation_id is None else BEGIN_GROWING
        self._open_log(values["generation_id"])
        row = await transaction.fetch_one(statement, values)
        if row is None:
            raise conversation_not_found(draft.conversation_id or "")
        last_sequence, now, rewritten_sequence, rewritten_revision = row
        role, text = draft.said[-1]
        said = Message(
            id=ids[-2], conversation_id=values["conversation_id"], sequence=last_sequence - 1, role=role, text=text,
            status="complete", incomplete_reason=None, model=None, generation_id=None, revision=0, usage=None,
            timings=None, metadata=draft.metadata, create_time=now, images=[_shown(image) for image in draft.images],
        )  # fmt: skip
        reply = replace(
            said, id=ids[-1], sequence=last_sequence, role="assistant", text="", status="generating",
            model=draft.model, generation_id=values["generation_id"], metadata={}, images=(),
        )  # fmt: skip
        await _insert_images(transaction.connection, draft, said.id)
        known = KnownConversation(rewritten_sequence, rewritten_revision)
        return Begun(Turn(_first_attempt(draft, said, reply), said, reply), is_new=True, known=known)

    def _new_values(self, draft: TurnDraft, ids: Sequence[str]) -> dict[str, Any]:
        return {
            "conversation_id": draft.conversation_id or new_id(),
            "generation_id": new_id(),
            "user_id": draft.user_id,
            "title": title_of(next((text for role, text in draft.said if role == "user"), "")),
            "kind": draft.kind,
            "request_id": draft.request_id,
            "request_digest": draft.request_digest,
            "model": draft.model,
            "sealed_secrets": draft.sealed_secrets,
            "owner": self._generations.owner,
            "lease_seconds": self._generations.lease_seconds,
            **beginning_values(draft.said, ids, metadata=draft.metadata, options=draft.options),
        }

    async def _insert_generation(self, connection: AsyncConnection, generation: Generation) -> Any:
        self._open_log(generation.id)
        names = ("id", "user_id", "conversation_id", "user_message_id", "reply_message_id", "request_id")
        rest = ("request_digest", "attempt", "model", "options", "sealed_secrets")
        values = {name: getattr(generation, name) for name in (*names, *rest)}
        statement = generations.insert().values(
            values | {"owner": self._generations.owner, "lease_expire_time": self._generations.lease_expire_time}
        )
        return (await connection.execute(statement.returning(generations.c.create_time))).scalar_one()


_CLEAN_REPLY: Final[dict[str, Any]] = {
    "text": "",
    "status": "generating",
    "incomplete_reason": None,
    "input_tokens": None,
    "cached_tokens": None,
    "output_tokens": None,
    "reasoning_tokens": None,
    "time_to_first_token_ms": None,
    "processing_time_ms": None,
    "parts": [],
    "citations": [],
    "memory_ids": [],
}


def _busy(draft: TurnDraft) -> Aborted:
    return Aborted(
        "Another turn of this conversation is being answered. Wait for its end.",
        reasons.ERROR_REASON_CONVERSATION_BUSY,
        metadata={"conversation_id": draft.conversation_id or ""},
        retry_delay_seconds=1,
    )


async def _insert_images(connection: AsyncConnection, draft: TurnDraft, message_id: str) -> None:
    if draft.images:
        names = ("url", "media_type", "data")
        rows = [
            {name: getattr(image, name) for name in names}
            | {"user_id": draft.user_id, "message_id": message_id, "position": position}
            for position, image in enumerate(draft.images)
        ]
        await connection.execute(message_images.insert(), rows)


def _shown(image: Image) -> MessageImage:
    return MessageImage(image.url, image.media_type, len(image.data or b""))


def _first_attempt(draft: TurnDraft, said: Message, reply: Message) -> Generation:
    return Generation(
        id=reply.generation_id or "", user_id=draft.user_id, conversation_id=reply.conversation_id,
        user_message_id=said.id, reply_message_id=reply.id, request_id=draft.request_id,
        request_digest=draft.request_digest, attempt=1, status="running", is_expired=False, model=draft.model,
        degraded=(), failure=None, create_time=reply.create_time, options=draft.options,
        sealed_secrets=draft.sealed_secrets,
    )  # fmt: skip
