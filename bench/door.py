"""What the door costs a request: the same call with limits and without, by bearer token and by name and password.

    python -m bench.door                      4,000 calls each, 16 at a time, a suite for each way
    python -m bench.door --calls 1000

Each way gets a suite of its own, as `make run` starts it, and one user. The figure to compare is CPU a call, of the whole
stack and of its parts; latencies say as much about the machine. One JSON line a way, then a table.
"""

import argparse
import asyncio
import base64
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

from tests.e2e.harness import PASSWORD, Suite, environment

PATH = "/api/v1/auth/me"
CLASSES = ("GENERAL", "MODEL", "SIGN_IN", "REGISTRATION", "PUBLIC", "EXCHANGE")
MANY = {f"LIMIT_{name}": "10000/second" for name in CLASSES}
# Hashes as they are by default: what is remembered is worth what is not done.
DEAR = {"ARGON2_TIME_COST": "3", "ARGON2_MEMORY_KIB": "65536", "ARGON2_PARALLELISM": "4"}
WAYS: Mapping[str, tuple[str, dict[str, str]]] = {
    "bearer, no limits": ("bearer", {"LIMITS_ENABLED": "false"}),
    "bearer, limits": ("bearer", MANY),
    "basic, no limits": ("basic", {"LIMITS_ENABLED": "false"}),
    "basic, limits": ("basic", MANY),
}
GROUPS = {
    "edge": "envoy.yaml",
    "limiter": "gateway.limiter",
    "auth": "services.auth",
    "redis": "redis",
    "postgres": "postgres",
}
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Figure:
    """Microseconds of CPU a call, as a whole and by part, and milliseconds as a client sees them."""

    cpu: float
    by_part: dict[str, float]
    p50: float
    p99: float
    first: float


async def main() -> None:
    """Measures every way in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=4_000)
    calls = parser.parse_args().calls
    found = {}
    for way, (credentials, settings) in WAYS.items():
        found[way] = await _measured(credentials, settings, calls)
        print(json.dumps({"way": way, **{name: getattr(found[way], name) for name in Figure.__slots__}}), flush=True)
    print(f"\n| way | CPU us/call | {' | '.join(GROUPS)} | first, p50, p99 ms |\n|{'---|' * (len(GROUPS) + 3)}")
    for way, one in found.items():
        parts = " | ".join(f"{one.by_part[name]:.0f}" for name in GROUPS)
        print(f"| {way} | {one.cpu:.0f} | {parts} | {one.first:.0f}, {one.p50:.1f}, {one.p99:.1f} |")


async def _measured(credentials: str, settings: Mapping[str, str], calls: int) -> Figure:
    with tempfile.TemporaryDirectory(prefix="parley-door-", ignore_cleanup_errors=True) as folder:
        suite = await Suite.start(environment(Path(folder), **DEAR, **settings))
        try:
            async with aiohttp.ClientSession(suite.url, connector=aiohttp.TCPConnector(limit=AT_ONCE)) as session:
                headers = await _registered(session, credentials)
                begin = time.perf_counter()
                await _call(session, headers)
                first = time.perf_counter() - begin
                await _load(session, headers, calls // 10)
                before = _cpu(suite)
                times = await _load(session, headers, calls)
                after = _cpu(suite)
        finally:
            await suite.stop()
    by_part = {name: (after[name] - before[name]) / calls * 1e6 for name in GROUPS}
    cuts = statistics.quantiles(times, n=100)
    return Figure(sum(by_part.values()), by_part, cuts[49] * 1e3, cuts[98] * 1e3, first * 1e3)


async def _registered(session: aiohttp.ClientSession, credentials: str) -> dict[str, str]:
    body = {"username": "ana", "email": "ana@example.com", "password": PASSWORD}
    async with session.post("/api/v1/auth/register", json=body) as answer:
        token = (await answer.json())["tokens"]["access_token"]
    basic = base64.b64encode(f"ana:{PASSWORD}".encode()).decode()
    return {"authorization": f"Bearer {token}" if credentials == "bearer" else f"Basic {basic}"}


async def _call(session: aiohttp.ClientSession, headers: Mapping[str, str]) -> None:
    async with session.get(PATH, headers=headers) as answer:
        await answer.read()
        if answer.status != 200:  # noqa: PLR2004
            raise SystemExit(f"{answer.status} is no figure")


async def _load(session: aiohttp.ClientSession, headers: Mapping[str, str], calls: int) -> list[float]:
    left, times = iter(range(calls)), []

    async def client() -> None:
        for _ in left:
            begin = time.perf_counter()
            await _call(session, headers)
            times.append(time.perf_counter() - begin)

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return times


def _cpu(suite: Suite) -> dict[str, float]:
    """Seconds of each part so far, children included."""
    spent = dict.fromkeys(GROUPS, 0.0)
    # Postgres leaves the suite's family; it is known by its folder.
    apart = [one for one in psutil.process_iter(["cmdline"]) if str(suite.data) in " ".join(one.info["cmdline"] or ())]
    family = {one for root in (psutil.Process(suite.process.pid), *apart) for one in (root, *root.children(recursive=True))}
    for process in family:
        line = " ".join(process.cmdline())
        name = next((name for name, mark in GROUPS.items() if mark in line), None)
        if name is not None:
            times = process.cpu_times()
            spent[name] += times.user + times.system
    return spent


if __name__ == "__main__":
    asyncio.run(main())
