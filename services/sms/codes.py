"""Verification codes: sent while auth waits, so that a code is stored nowhere.

Invariant: a code is sent once, or not; what is not known to have been sent is not sent again, and a repeat of the call
says that it was. Where it surely was not, a repeat sends it.
"""

from dataclasses import dataclass, field
from typing import Final

from services.sms.message_store import MessageStore
from services.sms.outbox_store import OutboxStore
from services.sms.records import NewText
from services.sms.refusals import recipient_opted_out, sms_unavailable
from services.sms.sending import Sending
from services.sms.wording import code_text

_NOT_SENT: Final = ("not_taken", "given_up", "refused")


@dataclass(frozen=True, slots=True)
class CodeRequest:
    """A code to be sent. `request_id` names it."""

    user_id: str
    phone_number: str = field(repr=False)
    code: str = field(repr=False)
    language: str
    request_id: str
    request_digest: bytes


class Codes:
    """Sends codes. `sender_name` is what their texts begin with."""

    def __init__(self, messages: MessageStore, outbox: OutboxStore, sending: Sending, *, sender_name: str) -> None:
        self._messages = messages
        self._outbox = outbox
        self._sending = sending
        self._sender_name = sender_name

    async def send(self, request: CodeRequest) -> None:
        """Sends the code, once for each request id.

        Raises FailedPrecondition (RECIPIENT_OPTED_OUT), ResourceExhausted (LIMIT_REACHED), AlreadyExists
        (REQUEST_ID_REUSED), Unavailable (SMS_UNAVAILABLE).
        """
        text = code_text(request.code, language=request.language, name=self._sender_name)
        new = NewText(phone_number=request.phone_number, text=text, kind="code", user_id=request.user_id)
        message = await self._messages.create(
            new, user_id=request.user_id, request_id=f"code:{request.request_id}", request_digest=request.request_digest
        )
        if message.status == "failed":
            raise sms_unavailable()
        claim = await self._outbox.claim(message.id)
        if claim is None:
            await self._refuse_blocked(message.id)
        elif await self._sending.carry(claim, text) in _NOT_SENT:
            await self._refuse_blocked(message.id)
            raise sms_unavailable()

    async def _refuse_blocked(self, message_id: str) -> None:
        if await self._outbox.status_of(message_id) == "blocked":
            raise recipient_opted_out()
