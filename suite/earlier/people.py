"""Old users with their preferences, as auth takes them.

What a name, an address and a preference may be is said by the contract alone: the rules of Register and CreatePreferences.
Nobody gets a name that nobody chose: what does not fit is refused, and `names` says what to call whom instead.
"""

import datetime as dt
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from parley.auth.v1 import auth_pb2, user_pb2
from services.auth.importing import ImportedAccount
from services.auth.passwords import is_known_hash
from services.runtime.calls import NOBODY
from services.runtime.errors import InvalidArgument
from services.runtime.rules import check_request
from suite.earlier import values
from suite.earlier.mapping import Table
from suite.earlier.report import Report
from suite.errors import SuiteError

_TEXTS: Final = ("language", "tts_voice", "model", "reasoning_effort", "instructions")
_TRUTHS: Final = ("auto_reply_enabled", "notifications_enabled", "memory_enabled")
_TIMEOUT: Final = "conversation_timeout_seconds"
PREFERENCES: Final = (*_TEXTS, *_TRUTHS, _TIMEOUT)
USER_FIELDS: Final = ("id", "username", "email", "password_hash", "is_active", "is_admin", "create_time")
_ANY_PASSWORD: Final = "long enough"  # noqa: S105 - nobody's


class Naming(BaseModel):
    """What to call an old user here: another name, another address, or the user of this system who they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    username: str | None = None
    email: str | None = None
    user: str | None = Field(default=None, min_length=1)
    """Username or email address of the account here that gets what they have; its password and preferences stay."""


class RefusedError(Exception):
    """A user who cannot be loaded."""


@dataclass(frozen=True)
class Rules:
    """How old users are read."""

    system: str
    zone: dt.tzinfo
    names: Mapping[str, Naming]
    keeps_admins: bool
    no_password: str
    """The hash of a password that nobody knows, for who had none that can be checked here."""


def read_names(path: Path | None) -> Mapping[str, Naming]:
    """A JSON object of old ids. SuiteError (exit code 2) when it is not one."""
    if path is None:
        return {}
    try:
        return TypeAdapter(dict[str, Naming]).validate_python(orjson.loads(path.read_bytes()))
    except (OSError, orjson.JSONDecodeError, ValidationError) as error:
        raise SuiteError(
            f'{path} must hold a JSON object like {{"17": {{"username": "ana"}}}}: {type(error).__name__}', exit_code=2
        ) from error


def account_of(old: Mapping[str, Any], table: Table, rules: Rules, report: Report) -> ImportedAccount:
    """The user with what they prefer. Raises RefusedError, BadValueError; what is left out is told to the report."""
    old_id = values.key(old["id"])
    naming = rules.names.get(old_id, Naming())
    username = naming.username or _filled("username", old, table)
    email = naming.email or _filled("email", old, table)
    _check_names(username, email)
    return ImportedAccount(
        id=values.new_id(rules.system, table.name, old_id),
        username=username,
        email=email,
        password_hash=_password(old, old_id, rules, report),
        is_active=values.truth(old["is_active"]) is not False,
        is_admin=_is_admin(old, old_id, rules, report),
        create_time=values.past(old["create_time"], rules.zone),
        preferences=_preferences(old, old_id, report),
    )


def _filled(name: str, old: Mapping[str, Any], table: Table) -> str:
    template = table.templates.get(name)
    if template is None:
        return values.text(old[name]).strip()
    return re.sub(r"\{(\w+)\}", lambda match: values.text(old[match[1]]).strip(), template)


def _check_names(username: str, email: str) -> None:
    request = auth_pb2.RegisterRequest(username=username, email=email, password=_ANY_PASSWORD)
    try:
        check_request(request, NOBODY)
    except InvalidArgument as error:
        problems = "; ".join(f"{one.field} {one.description}" for one in error.violations)
        raise RefusedError(f"{problems}: say with --names what to call them") from None


def _password(old: Mapping[str, Any], old_id: str, rules: Rules, report: Report) -> str:
    stored = values.text(old["password_hash"]).strip()
    if is_known_hash(stored):
        return stored
    why = "their password is kept in a form that cannot be checked here" if stored else "they have no password"
    report.change("users", old_id, f"{why}: they need a set-password token from an administrator")
    return rules.no_password


def _is_admin(old: Mapping[str, Any], old_id: str, rules: Rules, report: Report) -> bool:
    try:
        was_admin = values.truth(old["is_admin"]) is True
    except values.BadValueError:
        report.change("users", old_id, "whether they are an administrator is not clear: they are none here")
        return False
    if was_admin and not rules.keeps_admins:
        report.change("users", old_id, "was an administrator and is none here: --keep-admins keeps them")
    return was_admin and rules.keeps_admins


def _preferences(old: Mapping[str, Any], old_id: str, report: Report) -> dict[str, Any]:
    """What can be kept of them; each that cannot is told by itself."""
    found: dict[str, Any] = {}
    for name in PREFERENCES:
        value = old.get(name)
        if value is None or value == "":
            continue
        try:
            found[name] = _preference(name, value)
        except (values.BadValueError, InvalidArgument):
            report.change("preferences", old_id, f"{name} is not one that is possible here: it was left out")
    return found


def _preference(name: str, value: Any) -> Any:
    read: Any = values.text(value).strip()
    if name in _TRUTHS:
        read = values.truth(value)
    elif name == _TIMEOUT:
        read = values.count(value)
        if read is None:
            raise values.BadValueError("is no number of seconds")
    request = user_pb2.CreatePreferencesRequest(user_id="me", preferences=user_pb2.Preferences(**{name: read}))
    check_request(request, NOBODY)
    return read


def proposals(username: str, email: str, old_id: str) -> Iterator[str]:
    """Names like the old one that are possible here, for a person to choose from."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", ".", username or email.partition("@")[0]).strip(".")[:40]
    tail = re.sub(r"[^A-Za-z0-9]+", "", old_id)[:8] or "1"
    if len(stem) >= 3:  # noqa: PLR2004 - the shortest name
        yield stem
    yield f"{stem or 'user'}-{tail}"
