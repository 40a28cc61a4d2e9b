"""Whose things a call is about: always the caller's own.

Owns the one check of the `user_id` that the routes of older systems carry. The contract's rule has refused everybody but
administrators who name another user; they are told here where they may look.
"""

from typing import Protocol

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.calls import current_user_id
from services.runtime.errors import PermissionDenied

_ME = "me"


class _NamesUser(Protocol):
    @property
    def user_id(self) -> str: ...


def own_id(request: _NamesUser) -> str:
    """The caller's id. Raises PermissionDenied when the request names another user, whoever calls."""
    user_id = current_user_id()
    if request.user_id not in {"", _ME, user_id}:
        raise PermissionDenied(
            "This call is about the caller's own things: use your own id or `me`. Administrators see the conversations of "
            "others, without content, by AdminService.ListSessions (GET /api/v1/admin/sessions).",
            reasons.ERROR_REASON_ACCESS_DENIED,
            metadata={"user_id": request.user_id},
        )
    return user_id
