"""The tables of an earlier system: a SQLite file, or a dump as text, copied into a private database of the process.

The copy is SQLite's own temporary file, which has no name for anybody to open and is gone however the process ends. It may
be indexed and joined with what the import notes, and what is read stays as it was while the old system goes on.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from suite.earlier.dump import fill_from_dump
from suite.errors import SuiteError

_SQLITE: Final = b"SQLite format 3\0"
_FETCHED_AT_ONCE: Final = 500
Row = tuple[Any, ...]


class Source:
    """The tables, by their names in lower case, and their columns by theirs."""

    def __init__(self, connection: sqlite3.Connection, notes: Sequence[str] = ()) -> None:
        self._connection = connection
        self.notes = list(notes)
        names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        self.tables = {name.lower(): name for name in names if not name.lower().startswith("sqlite_")}
        self._columns = {key: self._read_columns(name) for key, name in self.tables.items()}

    @classmethod
    def open(cls, path: Path) -> "Source":
        """Copies what is there. SuiteError (exit code 2) says what the file would have to be."""
        work = sqlite3.connect("", isolation_level=None)
        # What is no UTF-8 must not stop the rows around it: the conversion of the value finds it.
        work.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        try:
            with path.open("rb") as file:
                is_sqlite = file.read(len(_SQLITE)) == _SQLITE
            if not is_sqlite:
                return cls(work, fill_from_dump(work, path))
            old = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
            try:
                old.backup(work)
            finally:
                old.close()
            return cls(work)
        except OSError as error:
            raise SuiteError(f"cannot read {path}: {error.strerror}", exit_code=2) from error
        except sqlite3.Error as error:
            raise SuiteError(f"cannot read {path} as SQLite: {error}", exit_code=2) from error

    def columns(self, table: str) -> dict[str, str]:
        """The columns of a table, by their names in lower case."""
        return self._columns[table.lower()]

    def rows(self, statement: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        """The rows of a statement, some at a time."""
        cursor = self._connection.execute(statement, values)
        while rows := cursor.fetchmany(_FETCHED_AT_ONCE):
            yield from rows

    def change(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Changes the copy; returns how many rows."""
        return self._connection.execute(statement, values).rowcount

    def close(self) -> None:
        """The copy is gone."""
        self._connection.close()

    def has_rowid(self, table: str) -> bool:
        """Whether the rows have SQLite's own number."""
        try:
            self._connection.execute(f"select rowid from {quoted(table)} limit 0")
        except sqlite3.OperationalError:
            return False
        return True

    def _read_columns(self, table: str) -> dict[str, str]:
        found = self._connection.execute(f"select name from pragma_table_info({_literal(table)})")
        return {name.lower(): name for (name,) in found}


def quoted(name: str) -> str:
    """A name of a table or column, as it stands in a statement."""
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
