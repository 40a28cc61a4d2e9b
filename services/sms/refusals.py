"""What sms refuses, as the caller reads it. No number and no text stands in any of it."""

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)


def message_not_found(message_id: str) -> NotFound:
    """There is no such text message of the caller."""
    return NotFound(
        f"You have no text message {message_id}.",
        reasons.ERROR_REASON_MESSAGE_NOT_FOUND,
        metadata={"message_id": message_id},
    )


def request_id_reused(request_id: str) -> AlreadyExists:
    """The request id named another request."""
    return AlreadyExists(
        f"The request id {request_id} was used for another request. Use a new one.",
        reasons.ERROR_REASON_REQUEST_ID_REUSED,
        metadata={"request_id": request_id},
    )


def recipient_opted_out() -> FailedPrecondition:
    """Nothing may be sent to this number."""
    return FailedPrecondition(
        "The owner of this number wants no text messages; only they can change that, by texting START to us.",
        reasons.ERROR_REASON_RECIPIENT_OPTED_OUT,
    )


def limit_reached(kind: str, limit: int, *, retry_delay_seconds: float | None = None) -> ResourceExhausted:
    """As many of these as may be."""
    return ResourceExhausted(
        f"The limit of {limit} {kind} is reached.",
        reasons.ERROR_REASON_LIMIT_REACHED,
        metadata={"kind": kind, "limit": str(limit)},
        retry_delay_seconds=retry_delay_seconds,
    )


def phone_not_verified() -> FailedPrecondition:
    """The caller has no number."""
    return FailedPrecondition(
        "You have no verified phone number: verify one first.", reasons.ERROR_REASON_PHONE_NOT_VERIFIED
    )


def sms_unavailable(*, retry_delay_seconds: float = 5) -> Unavailable:
    """The provider does not take texts now."""
    return Unavailable(
        "Text messages cannot be sent now. Try again.",
        reasons.ERROR_REASON_SMS_UNAVAILABLE,
        retry_delay_seconds=retry_delay_seconds,
    )


def user_gone(user_id: str) -> NotFound:
    """The user was deleted."""
    return NotFound(
        f"There is no user {user_id} any more.", reasons.ERROR_REASON_USER_NOT_FOUND, metadata={"user_id": user_id}
    )


def signature_wrong() -> PermissionDenied:
    """A webhook that the provider did not sign."""
    return PermissionDenied(
        "This webhook is not signed as it must be: see PUBLIC_URL and TWILIO_AUTH_TOKEN.",
        reasons.ERROR_REASON_WEBHOOK_SIGNATURE_WRONG,
    )
