"""Starting a service: `python -m services.<name>` serves, `python -m services.<name> migrate` brings its database up.

Settings are read once, here. A bad one ends the process with code 2 and one line that names every bad variable.
"""

import sys
from collections.abc import Callable, Coroutine
from typing import TypeVar

import structlog
import uvloop
from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from services.runtime import log
from services.runtime.database import UnsafeRoleError
from services.runtime.migrations import migrate
from services.runtime.server import ContractError
from services.runtime.settings import ServerSettings

logger = structlog.get_logger(__name__)
S = TypeVar("S", bound=ServerSettings)


def run(name: str, settings_type: type[S], main: Callable[[S], Coroutine[None, None, None]]) -> None:
    """Runs the service until it is told to stop, or its migrations; returns when that is done."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "serve"
    if verb not in {"serve", "migrate"} or len(sys.argv) > 2:  # noqa: PLR2004
        sys.exit(f"usage: python -m services.{name} [serve | migrate]")
    settings = read_settings(settings_type)
    log.configure(name, level=settings.log_level, log_format=settings.log_format)
    if verb == "migrate":
        _migrate(name, settings)
    else:
        _serve(name, main(settings))


def _serve(name: str, serving: Coroutine[None, None, None]) -> None:
    try:
        uvloop.run(serving)
    except (OSError, OperationalError, UnsafeRoleError, ContractError) as error:
        # What an operator can mend: a taken port, a file or database out of reach, the wrong role. One line says it.
        cause = error.orig if isinstance(error, OperationalError) else error
        sys.exit(f"{name} cannot serve: {str(cause).partition(chr(10))[0]}")
    except Exception as error:
        # Through the log, which leaves values out of tracebacks; the interpreter would print them.
        logger.critical("process.faulted", exc_info=error)
        sys.exit(1)


def read_settings(settings_type: type[S]) -> S:
    """The settings from the environment; ends the process with code 2 when one is missing or malformed."""
    try:
        return settings_type()
    except ValidationError as error:
        print(f"bad settings: {explain(error)}", file=sys.stderr)  # noqa: T201
    except SettingsError as error:
        # A list or mapping that is not JSON; names the field.
        print(f"bad settings: {error}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


def explain(error: ValidationError) -> str:
    """Every bad variable and what is wrong with it, in one line, without any value: a value may be a secret."""
    found = [(".".join(map(str, item["loc"])).upper(), item["msg"]) for item in error.errors(include_input=False)]
    return "; ".join(f"{variable}: {problem}" for variable, problem in found)


def _migrate(name: str, settings: ServerSettings) -> None:
    if settings.migration_database_url is None:
        sys.exit("bad settings: MIGRATION_DATABASE_URL: needed to migrate, the URL of the role that owns the tables")
    role = make_url(settings.database_url.get_secret_value()).username
    if role is None:
        sys.exit("bad settings: DATABASE_URL: must name the role that the service connects as")
    migrate(f"services.{name}", settings.migration_database_url.get_secret_value(), service_role=role)
