"""The audit log: what was noted of sign-ins and of what was done to accounts, for administrators.

Events are written in the transaction of what they tell (statements.note_event).
"""

from collections.abc import Sequence

from services.auth.audit_store import AuditStore
from services.auth.records import AuditEvent
from services.runtime.ids import is_id
from services.runtime.paging import bad_page_token


class Audit:
    """What was noted."""

    def __init__(self, store: AuditStore) -> None:
        self._store = store

    async def list_events(self, *, user_id: str, kind: str, before_id: str | None, limit: int) -> Sequence[AuditEvent]:
        """Events, the newest first, from the one before `before_id`; of one user or kind where those are named.

        Raises InvalidArgument (INVALID_PAGE_TOKEN).
        """
        if before_id is not None and not is_id(before_id):
            raise bad_page_token()
        return await self._store.list_events(user_id=user_id, kind=kind, before_id=before_id, limit=limit)
