"""The statements that reach the database of memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, event


@contextmanager
def counted_statements() -> Iterator[list[str]]:
    """Every statement executed inside, in order. Those of other services in this process are not counted."""
    seen: list[str] = []

    def note(connection: Connection, _cursor: object, statement: str, *_rest: object) -> None:
        if "memory" in (connection.engine.url.database or ""):
            seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)
