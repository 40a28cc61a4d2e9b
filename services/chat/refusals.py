"""Refusals that several parts of chat give alike."""

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import Aborted, AlreadyExists, NotFound


def conversation_not_found(conversation_id: str) -> NotFound:
    """What a conversation answers that does not exist or is somebody else's."""
    return NotFound(
        "You have no such conversation.",
        reasons.ERROR_REASON_CONVERSATION_NOT_FOUND,
        metadata={"conversation_id": conversation_id},
    )


def generation_not_found(generation_id: str) -> NotFound:
    """What a generation answers that does not exist or is somebody else's."""
    return NotFound(
        "You have no such generation.",
        reasons.ERROR_REASON_GENERATION_NOT_FOUND,
        metadata={"generation_id": generation_id},
    )


def generation_cancelled(generation_id: str) -> Aborted:
    """What a call answers that waited for a reply that was cancelled."""
    return Aborted(
        "The reply was cancelled; what was written of it is kept.",
        reasons.ERROR_REASON_GENERATION_CANCELLED,
        metadata={"generation_id": generation_id},
    )


def message_not_found(message_id: str) -> NotFound:
    """What a message answers that is not in the conversation."""
    return NotFound(
        "There is no such message in this conversation.",
        reasons.ERROR_REASON_MESSAGE_NOT_FOUND,
        metadata={"message_id": message_id},
    )


def request_id_reused(request_id: str) -> AlreadyExists:
    """What a request id answers that named another request before."""
    return AlreadyExists(
        "This request id was used before, with another request. Use a new one.",
        reasons.ERROR_REASON_REQUEST_ID_REUSED,
        metadata={"request_id": request_id},
    )
