"""What the facts refuse."""

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import (
    AlreadyExists,
    FieldViolation,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    invalid_request,
)


def memory_not_found(memory_id: str) -> NotFound:
    """What a memory answers that does not exist, is somebody else's, or cannot be changed so."""
    return NotFound("You have no such memory.", reasons.ERROR_REASON_MEMORY_NOT_FOUND, metadata={"memory_id": memory_id})


def memory_exists(memory_id: str) -> AlreadyExists:
    """What a fact answers that is to say what another one says."""
    return AlreadyExists(
        f"Another fact says the same already: {memory_id}. Change or delete that one.",
        reasons.ERROR_REASON_MEMORY_EXISTS,
        metadata={"memory_id": memory_id},
    )


def too_many_facts(limit: int) -> ResourceExhausted:
    """What one more fact answers than a user may have."""
    return ResourceExhausted(
        f"You have {limit} facts, which is as many as one may have: delete some.",
        reasons.ERROR_REASON_LIMIT_REACHED,
        metadata={"kind": "facts", "limit": str(limit)},
    )


def request_id_reused(request_id: str) -> AlreadyExists:
    """What a request id answers that named another request before."""
    return AlreadyExists(
        "This request id was used before, with another request. Use a new one.",
        reasons.ERROR_REASON_REQUEST_ID_REUSED,
        metadata={"request_id": request_id},
    )


def source_gone() -> InvalidArgument:
    """What a fact answers whose message was deleted, or is another conversation's."""
    problem = "was deleted, or is of another conversation: nothing can be learned from it"
    return invalid_request([FieldViolation("source.message_id", problem)])


def begins_too_late() -> InvalidArgument:
    """What a fact answers that is to hold since a time when it no longer does."""
    problem = "lies after valid_to_time, until when the fact holds: give an earlier time"
    return invalid_request([FieldViolation("valid_from_time", problem)])
