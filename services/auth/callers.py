"""Who may call what of auth, beyond the contract's access rules.

Owns one distinction: a user who calls in person, by a session, and a service that acts for one. A service reads what it
needs and changes nothing.
"""

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.calls import current_caller, current_user_id
from services.runtime.errors import PermissionDenied


def own_session() -> tuple[str, str]:
    """The caller's user and session. Raises PermissionDenied for a service that acts for a user: it has no session."""
    session_id = current_caller().session_id
    if session_id is None:
        raise PermissionDenied("Only the user's own token may do this.", reasons.ERROR_REASON_ACCESS_DENIED)
    return current_user_id(), session_id


def require_self(user_id: str) -> None:
    """Raises PermissionDenied unless the path names the caller: the access rules let an administrator name anybody."""
    if user_id not in {"me", current_user_id()}:
        raise PermissionDenied("The path names another user: use your own id or `me`.", reasons.ERROR_REASON_ACCESS_DENIED)
