"""The statements that calls of memory cost, or what a test itself asks of a store."""

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, event

from services.runtime.calls import current_request_id

_counting: list[list[str]] = []
_is_asked: contextvars.ContextVar[bool] = contextvars.ContextVar("is_asked", default=False)


@contextmanager
def counted_statements() -> Iterator[list[str]]:
    """Every statement inside that a call or the test itself asks for; those of other services and of standing duties not."""
    seen: list[str] = []

    def note(connection: Connection, _cursor: object, statement: str, *_rest: object) -> None:
        if (current_request_id() or _is_asked.get()) and "memory" in (connection.engine.url.database or ""):
            seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    asked = _is_asked.set(True)
    _counting.append(seen)
    try:
        yield seen
    finally:
        _counting.remove(seen)
        _is_asked.reset(asked)
        event.remove(Engine, "before_cursor_execute", note)


def hear(statement: str) -> None:
    """For a database's `on_driver_statement`: counts what a lane runs, without the beginnings of its transactions."""
    for seen in _counting:
        seen.append(statement)
