"""Answering: the job that finds whose an incoming text is, and what to reply.

Owns the decision whether there is a reply at all. Every step may be done again after a crash: the turn in chat is found
by the text's id, the reply in our database by a unique index. Raises what may be mended by waiting, which repeats the
job; what may not ends the text as `failed`. The texts of a number are answered one after the other: a turn that failed is
not tried again once the next one has begun. A text waits for earlier ones at most for half the time that it has itself.
"""

from typing import Final

import structlog
from prometheus_client import Counter

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import (
    Aborted,
    DeadlineExceeded,
    NotFound,
    ResourceExhausted,
    ServiceError,
    Unavailable,
    reason_name,
)
from services.runtime.jobs import Jobs
from services.sms.conversations import Conversations, Reply
from services.sms.inbox_store import ANSWER_JOB, InboxStore, Received
from services.sms.people import People, Person
from services.sms.records import Answer, NewText
from services.sms.segments import shortened

log = structlog.get_logger(__name__)

_ANSWERED: Final = Counter("parley_sms_answers", "Incoming texts, by what came of them.", ["answer"])
_MENDED_BY_WAITING: Final = (Unavailable, DeadlineExceeded, ResourceExhausted, Aborted)
# Of the time in which a text may be answered: one that always fails must not cost the next one its reply.
_WAITING_SHARE: Final = 0.5


class Answering:
    """Answers incoming texts."""

    def __init__(
        self,
        store: InboxStore,
        people: People,
        conversations: Conversations,
        *,
        reply_within_seconds: float,
        most_segments: int,
    ) -> None:
        self._store = store
        self._people = people
        self._conversations = conversations
        self._reply_within_seconds = reply_within_seconds
        self._most_segments = most_segments

    def register(self, jobs: Jobs) -> None:
        """Makes this the handler of the job that answers."""
        jobs.register(ANSWER_JOB, self.answer, is_slow=True)

    async def answer(self, message_id: str) -> None:
        """Answers a text, or says why not; nothing where that is done. Raises ServiceError where it may be done later."""
        received = await self._store.read(message_id, reply_within_seconds=self._reply_within_seconds)
        if received is None:
            return
        person = await self._people.by_number(received.phone_number)
        # Nobody's now, or another's than when it was begun with: whose words they are does not change with the number.
        if person is None or received.user_id not in {None, person.user_id}:
            await self._conclude(received, "unmatched")
            return
        try:
            await self._store.assign(message_id, user_id=person.user_id, phone_number=received.phone_number)
            if received.answer == "pending":
                await self._answer_person(received, person)
        except NotFound as error:
            # Deleted meanwhile: by auth here, or by its purge.
            log.info("sms.person_gone", message_id=message_id, reason=reason_name(error.reason))
            await self._conclude(received, "unmatched")

    async def _answer_person(self, received: Received, person: Person) -> None:
        refused = self._refused(received, person)
        if refused is None:
            self._await_earlier(received)
            # Before chat is asked: a turn that nobody would be sent is paid for all the same.
            refused = await self._store.refused_reply(phone_number=received.phone_number, user_id=person.user_id)
        if refused is not None:
            await self._conclude(received, refused)
            return
        reply = await self._reply(received, person)
        if reply is None:
            await self._conclude(received, "failed")
            return
        new = NewText(
            phone_number=received.phone_number,
            text=shortened(reply.text.strip(), most_segments=self._most_segments),
            kind="reply",
            user_id=person.user_id,
            in_reply_to=received.message_id,
            conversation_id=reply.conversation_id,
        )
        await self._store.reply(received.message_id, new)
        _ANSWERED.labels("replied").inc()

    def _refused(self, received: Received, person: Person) -> Answer | None:
        if received.is_opted_out:
            return "opted_out"
        if received.age_seconds > self._reply_within_seconds:
            return "too_late"
        return None if person.wants_replies else "not_wanted"

    def _await_earlier(self, received: Received) -> None:
        """Raises Aborted while an earlier text of the number has to be answered first."""
        if received.follows_pending and received.age_seconds < self._reply_within_seconds * _WAITING_SHARE:
            raise Aborted(
                "An earlier text of this number is being answered. Wait for its end.",
                reasons.ERROR_REASON_CONVERSATION_BUSY,
                retry_delay_seconds=1,
            )

    async def _reply(self, received: Received, person: Person) -> Reply | None:
        try:
            reply = await self._conversations.answer(received.text, user_id=person.user_id, message_id=received.message_id)
        except _MENDED_BY_WAITING:
            raise
        except ServiceError as error:
            if error.reason == reasons.ERROR_REASON_USER_NOT_FOUND:
                raise
            log.warning("sms.answer_failed", message_id=received.message_id, reason=reason_name(error.reason))
            return None
        return reply if reply.text.strip() else None

    async def _conclude(self, received: Received, answer: Answer) -> None:
        await self._store.conclude(received.message_id, answer)
        _ANSWERED.labels(answer).inc()
