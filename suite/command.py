"""`parley`: what an operator does beside a running suite, or one that is stopped.

Every command finds the databases by the settings of `make run` (suite/reach.py). Exit code 0: done; 1: something is in the
way; 2: the command or a setting is at fault; 3: done, but for what was named.
"""

import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from suite.errors import SuiteError
from suite.reach import reached
from suite.settings import read_environment
from suite.variables import passed_on

USAGE = """usage: parley COMMAND …

  parley admin create …   make the first administrator
  parley import …         load users, conversations and tasks of an earlier system (docs/migrating.md)

`parley COMMAND --help` says more. Settings are those of `make run`: see .env.example."""
_FIRST_ADMIN = "services.auth.first_admin"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    said = list(sys.argv[1:] if arguments is None else arguments)
    try:
        match said:
            case ["admin", "create", *rest]:
                return asyncio.run(_create_admin(rest))
            case ["import", *rest]:
                # Here, so that the other commands do not wait for what only this one needs.
                from suite.earlier.command import import_system  # noqa: PLC0415

                return asyncio.run(import_system(rest))
            case ["--help" | "-h" | "help"]:
                print(USAGE)
                return 0
    except SuiteError as error:
        print(f"parley: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(USAGE, file=sys.stderr)
    return 2


async def _create_admin(arguments: Sequence[str]) -> int:
    """Auth's own program, in its own loop, with auth's settings and its database's URL where it looks for them."""
    try:
        program = importlib.import_module(_FIRST_ADMIN)
    except ModuleNotFoundError as error:
        if error.name != _FIRST_ADMIN:
            raise
        raise SuiteError("this release of auth cannot create administrators: install one that can") from None
    if {"-h", "--help"} & set(arguments):
        return int(program.main(arguments))
    environment = read_environment()
    async with reached(environment, ["auth"]) as urls:
        os.environ.update(passed_on("auth", environment), DATABASE_URL=urls["auth"])
        return int(await asyncio.to_thread(program.main, arguments))


if __name__ == "__main__":
    sys.exit(main())
