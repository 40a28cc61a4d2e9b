"""Which table and column of an earlier system is what here: said by a layout and a mapping file, found in its tables.

Invariant: nothing is guessed. What a mapping names and the tables have not, or what is needed and nobody names, is refused,
all of it at once; what was chosen among several names is told.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from suite.earlier.layouts import LAYOUTS, ROLES
from suite.earlier.source import Source, quoted
from suite.errors import SuiteError

ENTITIES: Final = ("users", "preferences", "conversations", "messages", "tasks")
_MOST_BYTES: Final = 1_000_000
_TEMPLATED: Final = ("username", "email")
_NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "users": ("id", "username", "email"),
    "preferences": ("user",),
    "conversations": ("id", "user"),
    "messages": ("create_time",),
    "tasks": ("user", "title"),
}
_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "users": frozenset({"id", "username", "email", "password_hash", "is_active", "is_admin", "create_time"}),
    "preferences": frozenset(
        {
            *("user", "language", "tts_voice", "auto_reply_enabled", "notifications_enabled", "model"),
            *("conversation_timeout_seconds", "reasoning_effort", "memory_enabled", "instructions"),
        }
    ),
    "conversations": frozenset({"id", "user", "title", "create_time", "update_time"}),
    "messages": frozenset(
        {
            *("id", "conversation", "user", "role", "text", "prompt", "reply", "reply_time", "create_time", "order"),
            *("model", "input_tokens", "output_tokens"),
        }
    ),
    "tasks": frozenset(
        {"id", "user", "title", "description", "done", "due_time", "complete_time", "create_time", "update_time"}
    ),
}


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Template(BaseModel):
    """A text made of other columns of the row: `{"template": "{username}@example.com"}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: str = Field(min_length=1, max_length=200)


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class TableMapping(BaseModel):
    """Where one kind of thing is: names that its table and columns may have, the first that is there counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: Names
    columns: dict[str, Template | Names]
    silence_seconds: int | None = Field(default=None, ge=1)
    """Of messages that belong to no conversation: one begins after so long a silence of the user."""
    kind: Literal["written", "spoken"] = "written"
    """Of messages."""


class SystemMapping(BaseModel):
    """A whole system."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: TableMapping
    preferences: TableMapping | None = None
    conversations: TableMapping | None = None
    messages: TableMapping | None = None
    tasks: TableMapping | None = None
    roles: dict[str, Literal["user", "assistant", ""]] = {}
    """Roles of messages besides those that are known; those with an empty value are not loaded."""
    required: tuple[str, ...] = ()
    """Columns of users without which nothing is loaded, besides id, username and email."""
    optional: tuple[str, ...] = ()
    """Tables that may be missing."""


@dataclass(frozen=True)
class Table:
    """A table that was found: the fields that are read, each with its column or template."""

    name: str
    columns: Mapping[str, str]
    templates: Mapping[str, str]
    unread: Sequence[str]
    row_number: str | None
    """What tells the rows apart where they have no id, and keeps their order; None where there is nothing."""

    def has(self, name: str) -> bool:
        """Whether the field is read of a column."""
        return name in self.columns

    def expression(self, name: str, alias: str) -> str:
        """The field in a statement; null where nothing is read for it."""
        return f"{alias}.{quoted(self.columns[name])}" if name in self.columns else "null"

    def order(self, alias: str, *names: str) -> str:
        """What rows are sorted by: the fields that are there, then their order in the table."""
        parts = [f"{alias}.{quoted(self.columns[name])}" for name in names if name in self.columns]
        return ", ".join([*parts, *([f"{alias}.{self.row_number}"] if self.row_number else [])]) or "1"


@dataclass(frozen=True)
class Found:
    """Everything that a mapping found."""

    users: Table
    preferences: Table | None
    conversations: Table | None
    messages: Table | None
    tasks: Table | None
    silence_seconds: int | None
    kind: Literal["written", "spoken"]
    roles: dict[str, str]
    unread_tables: Sequence[str] = field(default=())

    def tables(self) -> Iterator[tuple[str, Table]]:
        """Each kind of thing with its table, in the order in which they are loaded."""
        for name in ENTITIES:
            if (table := getattr(self, name)) is not None:
                yield name, table


def read_mapping(system: str, path: Path | None) -> SystemMapping:
    """The layout of a system with what the file says instead. SuiteError (exit code 2) names everything that is wrong."""
    said: dict[str, Any] = dict(LAYOUTS[system])
    if not said and path is None:
        raise SuiteError(f"nothing is known of --system {system}: say with --mapping where it keeps what", exit_code=2)
    if path is not None:
        said = _merged(said, _read(path))
    try:
        return SystemMapping.model_validate(said)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False, include_input=False)
        )
        raise SuiteError(f"the mapping of {path or system} is not right: {problems}", exit_code=2) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES)
        found = orjson.loads(raw)
    except (OSError, orjson.JSONDecodeError) as error:
        raise SuiteError(f"cannot read {path} as JSON: {error}", exit_code=2) from error
    if not isinstance(found, dict):
        raise SuiteError(f"{path} must hold a JSON object", exit_code=2)
    return found


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def find(mapping: SystemMapping, source: Source, *, without: Sequence[str]) -> Found:
    """The mapping in the tables that are there. SuiteError (exit code 2) names everything that is missing."""
    problems: list[str] = []
    found: dict[str, Table | None] = {}
    for name in ENTITIES:
        wanted: TableMapping | None = getattr(mapping, name)
        found[name] = None
        if wanted is not None and name not in without:
            needed = _NEEDED[name] + (mapping.required if name == "users" else ())
            is_optional = name in mapping.optional
            found[name], wrong = _table(name, wanted, source, needed=needed, is_optional=is_optional)
            problems += wrong
    silence = mapping.messages.silence_seconds if mapping.messages else None
    messages, conversations = found["messages"], found["conversations"]
    if messages is not None:
        problems += _message_problems(messages, conversations, silence)
    if conversations is not None and messages is None:
        problems.append("conversations are of no use without messages: add `--without conversations`")
    users = found.pop("users")
    if problems or users is None:
        listed = "; ".join(problems or ["users: needed"])
        raise SuiteError(f"nothing was loaded, say with --mapping what is meant: {listed}", exit_code=2)
    read = {table.name.lower() for table in (users, *found.values()) if table}
    return Found(
        users=users,
        **found,
        silence_seconds=silence,
        kind=mapping.messages.kind if mapping.messages else "written",
        roles={**ROLES, **{name.lower(): role for name, role in mapping.roles.items()}},
        unread_tables=[name for key, name in sorted(source.tables.items()) if key not in read],
    )


def _table(
    kind: str, wanted: TableMapping, source: Source, *, needed: Sequence[str], is_optional: bool
) -> tuple[Table | None, list[str]]:
    """The table, where it is there, and what is wrong with it."""
    name = next((source.tables[one.lower()] for one in wanted.table if one.lower() in source.tables), None)
    if name is None:
        missing = f"{kind}: no table {' or '.join(wanted.table)} (leave them out with `--without {kind}`)"
        return None, [] if is_optional else [missing]
    there = source.columns(name)
    templates = {one: said.template for one, said in wanted.columns.items() if isinstance(said, Template)}
    columns = {one: column for one, said in wanted.columns.items() if (column := _column(said, there))}
    number = "rowid" if source.has_rowid(name) else quoted(columns["id"]) if "id" in columns else None
    unread = sorted(name for name in there.values() if name not in columns.values())
    table = Table(name, columns, templates, unread, number)
    return table, [f"{kind}: {problem}" for problem in _problems(kind, wanted, table, needed)]


def _column(said: Template | tuple[str, ...], there: Mapping[str, str]) -> str | None:
    if isinstance(said, Template):
        return None
    return next((there[each.lower()] for each in said if each.lower() in there), None)


def _problems(kind: str, wanted: TableMapping, table: Table, needed: Sequence[str]) -> Iterator[str]:
    if unknown := sorted(set(wanted.columns) - _FIELDS[kind]):
        yield f"there is no field {', '.join(unknown)}"
    for one in needed:
        if one not in table.columns and one not in table.templates:
            said = wanted.columns.get(one, ())
            names = " or ".join(said) if isinstance(said, tuple) else ""
            yield f"table {table.name} has no column for {one}{f' ({names})' if names else ''}"
    for one, template in table.templates.items():
        if one not in _TEMPLATED or kind != "users":
            yield f"{one} cannot be a template, only {' and '.join(_TEMPLATED)} of users can"
        for other in re.findall(r"\{(\w*)\}", template):
            if other not in table.columns:
                yield f"the template of {one} names {other}, which is no field with a column"
    if table.row_number is None:
        yield f"table {table.name} has nothing that tells its rows apart"


def _message_problems(messages: Table, conversations: Table | None, silence: int | None) -> Iterator[str]:
    is_pair, is_row = _shape(messages)
    if not is_pair and not is_row:
        yield f"messages: table {messages.name} has neither role and text nor prompt and reply"
    if conversations is not None and not messages.has("conversation"):
        yield f"messages: table {messages.name} does not say of which conversation they are"
    if conversations is None and not messages.has("user"):
        yield f"messages: table {messages.name} says neither of which conversation nor of which user they are"
    if conversations is None and messages.has("user") and not messages.has("conversation") and silence is None:
        yield "messages: nothing says where a conversation begins: set silence_seconds"


def _shape(messages: Table) -> tuple[bool, bool]:
    return messages.has("prompt") and messages.has("reply"), messages.has("role") and messages.has("text")


def is_pairs(messages: Table) -> bool:
    """Whether a row is what was said with what was answered, and not one message."""
    return not _shape(messages)[1]
