"""Whether the time of a refused sign-in tells a name that there is from one that there is not.

It starts auth on an embedded Postgres of its own, with the password hashes that production has, and signs in with a wrong
password: under the names of accounts, of accounts without a password, and under names that nobody has, in turns, one at a
time. Of each kind it prints the median and the tenth and ninetieth percentile, and how often a name that there is took
longer than one that there is not: 0.5 is what chance gives.

    python -m bench.sign_in --names 60 --rounds 3
"""

import argparse
import asyncio
import bisect
import contextlib
import hashlib
import json
import random
import secrets
import statistics
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import psycopg

from parley.auth.v1 import auth_pb2, auth_pb2_grpc
from services.auth.__main__ import assembled
from services.auth.settings import AuthSettings
from services.runtime.log import configure
from services.runtime.migrations import migrate
from suite.databases import ServiceDatabase, prepare_database
from suite.postgres import EmbeddedPostgres

PASSWORD = "correct horse battery"  # noqa: S105 - of users made for this run
KINDS = ("known", "without a password", "unknown")
# The generated asynchronous type exists for type checkers only, and not under this name.
AuthStub: TypeAlias = Any
NOWHERE = "ipv4:127.0.0.1:1"


def settings_of(database: ServiceDatabase, folder: Path) -> AuthSettings:
    """As in production, but that failures cost nothing."""
    digests = folder / "digests.json"
    digests.write_text(json.dumps({"chat": hashlib.sha256(b"unused").hexdigest()}))
    return AuthSettings.model_validate(
        {
            "listen_address": "127.0.0.1:0",
            "metrics_address": "127.0.0.1:0",
            "database_url": database.url,
            "workload_digests_file": str(digests),
            "chat_target": NOWHERE,
            "memory_target": NOWHERE,
            "sealing_key": b64encode(secrets.token_bytes(32)).decode(),
            "sign_in_free_failures": 1_000,
            "sign_in_free_failures_per_address": 1_000_000,
            "sign_in_free_failures_per_name": 1_000_000,
        }
    )


async def refused_after(stub: AuthStub, name: str) -> float:
    """How long a refused sign-in took, in milliseconds."""
    request = auth_pb2.LoginRequest(username=name, password="a wrong password")  # noqa: S106
    begin = time.perf_counter()
    with contextlib.suppress(grpc.aio.AioRpcError):
        await stub.Login(request, timeout=30)
    return (time.perf_counter() - begin) * 1000


async def measured(folder: Path, *, names: int, rounds: int) -> Mapping[str, Sequence[float]]:
    """The times by kind of name."""
    postgres = await EmbeddedPostgres.start(folder / "postgres")
    try:
        database = await prepare_database(postgres.admin_url, name="parley_auth", passwords="not-a-secret")
        await asyncio.to_thread(migrate, "services.auth", database.migration_url, service_role=database.service_role)
        async with assembled(settings_of(database, folder)) as auth:
            port = await auth.server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                times = await _asked(auth_pb2_grpc.AuthServiceStub(channel), database, names=names, rounds=rounds)
            await auth.server.stop(wait_seconds=0, drain_seconds=1)
        return times
    finally:
        await postgres.stop()


async def _asked(stub: AuthStub, database: ServiceDatabase, *, names: int, rounds: int) -> Mapping[str, Sequence[float]]:
    """Makes the accounts, and asks for one of each kind after the other, so that the machine's mood is everybody's."""
    by_kind = {kind: [f"u{secrets.token_hex(8)}" for _ in range(names)] for kind in KINDS}
    for name in (*by_kind["known"], *by_kind["without a password"]):
        request = auth_pb2.RegisterRequest(username=name, email=f"{name}@example.com", password=PASSWORD)
        await stub.Register(request, timeout=30)
    async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as connection:
        await connection.execute("select set_config('parley.scope', 'service', false)")
        unset = "update users set password_hash = '' where username = any(%s)"
        await connection.execute(unset, [by_kind["without a password"]])
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for index in range(names):
            for kind in random.sample(KINDS, len(KINDS)):
                times[kind].append(await refused_after(stub, by_kind[kind][index]))
    return times


def taking_longer(times: Sequence[float], others: Sequence[float]) -> float:
    """How often one of `times` is longer than one of `others`."""
    ordered = sorted(others)
    return sum(bisect.bisect_left(ordered, one) for one in times) / (len(times) * len(others))


def main() -> int:
    """Measures, and prints."""
    parser = argparse.ArgumentParser(prog="bench.sign_in")
    parser.add_argument("--names", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    said = parser.parse_args()
    configure("bench", level="ERROR", log_format="text")
    with tempfile.TemporaryDirectory(prefix="parley-sign-in-", ignore_cleanup_errors=True) as folder:
        times = asyncio.run(measured(Path(folder), names=said.names, rounds=said.rounds))
    for kind in KINDS:
        tenths = statistics.quantiles(times[kind], n=10)
        shown = f"p10 {tenths[0]:7.2f}  p50 {statistics.median(times[kind]):7.2f}  p90 {tenths[8]:7.2f} ms"
        longer = taking_longer(times[kind], times["unknown"])
        print(f"{kind:20} n {len(times[kind]):5}  {shown}  longer than unknown: {longer:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
