"""Every SQL statement that reads or sweeps the audit log. One public method is one transaction of the service."""

from sqlalchemy import delete, func, select

from services.auth.records import AuditEvent
from services.auth.schema import audit_events
from services.runtime.database import Database, interval


class AuditStore:
    """The audit log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_events(self, *, user_id: str, kind: str, before_id: str | None, limit: int) -> list[AuditEvent]:
        """Events, the newest first, from the one before `before_id`. One query."""
        table = audit_events.c
        query = select(*table).order_by(table.id.desc()).limit(limit)
        if user_id:
            query = query.where((table.user_id == user_id) | (table.actor_id == user_id))
        if kind:
            query = query.where(table.kind == kind)
        if before_id is not None:
            query = query.where(table.id < before_id)
        async with self._database.service_transaction() as connection:
            rows = (await connection.execute(query)).all()
        return [
            AuditEvent(row.id, row.event_time, row.kind, row.user_id, row.actor_id, row.address, tuple(row.details))
            for row in rows
        ]

    async def sweep(self, *, keep_seconds: float, batch: int) -> int:
        """Deletes up to `batch` events that are older; returns how many."""
        old = select(audit_events.c.id).where(audit_events.c.event_time < func.now() - interval(keep_seconds))
        chosen = old.limit(batch).with_for_update(skip_locked=True).scalar_subquery()
        async with self._database.service_transaction() as connection:
            return (await connection.execute(delete(audit_events).where(audit_events.c.id.in_(chosen)))).rowcount
