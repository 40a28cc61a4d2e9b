"""Starting a service: `python -m services.<name>`. What keeps it from serving is said in one line."""

import sys
from collections.abc import Callable, Coroutine
from typing import TypeVar

import structlog
import uvloop
from sqlalchemy.exc import OperationalError

from services.runtime import log
from services.runtime.database import UnsafeRoleError
from services.runtime.server import ContractError
from services.runtime.settings import ServerSettings, read_settings

logger = structlog.get_logger(__name__)
S = TypeVar("S", bound=ServerSettings)


def run(name: str, settings_type: type[S], main: Callable[[S], Coroutine[None, None, None]]) -> None:
    """Runs the service until it is told to stop; returns when that is done."""
    if len(sys.argv) > 1:
        sys.exit(f"usage: python -m services.{name}; its settings are environment variables")
    settings = read_settings(settings_type)
    log.configure(name, level=settings.log_level, log_format=settings.log_format)
    try:
        uvloop.run(main(settings))
    except (OSError, OperationalError, UnsafeRoleError, ContractError) as error:
        # What an operator can mend: a taken port, a file or database out of reach, the wrong role. One line says it.
        cause = error.orig if isinstance(error, OperationalError) else error
        sys.exit(f"{name} cannot serve: {str(cause).partition(chr(10))[0]}")
    except Exception as error:
        # Through the log, which leaves values out of tracebacks; the interpreter would print them.
        logger.critical("process.faulted", exc_info=error)
        sys.exit(1)
