"""`parley import`: the arguments, and what is said to the person at the terminal."""

import argparse
import datetime as dt
import secrets
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import orjson
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from services.auth.importing import AccountImport
from services.auth.passwords import HashCost, Passwords
from services.auth.settings import HashSettings
from services.chat.importing import ConversationImport
from services.chat.tasks.importing import TaskImport
from services.runtime.database import DATABASE_FAILURES, UnsafeRoleError, serving_database
from suite.earlier.layouts import LAYOUTS
from suite.earlier.loading import Import, Options, Services
from suite.earlier.mapping import ENTITIES, Found, find, is_pairs, read_mapping
from suite.earlier.people import Rules, read_names
from suite.earlier.report import Report
from suite.earlier.source import Source
from suite.errors import SuiteError
from suite.reach import reached
from suite.settings import bad_settings, explain, read_environment
from suite.variables import passed_on

_NOT_WHOLE = 3
_CONNECTIONS = 2


async def import_system(arguments: Sequence[str]) -> int:
    """Loads an earlier system, or says what would be loaded; the exit code."""
    wanted = _parser().parse_args(arguments)
    mapping = read_mapping(wanted.system, wanted.mapping)
    names = read_names(wanted.names)
    source = Source.open(wanted.file)
    try:
        found = find(mapping, source, without=wanted.without)
        _print_found(found, source)
        environment = read_environment()
        no_password = await _no_password(environment)
        rules = Rules(wanted.source or wanted.system, wanted.timezone, names, wanted.keep_admins, no_password)
        pace = None if wanted.without_memory else wanted.memory_pace
        with _lines_of(wanted.report) as file:
            report = Report(file)
            options = Options(rules, wanted.dry_run, pace)
            async with _services(environment) as services:
                one = Import(source, found, services, options, report)
                await one.run()
    except sqlite3.Error as error:
        raise SuiteError(f"cannot read {wanted.file}: {error}", exit_code=2) from error
    except DATABASE_FAILURES as error:
        cause = type(error.orig if isinstance(error, DBAPIError) else error).__name__
        raise SuiteError(f"the database does not answer ({cause}): run the same again, it goes on") from error
    finally:
        source.close()
    _print_outcome(report, is_rehearsal=wanted.dry_run)
    if wanted.suggest_names is not None:
        _write_proposals(wanted.suggest_names, one.proposals)
    return 0 if report.is_whole else _NOT_WHOLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="parley import",
        description="Loads users with their password hashes, preferences, conversations, messages and tasks. May be"
        " repeated: what is here already stays as it is. docs/migrating.md says more.",
    )
    parser.add_argument("file", type=Path, help="a SQLite file, or a dump as text (sqlite3 .dump, pg_dump)")
    parser.add_argument("--system", required=True, choices=list(LAYOUTS), help="whose tables they are")
    parser.add_argument("--mapping", type=Path, help="a JSON file that says which table and column is what")
    parser.add_argument("--source", help="what to call this file's system, where several of a kind are loaded")
    parser.add_argument("--dry-run", action="store_true", help="say what would be loaded, and load nothing")
    parser.add_argument("--names", type=Path, help="a JSON file that says what to call users whose names are not possible")
    parser.add_argument("--suggest-names", type=Path, help="write such a file, to be read and changed before it is used")
    parser.add_argument("--report", type=Path, help="write a line of JSON for every row that is not loaded as it was")
    parser.add_argument("--timezone", type=_zone, default=dt.UTC, help="of times that name none (default: UTC)")
    parser.add_argument("--without", action="append", default=[], choices=ENTITIES[1:], help="leave these out")
    parser.add_argument("--keep-admins", action="store_true", help="administrators stay administrators")
    parser.add_argument("--without-memory", action="store_true", help="memory is told of none of the old conversations")
    parser.add_argument(
        "--memory-pace", type=_pace, default=120, help="conversations that memory is told of a minute (default: 120)"
    )
    return parser


def _zone(name: str) -> dt.tzinfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise argparse.ArgumentTypeError(f"{name} is no time zone, like Europe/Lisbon") from None


def _pace(text: str) -> int:
    pace = int(text)
    if not 1 <= pace <= 100_000:  # noqa: PLR2004 - more is not to be told apart from at once
        raise argparse.ArgumentTypeError("must be between 1 and 100000")
    return pace


async def _no_password(environment: Mapping[str, str]) -> str:
    """As costly to check as anybody's: who has no password cannot be told from who has."""
    try:
        given = {name.lower(): value for name, value in passed_on("auth", environment).items()}
        settings = HashSettings.model_validate(given)
    except ValidationError as error:
        raise SuiteError(bad_settings(explain(error)), exit_code=2) from error
    passwords = Passwords(HashCost.of(settings), threads=1, most_waiting=1, wait_seconds=60)
    try:
        return await passwords.hash(secrets.token_urlsafe(32))
    finally:
        await passwords.close()


@asynccontextmanager
async def _services(environment: Mapping[str, str]) -> AsyncIterator[Services]:
    async with reached(environment, ["auth", "chat"]) as urls:
        try:
            async with (
                serving_database(urls["auth"], pool_size=_CONNECTIONS) as auth,
                serving_database(urls["chat"], pool_size=_CONNECTIONS) as chat,
            ):
                yield Services(AccountImport(auth), ConversationImport(chat), TaskImport(chat))
        except UnsafeRoleError as error:
            raise SuiteError(str(error), exit_code=2) from error


@contextmanager
def _lines_of(path: Path | None) -> Iterator[IO[str] | None]:
    if path is None:
        yield None
        return
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise SuiteError(f"cannot write {path}: {error.strerror}", exit_code=2) from error
    with file:
        yield file


def _print_found(found: Found, source: Source) -> None:
    print("What is read:")
    for kind, table in found.tables():
        shape = " (a question and its answer a row)" if kind == "messages" and is_pairs(table) else ""
        columns = ", ".join(
            one if one == column else f"{one} from {column}"
            for one, column in [*table.columns.items(), *((one, repr(text)) for one, text in table.templates.items())]
        )
        print(f"  {kind} in {table.name}{shape}: {columns}")
        if table.unread:
            print(f"      not read: {', '.join(table.unread)}")
    if found.unread_tables:
        print(f"  tables that are not read: {', '.join(found.unread_tables)}")
    for note in source.notes:
        print(f"  {note}")


def _print_outcome(report: Report, *, is_rehearsal: bool) -> None:
    print("What would be loaded (nothing was):" if is_rehearsal else "What was loaded:")
    for line in report.lines():
        print(f"  {line}")


def _write_proposals(path: Path, proposals: Mapping[str, Mapping[str, str]]) -> None:
    try:
        path.write_bytes(orjson.dumps(proposals, option=orjson.OPT_INDENT_2))
    except OSError as error:
        raise SuiteError(f"cannot write {path}: {error.strerror}", exit_code=2) from error
    print(f"{len(proposals)} names to read and change: {path}")
