"""Why replies fail, as errors and as values that can be saved.

Owns the two conversions, which lose nothing that a caller sees: a failure that is read back raises the error it was made
from.
"""

from collections.abc import Mapping
from typing import Final

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.records import Failure
from services.runtime.errors import (
    Aborted,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    ServiceError,
    Unavailable,
    reason_name,
)

# Everything else that a generation can fail with is UNAVAILABLE.
_KINDS: Final[Mapping[str, type[ServiceError]]] = {
    reason_name(reason): kind
    for reason, kind in (
        (reasons.ERROR_REASON_MODEL_REFUSED_REQUEST, InvalidArgument),
        (reasons.ERROR_REASON_MODEL_RATE_LIMITED, ResourceExhausted),
        (reasons.ERROR_REASON_TOKEN_BUDGET_SPENT, ResourceExhausted),
        (reasons.ERROR_REASON_MODEL_TIMED_OUT, DeadlineExceeded),
        (reasons.ERROR_REASON_DEADLINE_PASSED, DeadlineExceeded),
        (reasons.ERROR_REASON_CONFLICT, Aborted),
        (reasons.ERROR_REASON_INTERNAL_FAULT, Internal),
    )
}


def failure_of(error: ServiceError) -> Failure:
    """What is saved of an error."""
    return Failure(reason_name(error.reason), error.message, dict(error.metadata), error.retry_delay_seconds)


def error_of(failure: Failure) -> ServiceError:
    """The error of a saved failure."""
    return _KINDS.get(failure.reason, Unavailable)(
        failure.message,
        reasons.ErrorReason.Value(f"ERROR_REASON_{failure.reason}"),
        metadata=failure.metadata,
        retry_delay_seconds=failure.retry_delay_seconds,
    )
