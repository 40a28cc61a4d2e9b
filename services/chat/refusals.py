"""Refusals that several parts of chat give alike."""

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import AlreadyExists, NotFound


def conversation_not_found(conversation_id: str) -> NotFound:
    """What a conversation answers that does not exist or is somebody else's."""
    return NotFound(
        "You have no such conversation.",
        reasons.ERROR_REASON_CONVERSATION_NOT_FOUND,
        metadata={"conversation_id": conversation_id},
    )


def request_id_reused(request_id: str) -> AlreadyExists:
    """What a request id answers that named another request before."""
    return AlreadyExists(
        "This request id was used before, with another request. Use a new one.",
        reasons.ERROR_REASON_REQUEST_ID_REUSED,
        metadata={"request_id": request_id},
    )
