"""Dumps as text: those of `sqlite3 FILE .dump`, and plain ones of `pg_dump` with its COPY blocks (its default).

Nothing of a dump is run but the creation and filling of tables, by a connection that may do nothing else. A byte that is
no text in the dump's encoding is read as a surrogate, and a byte again in SQLite: the conversion of the value finds it.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

from suite.earlier.values import is_utf8
from suite.errors import SuiteError

_HEAD_BYTES: Final = 65_536
_MOST_CHARACTERS: Final = 64_000_000
_MOST_NOTES: Final = 20
_ENCODING: Final = re.compile(rb"^SET client_encoding = '(\w+)';", re.MULTILINE)
# In any other (SQL_ASCII says none) what is no UTF-8 is no text.
_ENCODINGS: Final = {
    **{f"LATIN{number}": f"latin{number}" for number in range(1, 11)},
    **{f"ISO_8859_{number}": f"iso8859_{number}" for number in range(5, 9)},
    **{f"WIN{number}": f"cp{number}" for number in (866, 874, *range(1250, 1259))},
    "KOI8R": "koi8_r",
    "KOI8U": "koi8_u",
    "EUC_CN": "gb2312",
    "EUC_JP": "euc_jp",
    "EUC_JIS_2004": "euc_jis_2004",
    "EUC_KR": "euc_kr",
}
_COPY: Final = re.compile(r'COPY (?:"?\w+"?\.)?("(?:[^"]|"")+"|\w+) \((.+)\) FROM stdin;')
_KEPT: Final = re.compile(r"(create\s+table|insert\s+into)\s(?!\s*[\"'`]?sqlite_)", re.IGNORECASE)
_ALLOWED: Final = frozenset(
    {
        *(sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE),
        *(sqlite3.SQLITE_READ, sqlite3.SQLITE_SELECT, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_TRANSACTION),
        *(sqlite3.SQLITE_REINDEX,),
    }
)
_ESCAPE: Final = re.compile(r"\\(?:([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|(.))", re.DOTALL)
_LETTERS: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_UNISTR: Final = re.compile(r"\\(?:(\\)|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|\+([0-9A-Fa-f]{6})|([0-9A-Fa-f]{4}))")


def fill_from_dump(work: sqlite3.Connection, path: Path) -> list[str]:
    """Fills an empty database with the tables of a dump; returns what of it could not be read.

    SuiteError (exit code 2) for a file that is neither kind of dump.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    is_postgres = b"PostgreSQL database dump" in head
    encoding = _encoding(head) if is_postgres else "utf-8"
    with path.open(encoding=encoding, errors="surrogateescape", newline="\n") as text:
        if is_postgres:
            return _fill_from_postgres(work, text, path)
        if head.lstrip()[:6].upper() in {b"PRAGMA", b"BEGIN "}:
            return _fill_from_sqlite(work, text, path)
    raise SuiteError(
        f"{path} is neither a SQLite file nor a dump as text: make one with `sqlite3 FILE .dump`, with `pg_dump` (plain, its"
        " default), or with `pg_restore --file=dump.sql` of a custom one",
        exit_code=2,
    )


def _encoding(head: bytes) -> str:
    said = _ENCODING.search(head)
    return _ENCODINGS.get(said[1].decode(errors="replace"), "utf-8") if said else "utf-8"


def _fill_from_sqlite(work: sqlite3.Connection, text: IO[str], path: Path) -> list[str]:
    notes: list[str] = []
    # What newer releases of sqlite3 write control characters with.
    work.create_function("unistr", 1, _unistr, deterministic=True)
    work.set_authorizer(_authorize)
    work.execute("begin")
    for number, statement in _statements(text, path):
        if not _KEPT.match(statement):
            continue
        try:
            work.execute(statement)
        except (sqlite3.Error, UnicodeEncodeError) as error:
            _note(notes, f"the statement that ends on line {number} was not read: {type(error).__name__}")
    work.execute("commit")
    work.set_authorizer(None)
    return notes


def _authorize(action: int, *_about: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def _statements(text: IO[str], path: Path) -> Iterator[tuple[int, str]]:
    held: list[str] = []
    size = 0
    for number, line in enumerate(text, start=1):
        held.append(line)
        size += len(line)
        if size > _MOST_CHARACTERS:
            raise SuiteError(f"{path}: the statement on line {number} does not end", exit_code=2)
        if line.rstrip().endswith(";") and _is_complete("".join(held)):
            yield number, "".join(held).lstrip()
            held, size = [], 0


def _is_complete(statement: str) -> bool:
    """Also of one with characters that SQLite refuses."""
    return sqlite3.complete_statement(statement.encode(errors="replace").decode().replace("\0", " "))


def _unistr(text: str) -> str:
    def said(match: re.Match[str]) -> str:
        code = next((one for one in match.groups()[1:] if one), "")
        return "\\" if match[1] else chr(int(code, 16))

    return _UNISTR.sub(said, text)


def _fill_from_postgres(work: sqlite3.Connection, text: IO[str], path: Path) -> list[str]:
    notes: list[str] = []
    work.execute("begin")
    lines = enumerate(text, start=1)
    for number, line in lines:
        if line.startswith("INSERT INTO "):
            raise SuiteError(f"{path}, line {number}: make the dump without --inserts", exit_code=2)
        if copy := _COPY.match(line):
            columns = [name.strip().strip('"') for name in copy[2].split(",")]
            _copy(work, copy[1].strip('"'), columns, lines, notes)
    work.execute("commit")
    return notes


def _copy(
    work: sqlite3.Connection, table: str, columns: Sequence[str], lines: Iterator[tuple[int, str]], notes: list[str]
) -> None:
    target, *names = (_quoted(name) for name in (table, *columns))
    work.execute(f"create table if not exists {target} ({', '.join(names)})")
    adding = f"insert into {target} values ({', '.join(['cast(? as text)'] * len(columns))})"
    for number, line in lines:
        if line.rstrip("\r\n") == "\\.":
            return
        values = [_unescaped(one) for one in line.rstrip("\r\n").split("\t")]
        if len(values) != len(columns):
            _note(notes, f"line {number} was not read: {len(values)} values for {len(columns)} columns of {table}")
            continue
        work.execute(adding, [_bound(value) for value in values])
    _note(notes, f"the dump ends within table {table}: it is not whole")


def _quoted(name: str) -> str:
    known = name.encode(errors="backslashreplace").decode()
    return '"' + known.replace('"', '""') + '"'


def _bound(value: str | None) -> str | bytes | None:
    return value if value is None or is_utf8(value) else value.encode("utf-8", "surrogateescape")


def _unescaped(value: str) -> str | None:
    if value == "\\N":
        return None
    return _ESCAPE.sub(_said, value) if "\\" in value else value


def _said(match: re.Match[str]) -> str:
    if match[1]:
        return chr(int(match[1], 8))
    return chr(int(match[2], 16)) if match[2] else _LETTERS.get(match[3], match[3])


def _note(notes: list[str], what: str) -> None:
    if len(notes) < _MOST_NOTES:
        notes.append(what)
