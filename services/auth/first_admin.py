"""The first administrator: `python -m services.auth.first_admin --username NAME --email ADDRESS`.

Reads DATABASE_URL like the service, and the password from a prompt, from standard input or from PARLEY_ADMIN_PASSWORD,
never from an argument, which every process of the machine could read. Refuses once there is an administrator: they make
others. Exit code 0: made; 1: something is in the way; 2: an argument or a setting is at fault.
"""

import argparse
import asyncio
import getpass
import os
import sys
from collections.abc import Sequence

from sqlalchemy.exc import DBAPIError

from parley.auth.v1 import auth_pb2
from services.auth.passwords import HashCost, Passwords
from services.auth.settings import HashSettings
from services.auth.user_store import UserStore
from services.runtime.calls import NOBODY
from services.runtime.database import UnsafeRoleError, serving_database
from services.runtime.errors import InvalidArgument, ServiceError
from services.runtime.rules import check_request
from services.runtime.settings import PostgresUrl, read_settings

PASSWORD_VARIABLE = "PARLEY_ADMIN_PASSWORD"  # noqa: S105 - the name of it
_BAD, _IN_THE_WAY = 2, 1
_WAIT_SECONDS = 60.0


class FirstAdminSettings(HashSettings):
    """Where the account goes, and what its password's hash costs."""

    database_url: PostgresUrl
    """Auth's database, as its plain role."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the administrator; the exit code."""
    said = _parser().parse_args(arguments)
    settings = read_settings(FirstAdminSettings)
    try:
        request = auth_pb2.RegisterRequest(username=said.username, email=said.email, password=_password())
        check_request(request, NOBODY)
        asyncio.run(_create(settings, request))
    except InvalidArgument as error:
        return _explain(error.message, _BAD)
    except ServiceError as error:
        return _explain(error.message, _IN_THE_WAY)
    except (OSError, UnsafeRoleError) as error:
        return _explain(str(error), _IN_THE_WAY)
    except DBAPIError as error:
        return _explain(f"the database refuses: {str(error.orig).partition(chr(10))[0]}", _IN_THE_WAY)
    print(f"{request.username} is an administrator now and can sign in.")  # noqa: T201 - a command
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="parley admin create",
        description="Makes the first administrator.",
        epilog=f"The password is asked for, or read from standard input or from {PASSWORD_VARIABLE}.",
    )
    parser.add_argument("--username", required=True, help="3 to 50 of letters, digits, dot, dash and underscore")
    parser.add_argument("--email", required=True, help="an email address")
    return parser


def _password() -> str:
    """From the environment, from a person, or from whatever is piped in. Raises OSError where two typings differ."""
    if given := os.environ.get(PASSWORD_VARIABLE):
        return given
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    first = getpass.getpass("Password, 8 characters at least: ")
    if getpass.getpass("Once more: ") != first:
        raise OSError("the two passwords are not the same")
    return first


async def _create(settings: FirstAdminSettings, request: auth_pb2.RegisterRequest) -> None:
    passwords = Passwords(HashCost.of(settings), threads=1, most_waiting=1, wait_seconds=_WAIT_SECONDS)
    try:
        async with serving_database(settings.database_url.get_secret_value(), pool_size=1) as database:
            password_hash = await passwords.hash(request.password)
            await UserStore(database).create_first_administrator(
                username=request.username, email=request.email, password_hash=password_hash
            )
    finally:
        await passwords.close()


def _explain(problem: str, code: int) -> int:
    print(f"parley admin create: {problem}", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    sys.exit(main())
