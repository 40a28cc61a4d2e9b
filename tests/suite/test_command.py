"""`python -m suite` refuses what cannot work in one line, before anything starts."""

import asyncio
import fcntl
import os
import socket
from pathlib import Path

import psutil

from suite.databases import prepare_database
from suite.leftovers import MARK
from suite.postgres import EmbeddedPostgres
from suite.settings import SERVICES
from tests.suite_process import outcome, start_command, suite_environment


def left_running(data: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(data):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


async def refusal(environment: dict[str, str], folder: Path) -> tuple[int, str]:
    """Exit code and the one line."""
    code, output, errors = await outcome(await start_command(environment, folder))
    assert output == ""
    assert errors.count("\n") == 1
    assert left_running(Path(environment["PARLEY_DATA"])) == []
    return code, errors


async def test_busy_ports_are_named_with_their_variables_before_anything_starts(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = {
            "PARLEY_EDGE_PORT": str(one.getsockname()[1]),
            "PARLEY_MEMORY_METRICS_PORT": str(other.getsockname()[1]),
        }
        code, line = await refusal(suite_environment(folder / "data", **ports), folder)
    assert code == 1
    for variable, port in ports.items():
        assert f"port {port} is in use by process {os.getpid()}" in line
        assert f"set {variable} to another port" in line
    assert not (folder / "data" / "postgres").exists()


async def test_an_address_of_another_machine_is_named(folder: Path) -> None:
    code, line = await refusal(suite_environment(folder / "data", PARLEY_HOST="192.0.2.1"), folder)
    assert code == 1
    assert "set PARLEY_HOST to an address of this machine" in line


async def test_bad_settings_of_the_suite_and_of_the_services_are_named_in_one_line(folder: Path) -> None:
    bad = {"PARLEY_AUTH_PROCESSES": "0", "OPENAI_TEMPERATURE": "hot", "WORKING_SET_BYTES": "1"}
    code, line = await refusal(suite_environment(folder / "data", **bad), folder)
    assert code == 2
    for name in bad:
        assert f"{name}: " in line
    assert not (folder / "data").exists()


async def given(postgres: EmbeddedPostgres) -> dict[str, str]:
    """Databases of our own for every service, so that no server is started for them."""
    urls = {}
    for name in SERVICES:
        database = await prepare_database(postgres.admin_url, name=f"given_{name}", passwords="p")
        urls[f"{name.upper()}_DATABASE_URL"] = database.url
        urls[f"{name.upper()}_MIGRATION_DATABASE_URL"] = database.migration_url
    return urls


async def test_bad_settings_of_services_alone_are_named_too_and_leave_nothing_running(
    folder: Path, postgres: EmbeddedPostgres
) -> None:
    (folder / ".env").write_text("LOG_LEVEL=LOUD\n")
    bad = {"OPENAI_MAX_RETRIES": "-1", "OPENAI_API_KEY": "hush"}
    environment = suite_environment(folder / "data", **bad, **await given(postgres))
    code, output, errors = await outcome(await start_command(environment, folder))
    assert code == 2
    assert errors.startswith("suite: bad settings: ")
    assert errors.count("\n") == 1
    assert "LOG_LEVEL: " in errors
    assert "OPENAI_MAX_RETRIES: " in errors
    assert "hush" not in errors + output
    assert not (folder / "data" / "postgres").exists()
    assert left_running(folder / "data") == []


async def test_an_edge_less_patient_than_chat_keeps_the_suite_from_starting(
    folder: Path, postgres: EmbeddedPostgres
) -> None:
    environment = suite_environment(folder / "data", GENERATION_DEADLINE_SECONDS="600", **await given(postgres))
    code, _, errors = await outcome(await start_command(environment, folder))
    assert code == 2
    assert "REQUEST_TIMEOUT_SECONDS (130) must be above GENERATION_DEADLINE_SECONDS (600)" in errors
    assert left_running(folder / "data") == []


async def test_a_folder_that_cannot_be_written_is_named_with_its_variable(folder: Path) -> None:
    (folder / "file").touch()
    code, line = await refusal(suite_environment(folder / "file" / "data"), folder)
    assert code == 2
    assert "cannot write to the data folder" in line
    assert "set PARLEY_DATA to a folder of yours" in line


async def test_a_second_suite_on_the_same_folder_is_refused(folder: Path) -> None:
    data = folder / "data"
    data.mkdir()
    with (data / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        code, line = await refusal(suite_environment(data), folder)
    assert code == 1
    assert f"another suite (process 4711) uses {data}: stop it, or set PARLEY_DATA to another folder" in line


async def test_a_stop_while_it_starts_is_orderly(folder: Path) -> None:
    environment = suite_environment(folder / "data")
    process = await start_command(environment, folder)
    async with asyncio.timeout(20):
        while not (folder / "data" / "postgres" / "cluster").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    process.terminate()
    code, _, errors = await outcome(process)
    assert (code, errors) == (0, "")
    assert left_running(folder / "data") == []
    assert not (folder / "data" / "postgres" / "cluster" / "postmaster.pid").exists()
