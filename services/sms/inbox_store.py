"""Texts that come in: every statement.

Invariants: a provider's message is stored once, with all that it brings about (the change of consent, its confirmation,
the job that answers it) in the same transaction; a text gets one reply, decided by a unique index and not by a look; with
what came of a text the job of the next one of its number is deferred, which may have waited for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database, interval
from services.runtime.errors import FailedPrecondition, ResourceExhausted
from services.runtime.jobs import Jobs
from services.sms.consent_store import change_consent, held_consent, note_event
from services.sms.keywords import Said, read_keyword
from services.sms.message_store import TextLimits, check_limits
from services.sms.records import Answer, Consent, IncomingText, Keyword, NewText
from services.sms.rows import SEND_JOB, for_living, lock, outbound_values, share_user
from services.sms.schema import consents, messages
from services.sms.seen_numbers import note_number
from services.sms.segments import size_of
from services.sms.wording import confirmation

ANSWER_JOB: Final = "answer_text"
"""Takes the `message_id` of an inbound message."""
_TOLD: Final[Mapping[str, Keyword]] = {"STOP": "stop", "START": "start", "HELP": "help"}
"""What the provider says that it took a text for."""


@dataclass(frozen=True, slots=True)
class Received:
    """An incoming text as the job finds it."""

    message_id: str
    kind: str
    phone_number: str = field(repr=False)
    text: str = field(repr=False)
    answer: str
    user_id: str | None
    age_seconds: float
    is_opted_out: bool
    follows_pending: bool
    """Whether an earlier text of the number has still to be answered."""


class InboxStore:
    """The inbox in the database. `sender_name` is what confirmations begin with."""

    def __init__(self, database: Database, jobs: Jobs, limits: TextLimits, *, sender_name: str) -> None:
        self._database = database
        self._jobs = jobs
        self._limits = limits
        self._sender_name = sender_name

    async def receive(self, incoming: IncomingText) -> bool:
        """Stores a text that has come in, and does what its keyword says; False where it is known already."""
        async with self._database.service_transaction() as connection:
            consent = await held_consent(connection, incoming.phone_number)
            said = _said(incoming, is_opted_out=consent.is_opted_out)
            message_id = await _insert(connection, incoming, said, consent)
            if message_id is None:
                return False
            if said is not None:
                await self._obey(connection, said, consent, incoming, message_id)
            await self._jobs.defer(connection, ANSWER_JOB, message_id=message_id)
            return True

    async def _obey(
        self, connection: AsyncConnection, said: Said, consent: Consent, incoming: IncomingText, message_id: str
    ) -> None:
        changed = consent
        if said.keyword == "help":
            await note_event(connection, consent, "help", source="keyword", provider_message_id=incoming.provider_message_id)
        else:
            changed = await change_consent(
                connection, consent, is_opted_out=said.keyword == "stop", source="keyword",
                provider_message_id=incoming.provider_message_id,
            )  # fmt: skip
        # What the provider has answered by itself is not answered twice.
        if incoming.opt_out_type or (said.keyword == "help" and consent.is_opted_out):
            return
        if said.keyword == "help" or changed.epoch != consent.epoch:
            await self._confirm(connection, said, changed, message_id)

    async def _confirm(self, connection: AsyncConnection, said: Said, consent: Consent, message_id: str) -> None:
        is_help = said.keyword == "help"
        new = NewText(
            phone_number=consent.phone_number,
            text=confirmation(said.keyword, language=said.language, name=self._sender_name),
            kind="help" if is_help else "confirmation",
            in_reply_to=message_id,
            consent_epoch=None if is_help else consent.epoch,
        )
        if is_help and not await self._may_send(connection, new):
            return
        await self._insert_outbound(connection, new)

    async def _may_send(self, connection: AsyncConnection, new: NewText) -> bool:
        names = [f"texts to {new.phone_number}"]
        if new.user_id is not None:
            names.insert(0, f"texts of {new.user_id}")
        await lock(connection, *names)
        try:
            await check_limits(connection, new, self._limits)
        except ResourceExhausted:
            return False
        return True

    async def _insert_outbound(self, connection: AsyncConnection, new: NewText) -> None:
        statement = messages.insert().values(outbound_values(new)).returning(messages.c.id)
        message_id = (await connection.execute(statement)).scalar_one()
        await self._jobs.defer(connection, SEND_JOB, message_id=message_id)

    async def read(self, message_id: str, *, reply_within_seconds: float) -> Received | None:
        """An incoming text, and what decides whether it is answered now; None where it is gone.

        Earlier texts count as pending for `reply_within_seconds`.
        """
        earlier = messages.alias("earlier")
        follows_pending = sa.exists().where(
            earlier.c.phone_number == messages.c.phone_number,
            earlier.c.create_time > sa.func.now() - interval(reply_within_seconds),
            earlier.c.id < messages.c.id,
            earlier.c.direction == "inbound",
            earlier.c.answer == "pending",
        )
        statement = (
            sa.select(
                messages.c.id, messages.c.kind, messages.c.phone_number, messages.c.text, messages.c.answer,
                messages.c.user_id, sa.extract("epoch", sa.func.now() - messages.c.create_time).cast(sa.Float),
                sa.func.coalesce(consents.c.is_opted_out, sa.false()), follows_pending,
            )
            .select_from(messages.outerjoin(consents, consents.c.phone_number == messages.c.phone_number))
            .where(messages.c.id == message_id, messages.c.direction == "inbound")
        )  # fmt: skip
        async with self._database.service_transaction() as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else Received(*row)

    async def assign(self, message_id: str, *, user_id: str, phone_number: str) -> None:
        """Makes a text, and what was sent back to it, the user's. Idempotent. Raises NotFound (USER_NOT_FOUND)."""
        of_it = sa.or_(messages.c.id == message_id, messages.c.in_reply_to == message_id)
        with for_living(user_id):
            async with self._database.service_transaction() as connection:
                await share_user(connection, user_id)
                await connection.execute(
                    messages.update().where(of_it, messages.c.user_id.is_(None)).values(user_id=user_id)
                )
                await note_number(connection, user_id, phone_number)

    async def conclude(self, message_id: str, answer: Answer) -> None:
        """What comes of a text that gets no reply. Idempotent; a reply that is there stays."""
        async with self._database.service_transaction() as connection:
            await self._conclude(connection, message_id, answer)

    async def _conclude(self, connection: AsyncConnection, message_id: str, answer: Answer) -> None:
        concluded = (await connection.execute(_concluded(message_id, answer))).one_or_none()
        if concluded is None:
            return
        following = (
            sa.select(messages.c.id)
            .where(messages.c.phone_number == concluded.phone_number, messages.c.create_time >= concluded.create_time)
            .where(messages.c.id > message_id, messages.c.direction == "inbound", messages.c.answer == "pending")
            .order_by(messages.c.id)
            .limit(1)
        )
        next_id = (await connection.execute(following)).scalar_one_or_none()
        if next_id is not None:
            # Beside its own, which may sleep for minutes: a text is answered once, however many jobs it has.
            await self._jobs.defer(connection, ANSWER_JOB, message_id=next_id)

    async def refused_reply(self, *, phone_number: str, user_id: str) -> Answer | None:
        """What would come of a text now instead of a reply: `opted_out`, `limited`; None where it would be sent.

        A look, before a reply is paid for, and no promise: `reply` decides.
        """
        new = NewText(phone_number=phone_number, text="", kind="reply", user_id=user_id)
        async with self._database.service_transaction() as connection:
            try:
                await check_limits(connection, new, self._limits)
            except FailedPrecondition:
                return "opted_out"
            except ResourceExhausted:
                return "limited"
        return None

    async def reply(self, message_id: str, new: NewText) -> None:
        """Accepts the reply to a text, and defers its sending; nothing where there is one, or the text is gone.

        Raises NotFound (USER_NOT_FOUND).
        """
        with for_living(new.user_id or ""):
            async with self._database.service_transaction() as connection:
                await share_user(connection, new.user_id or "")
                held = sa.select(messages.c.id).where(messages.c.id == message_id, messages.c.answer == "pending")
                if (await connection.execute(held.with_for_update())).one_or_none() is None:
                    return
                try:
                    is_allowed = await self._may_send(connection, new)
                except FailedPrecondition:
                    await self._conclude(connection, message_id, "opted_out")
                    return
                if is_allowed:
                    await self._insert_outbound(connection, new)
                await self._conclude(connection, message_id, "answered" if is_allowed else "limited")

    async def delete_unmatched(self, *, older_than_seconds: float, limit: int) -> int:
        """Deletes texts of numbers that are nobody's; how many."""
        old = (
            sa.select(messages.c.id)
            .where(messages.c.user_id.is_(None), messages.c.create_time < sa.func.now() - interval(older_than_seconds))
            .limit(limit)
        )
        async with self._database.service_transaction() as connection:
            return (await connection.execute(messages.delete().where(messages.c.id.in_(old)))).rowcount


def _said(incoming: IncomingText, *, is_opted_out: bool) -> Said | None:
    """The keyword that a text is, to the provider or to us: it may have been given words that are not in our lists."""
    told = _TOLD.get(incoming.opt_out_type)
    # Its start is told of a "yes" as well.
    if told is None or (told == "start" and not is_opted_out):
        return read_keyword(incoming.text, is_opted_out=is_opted_out)
    return Said(told, "en")


async def _insert(connection: AsyncConnection, incoming: IncomingText, said: Said | None, consent: Consent) -> str | None:
    answer: Answer = "pending"
    if said is not None:
        answer = "keyword"
    elif consent.is_opted_out:
        answer = "opted_out"
    elif not incoming.text.strip():
        answer = "no_text"
    size = size_of(incoming.text)
    values: dict[str, Any] = {
        "direction": "inbound", "kind": said.keyword if said else "text", "phone_number": incoming.phone_number,
        "text": incoming.text, "segments": size.segments, "encoding": size.encoding, "status": "received",
        "answer": answer, "provider_message_id": incoming.provider_message_id,
    }  # fmt: skip
    statement = (
        insert(messages)
        .values(values)
        .on_conflict_do_nothing(
            index_elements=["provider_message_id"], index_where=sa.text("provider_message_id is not null")
        )
        .returning(messages.c.id)
    )
    message_id: str | None = (await connection.execute(statement)).scalar_one_or_none()
    return message_id


def _concluded(message_id: str, answer: Answer) -> sa.sql.dml.ReturningUpdate[Any]:
    return (
        messages.update()
        .where(messages.c.id == message_id, messages.c.answer == "pending")
        .values(answer=answer, update_time=sa.func.now())
        .returning(messages.c.phone_number, messages.c.create_time)
    )
