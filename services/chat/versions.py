"""Every statement that puts a turn in the place of the last one of its conversation.

Owns what an edit and a regeneration are. Invariants: a place in a conversation has one current version; what was replaced is
kept, with the greater version and revision going to what took its place; the conversation is locked first, so that of two
replacements one comes first. Memory is told by a job of the same transaction.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.records import KnownConversation, Message, title_of
from services.chat.refusals import conversation_not_found, message_not_found
from services.chat.rows import message_columns, message_of, message_values
from services.chat.schema import conversations, message_images, messages
from services.runtime.errors import FailedPrecondition, FieldViolation, invalid_request
from services.runtime.ids import new_id

FORGET_REPLACED: Final = "forget_replaced"
_A_MOMENT: Final = dt.timedelta(microseconds=1)
_ROLES: Final = {"edit": "user", "regenerate": "assistant"}
_WRONG_ROLES: Final = {
    "edit": "is a reply: name the user's message before it",
    "regenerate": "is the user's message: name the reply to it",
}


@dataclass(frozen=True, slots=True)
class Replacement:
    """What a turn replaces: the user's last message and the reply to it (edit), or that reply alone (regenerate)."""

    message_id: str
    kind: Literal["edit", "regenerate"]


@dataclass(frozen=True, slots=True)
class Replaced:
    """The turn that now stands there."""

    user_message: Message
    reply: Message
    known: KnownConversation


@dataclass(frozen=True, slots=True)
class NewReply:
    """What is to be written: for an edit also what the user says now."""

    text: str
    model: str
    generation_id: str


async def replace_last_turn(
    connection: AsyncConnection, replacement: Replacement, new: NewReply, *, user_id: str, conversation_id: str
) -> Replaced:
    """Stores the versions that take the place of the last turn, and supersedes those that stood there.

    Raises NotFound (CONVERSATION_NOT_FOUND, MESSAGE_NOT_FOUND), FailedPrecondition (NOT_LAST_TURN) and InvalidArgument
    when the message is of the other role. That the turn does not run is left to the constraint of running generations.
    """
    row = await _locked(connection, conversation_id, user_id)
    found = await _read(connection, replacement, row, user_id)
    said, reply = _last_turn(replacement, found, row["message_count"])
    new_said = said if replacement.kind == "regenerate" else _anew(said, row["now"], text=new.text)
    new_reply = _reply_to(new_said, reply, new, row["now"])
    old = [one for one in (said, reply) if one is not None and one is not new_said]
    await connection.execute(
        messages.update()
        .where(messages.c.id.in_([one.id for one in old]), messages.c.user_id == user_id)
        .values(supersede_time=sa.func.now())
    )
    written = [one for one in (new_said, new_reply) if one is not said]
    await connection.execute(messages.insert(), [message_values(one, user_id) for one in written])
    if new_said is not said and said.images:
        await _keep_images(connection, said.id, new_said.id)
    await _note(connection, written[0], new_reply, user_id=user_id, renames=new_said is not said and said.sequence == 1)
    return Replaced(new_said, new_reply, KnownConversation(written[0].sequence, written[0].revision))


async def _locked(connection: AsyncConnection, conversation_id: str, user_id: str) -> Mapping[str, Any]:
    statement = (
        sa.select(conversations.c.id, conversations.c.message_count, sa.func.now().label("now"))
        .where(conversations.c.id == conversation_id, conversations.c.user_id == user_id)
        .with_for_update(key_share=True)
    )
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise conversation_not_found(conversation_id)
    return dict(row)


async def _read(
    connection: AsyncConnection, replacement: Replacement, row: Mapping[str, Any], user_id: str
) -> list[Message]:
    """The message that is named, and the last two of the conversation."""
    is_last = sa.and_(messages.c.sequence >= row["message_count"] - 1, messages.c.supersede_time.is_(None))
    statement = sa.select(*message_columns()).where(
        messages.c.conversation_id == row["id"],
        messages.c.user_id == user_id,
        sa.or_(messages.c.id == replacement.message_id, is_last),
    )
    return [message_of(each) for each in (await connection.execute(statement)).mappings()]


def _last_turn(replacement: Replacement, found: Sequence[Message], count: int) -> tuple[Message, Message | None]:
    """The user's message of the last turn and the reply to it, one of which is the named one."""
    named = next((one for one in found if one.id == replacement.message_id), None)
    if named is None:
        raise message_not_found(replacement.message_id)
    if named.role != _ROLES[replacement.kind]:
        raise invalid_request([FieldViolation("message_id", _WRONG_ROLES[replacement.kind])])
    last = {one.sequence: one for one in found if one.supersede_time is None and one.sequence >= count - 1}
    said, reply = last.get(count - 1), last.get(count)
    # A conversation that was brought in may end with the user's words.
    if reply is not None and reply.role == "user":
        said, reply = reply, None
    if said is None or said.role != "user" or named not in (said, reply):
        raise FailedPrecondition(
            "Only the last turn of a conversation can be said or answered anew, in its latest version.",
            reasons.ERROR_REASON_NOT_LAST_TURN,
            metadata={"message_id": replacement.message_id},
        )
    return said, reply


def _anew(old: Message, now: dt.datetime, **changed: Any) -> Message:
    """The version after `old`, written later than it, whatever the clock says: that is how memory tells the two apart."""
    return replace(
        old, id=new_id(), version=old.version + 1, revision=old.revision + 1,
        create_time=max(now, old.create_time + _A_MOMENT), **changed,
    )  # fmt: skip


def _reply_to(said: Message, old: Message | None, new: NewReply, now: dt.datetime) -> Message:
    empty: dict[str, Any] = {
        "role": "assistant", "text": "", "status": "generating", "incomplete_reason": None, "model": new.model,
        "generation_id": new.generation_id, "usage": None, "timings": None, "metadata": {}, "parts": (), "citations": (),
        "images": (), "memory_ids": (),
    }  # fmt: skip
    if old is None:
        return replace(said, id=new_id(), sequence=said.sequence + 1, version=1, revision=0, create_time=now, **empty)
    return _anew(old, now, **empty)


async def _keep_images(connection: AsyncConnection, old_id: str, new_id: str) -> None:
    """The images of a message stay when it is said anew."""
    names = ("user_id", "position", "url", "media_type", "data")
    kept = sa.select(sa.cast(new_id, sa.Uuid), *(message_images.c[name] for name in names)).where(
        message_images.c.message_id == old_id
    )
    await connection.execute(message_images.insert().from_select(["message_id", *names], kept))


async def _note(connection: AsyncConnection, first: Message, reply: Message, *, user_id: str, renames: bool) -> None:
    """Tells the conversation what was written anew, and of a title that was made of words that are not there any more."""
    table = conversations.c
    values: dict[str, Any] = {
        "message_count": reply.sequence,
        "last_message_time": sa.func.now(),
        "update_time": sa.func.now(),
        "rewritten_sequence": first.sequence,
        "rewritten_revision": first.revision,
    }
    if renames:
        values["title"] = sa.case((table.is_titled_by_user, table.title), else_=title_of(first.text))
        values["is_title_asked"] = False
    await connection.execute(
        conversations.update().where(table.id == first.conversation_id, table.user_id == user_id).values(values)
    )
