"""The first administrator, made by the program that an operator runs."""

import asyncio
import os
import sys
from collections.abc import Sequence

import pytest

from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.user_store import UserStore
from services.runtime.errors import FailedPrecondition
from suite.databases import ServiceDatabase
from tests.auth.harness import CHEAP_HASHES, PASSWORD, make_settings, new_name, running_auth

VARIABLE = "PARLEY_ADMIN_PASSWORD"


async def run(
    database: ServiceDatabase, *arguments: str, stdin: str = f"{PASSWORD}\n", **environment: str
) -> tuple[int, str]:
    """Its exit code, and all that it says."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    costs = {name.upper(): str(value) for name, value in CHEAP_HASHES.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.auth.first_admin", *arguments),
        env={**kept, "DATABASE_URL": database.url, **costs, **environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(30):
        output, _ = await process.communicate(stdin.encode())
    return process.returncode or 0, output.decode()


def named(name: str) -> Sequence[str]:
    return ("--username", name, "--email", f"{name}@example.com")


async def test_it_makes_one_administrator_who_can_sign_in(own_database: ServiceDatabase, tmp_path: object) -> None:
    done = await asyncio.gather(*(run(own_database, *named(f"root-{number}")) for number in range(3)))
    assert sorted(code for code, _ in done) == [0, 1, 1]
    for code, output in done:
        assert PASSWORD not in output
        assert ("is an administrator now" if code == 0 else "There is an administrator already") in output
    [winner] = [number for number, (code, _) in enumerate(done) if code == 0]
    async with running_auth(own_database, make_settings(own_database, tmp_path)) as auth:  # type: ignore[arg-type]
        me = await auth.me((await auth.login(f"root-{winner}")).access_token)
        assert me.is_admin
        again = UserStore(auth.assembly.database).create_first_administrator(
            username="late", email="late@example.com", password_hash=""
        )
        with pytest.raises(FailedPrecondition) as refused:
            await again
        assert refused.value.reason == reasons.ERROR_REASON_ADMINISTRATOR_EXISTS
        assert await auth.execute("select kind, details from audit_events where kind = 'user_created'") == [
            ("user_created", ["first_admin"])
        ]


async def test_the_password_may_come_from_the_environment(own_database: ServiceDatabase) -> None:
    code, output = await run(own_database, *named(new_name()), stdin="", **{VARIABLE: PASSWORD})
    assert code == 0, output


async def test_what_is_wrong_is_said_in_a_line_and_makes_nobody(own_database: ServiceDatabase) -> None:
    short = await run(own_database, *named("root"), stdin="short\n")
    assert short[0] == 2
    assert "password" in short[1]
    assert "short" not in short[1].replace("at least", "")
    assert (await run(own_database, "--username", "a b", "--email", "nobody"))[0] == 2
    assert (await run(own_database, "--username", "root"))[0] == 2
    assert (await run(own_database, *named("root"), DATABASE_URL=""))[0] == 2
    away = await run(own_database, *named("root"), DATABASE_URL="postgresql://x:y@127.0.0.1:1/nothing")
    assert away[0] == 1
    assert len(away[1].splitlines()) == 1
    owner = await run(own_database, *named("root"), DATABASE_URL=own_database.migration_url)
    assert owner[0] == 1
    assert "DATABASE_URL" in owner[1]
