"""The verification of phone numbers: a code goes there by text message, and whoever brings it back has the number.

Invariants: a code is stored as a keyed hash, is good for a few minutes and a few tries, and works once; a number is one
account's. Whether a number is somebody's is told only to who has proved to hold it.
"""

import secrets

import structlog

from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.phone_store import PhoneStore, Waiting
from services.auth.records import Account, Origin
from services.auth.refusals import user_not_found
from services.auth.sms_client import SmsClient
from services.runtime.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, ServiceError
from services.runtime.ids import new_id
from services.runtime.sealing import Seal

log = structlog.get_logger(__name__)

_DIGITS = 6
# What sms answers only when it has sent nothing. After anything else the text may arrive.
_NOT_SENT = (
    reasons.ERROR_REASON_LIMIT_REACHED,
    reasons.ERROR_REASON_RECIPIENT_OPTED_OUT,
    reasons.ERROR_REASON_SMS_UNAVAILABLE,
)


class Phones:
    """Everybody's verifications."""

    def __init__(self, store: PhoneStore, sms: SmsClient, seal: Seal) -> None:
        self._store = store
        self._sms = sms
        self._seal = seal

    async def start(self, user_id: str, phone_number: str) -> Waiting:
        """Sends a code. Raises ResourceExhausted (LIMIT_REACHED) with a retry delay, and what sms refuses with."""
        code = f"{secrets.randbelow(10**_DIGITS):0{_DIGITS}}"
        digest = self._seal.fingerprint(_plain(user_id, phone_number, code))
        number_key = self._seal.fingerprint(f"phone number {phone_number}".encode())
        waiting = await self._store.start(user_id, phone_number=phone_number, number_key=number_key, code_digest=digest)
        if waiting is None:
            raise user_not_found(user_id)
        if waiting.is_refused:
            raise _too_soon(waiting.wait_seconds)
        try:
            await self._sms.send_code(
                user_id=user_id,
                phone_number=phone_number,
                code=code,
                language=waiting.language,
                request_id=new_id(),
            )
        except ServiceError as error:
            await self._store.not_sent(user_id, digest, is_sure=error.reason in _NOT_SENT)
            raise
        log.info("auth.phone_code_sent", user_id=user_id)
        return waiting

    async def verify(self, user_id: str, code: str, origin: Origin) -> Account:
        """Makes the number that the code went to the user's verified one.

        Raises InvalidArgument (CODE_WRONG), FailedPrecondition (CODE_EXPIRED) and AlreadyExists (PHONE_TAKEN).
        """
        tried = await self._store.take_attempt(user_id)
        if tried is None:
            raise _expired()
        if not self._seal.is_fingerprint(tried.code_digest, _plain(user_id, tried.phone_number, code)):
            log.info("auth.phone_code_wrong", user_id=user_id, attempts_left=tried.attempts_left)
            raise _wrong(tried.attempts_left)
        account = await self._store.finish(user_id, tried, origin)
        if account is None:
            raise _expired()
        log.info("auth.phone_verified", user_id=user_id)
        return account


def _plain(user_id: str, phone_number: str, code: str) -> bytes:
    return f"phone code {user_id} {phone_number} {code}".encode()


def _too_soon(seconds: float) -> ResourceExhausted:
    return ResourceExhausted(
        "Codes were asked for too often. Wait before you ask for another.",
        reasons.ERROR_REASON_LIMIT_REACHED,
        metadata={"limit": "verification_codes"},
        retry_delay_seconds=seconds,
    )


def _wrong(attempts_left: int) -> InvalidArgument:
    return InvalidArgument(
        f"This is not the code that was sent. Tries left: {attempts_left}.",
        reasons.ERROR_REASON_CODE_WRONG,
        metadata={"attempts_left": str(attempts_left)},
    )


def _expired() -> FailedPrecondition:
    return FailedPrecondition("No code is waited for: ask for a new one.", reasons.ERROR_REASON_CODE_EXPIRED)
