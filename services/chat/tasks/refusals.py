"""What the tasks refuse."""

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import NotFound, ResourceExhausted, Unavailable


def task_not_found(task_id: str) -> NotFound:
    """What a task answers that does not exist or is somebody else's."""
    return NotFound("You have no such task.", reasons.ERROR_REASON_TASK_NOT_FOUND, metadata={"task_id": task_id})


def too_many_tasks(limit: int) -> ResourceExhausted:
    """What one more task answers than a user may have."""
    return ResourceExhausted(
        f"You have {limit} tasks, which is as many as one may have: delete some.",
        reasons.ERROR_REASON_LIMIT_REACHED,
        metadata={"kind": "tasks", "limit": str(limit)},
    )


def too_slow(last_sequence: int) -> ResourceExhausted:
    """Why a watcher is cut that does not keep up."""
    return ResourceExhausted(
        "The changes were read too slowly and the stream was cut. Watch again after the last sequence you have.",
        reasons.ERROR_REASON_READER_TOO_SLOW,
        metadata={"last_sequence": str(last_sequence)},
        retry_delay_seconds=1,
    )


def stopping() -> Unavailable:
    """Why a watcher is cut when the process ends."""
    return Unavailable(
        "The service is stopping: another replica answers.", reasons.ERROR_REASON_SERVICE_STOPPING, retry_delay_seconds=1
    )


def too_many_watchers() -> Unavailable:
    """What one more watcher answers than a process takes."""
    return Unavailable(
        "This process has as many watchers as it takes. Try again.",
        reasons.ERROR_REASON_SERVICE_BUSY,
        metadata={"work": "task_watch"},
        retry_delay_seconds=1,
    )
