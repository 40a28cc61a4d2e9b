"""Children are kept, restarted, quoted and ended: with real processes under the real supervisor."""

import asyncio
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from suite.leftovers import MARK, end_marked
from suite.supervisor import GREATEST_DELAY_SECONDS, STEADY_SECONDS, Backoff
from tests.suite_process import ROOT, outcome, start_command, suite_environment

SMALL_SUITE = str(ROOT / "tests" / "suite" / "small_suite.py")


async def start_small(folder: Path, *children: str) -> Process:
    return await start_command(suite_environment(folder), folder, SMALL_SUITE, str(folder), *children)


async def read_until(process: Process, text: str) -> str:
    """Everything it printed, up to and with the line that has the text."""
    if process.stdout is None:
        raise AssertionError("its output is a pipe")
    seen = ""
    async with asyncio.timeout(20):
        while text not in seen:
            line = await process.stdout.readline()
            if not line:
                raise AssertionError(f"it ended before it said {text!r}: {seen}")
            seen += line.decode()
    return seen


def marked(folder: Path) -> list[psutil.Process]:
    """Every process of the suite on this folder, by the mark in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


async def gone(folder: Path, seconds: float) -> bool:
    for _ in range(int(seconds / 0.05)):
        if not marked(folder):
            return True
        await asyncio.sleep(0.05)
    return False


@pytest_asyncio.fixture(autouse=True)
async def _nothing_left(folder: Path) -> AsyncIterator[None]:
    yield
    await asyncio.to_thread(end_marked, folder)


async def test_an_orderly_stop_goes_from_the_highest_level_down_and_leaves_nothing(folder: Path) -> None:
    suite = await start_small(folder, "base=good:0", "one=good:1", "top=good:2")
    await read_until(suite, "READY")
    assert len(marked(folder)) == 3
    suite.send_signal(signal.SIGTERM)
    code, output, errors = await outcome(suite)
    assert (code, errors) == (0, "")
    assert (folder / "order").read_text().split() == ["top", "one", "base"]
    assert "Stopping in order" in output
    assert marked(folder) == []


async def test_ctrl_c_reaches_the_children_through_the_suite_alone(folder: Path) -> None:
    suite = await start_small(folder, "base=good:0", "top=good:1")
    await read_until(suite, "READY")
    assert {psutil.Process(child.pid).pid for child in marked(folder)}.isdisjoint({suite.pid})
    for child in marked(folder):
        assert psutil.Process(child.pid).ppid() == suite.pid
    suite.send_signal(signal.SIGINT)
    assert (await outcome(suite))[0] == 0
    assert (folder / "order").read_text().split() == ["top", "base"]


async def test_a_second_ctrl_c_hurries_a_stubborn_child(folder: Path) -> None:
    suite = await start_small(folder, "mule=stubborn:0")
    await read_until(suite, "READY")
    suite.send_signal(signal.SIGINT)
    await read_until(suite, "once more hurries")
    began = asyncio.get_running_loop().time()
    suite.send_signal(signal.SIGINT)
    assert (await outcome(suite))[0] == 0
    assert asyncio.get_running_loop().time() - began < 5  # against 20 s of patience
    assert marked(folder) == []


async def test_a_terminal_that_closes_stops_the_suite(folder: Path) -> None:
    usual = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have had it ignored
    try:
        suite = await start_small(folder, "base=good:0", "top=good:1")
    finally:
        signal.signal(signal.SIGHUP, usual)
    await read_until(suite, "READY")
    suite.send_signal(signal.SIGHUP)
    assert (await outcome(suite))[0] == 0
    assert (folder / "order").read_text().split() == ["top", "base"]


async def test_a_suite_that_nohup_started_outlives_its_terminal(folder: Path) -> None:
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does it: what is ignored stays so in who is started
    try:
        suite = await start_small(folder, "one=good:0")
    finally:
        signal.signal(signal.SIGHUP, usual)
    await read_until(suite, "READY")
    suite.send_signal(signal.SIGHUP)
    marked(folder)[0].kill()
    assert "Stopping" not in await read_until(suite, "one runs again")
    suite.send_signal(signal.SIGTERM)
    assert (await outcome(suite))[0] == 0


async def test_every_line_is_prefixed_with_its_child_and_kept_in_its_file_without_colour(folder: Path) -> None:
    suite = await start_small(folder, "ann=good:0", "ben=good:0")
    output = await read_until(suite, "READY")
    suite.send_signal(signal.SIGTERM)
    await outcome(suite)
    assert [line for line in output.splitlines() if line.startswith("ann ")] == [
        f"ann        | ann says {number}" for number in range(3)
    ]
    assert (folder / "ben.log").read_text() == "".join(f"ben says {number}\n" for number in range(3))


async def test_a_child_whose_file_cannot_be_written_is_heard_to_its_end_and_that_is_said_once(folder: Path) -> None:
    (folder / "bawl.log").mkdir()
    suite = await start_small(folder, "bawl=loud:0")
    output = await read_until(suite, "READY")
    suite.send_signal(signal.SIGTERM)
    code, rest, _ = await outcome(suite)
    assert code == 0
    output += rest
    lines = [line for line in output.splitlines() if not line.endswith("x" * 1_000)]
    assert len(output.splitlines()) - len(lines) == 1_000
    assert [line for line in lines if "cannot be written" in line] == [
        f"{folder / 'bawl.log'} cannot be written (Is a directory); until it can, lines of bawl stand here only"
    ]


async def test_a_child_that_ends_is_started_again_and_that_is_said(folder: Path) -> None:
    suite = await start_small(folder, "calm=good:0", "weak=fragile:1")
    await read_until(suite, "READY")
    before = {process.pid for process in marked(folder)}
    (folder / "break").touch()
    said = await read_until(suite, "weak runs again")
    assert "weak ended (exit code 3); starting it again in 0.5 s" in said
    after = {process.pid for process in marked(folder)}
    assert len(after) == 2
    assert len(before & after) == 1
    suite.send_signal(signal.SIGTERM)
    assert (await outcome(suite))[0] == 0


async def test_a_child_that_is_killed_is_started_again(folder: Path) -> None:
    suite = await start_small(folder, "one=good:0")
    await read_until(suite, "READY")
    marked(folder)[0].kill()
    assert "one ended (SIGKILL)" in await read_until(suite, "one runs again")
    suite.send_signal(signal.SIGTERM)
    assert (await outcome(suite))[0] == 0


async def test_a_stop_while_a_child_is_started_again_ends_all_though_its_first_word_is_lost(folder: Path) -> None:
    suite = await start_small(folder, "calm=good:0", "one=deaf:1")
    await read_until(suite, "READY")
    (folder / "once").touch()
    next(process for process in marked(folder) if "deaf" in process.cmdline()).kill()
    while not (folder / "asked").exists():  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(0.05)
    suite.send_signal(signal.SIGTERM)
    assert (await outcome(suite))[0] == 0
    assert await gone(folder, 5)


async def test_a_child_that_does_not_start_ends_the_suite_with_its_last_lines(folder: Path) -> None:
    suite = await start_small(folder, "good=good:0", "bad=broken:1", "never=good:2")
    code, output, errors = await outcome(suite)
    assert code == 1
    assert "bad says 2" in errors
    assert errors.splitlines()[-1] == f"bad did not start (exit code 7); see {folder / 'bad.log'}"
    assert "READY" not in output
    assert "never" not in output
    assert marked(folder) == []


async def test_a_child_with_a_bad_setting_ends_the_suite_with_that_one_line(folder: Path) -> None:
    suite = await start_small(folder, "good=good:0", "bad=settings:1")
    code, _, errors = await outcome(suite)
    assert (code, errors) == (2, "bad: bad settings: CHILD_COLOUR: must be a colour\n")


async def test_a_child_that_ends_while_others_start_ends_the_suite(folder: Path) -> None:
    suite = await start_small(folder, "weak=fragile:0", *(f"late{n}=good:1" for n in range(100)))
    await read_until(suite, "late0 says 2")
    (folder / "break").touch()
    code, _, errors = await outcome(suite)
    assert code == 1
    assert errors == "weak ended while the suite was starting (exit code 3)\n"
    assert marked(folder) == []


async def test_no_child_survives_a_killed_supervisor(folder: Path) -> None:
    suite = await start_small(folder, "one=good:0", "two=good:1")
    await read_until(suite, "READY")
    suite.kill()
    await outcome(suite)
    assert await gone(folder, 5)


async def test_the_next_start_ends_what_ignored_the_end_of_a_killed_supervisor(folder: Path) -> None:
    suite = await start_small(folder, "mule=stubborn:0", "mother=parent:1")
    await read_until(suite, "READY")
    suite.kill()
    await outcome(suite)
    assert len(marked(folder)) >= 2  # the mule, and what the mother started herself
    assert await asyncio.to_thread(end_marked, folder) >= 2
    assert marked(folder) == []


def test_restarts_become_rarer_until_the_child_has_run_steadily() -> None:
    backoff = Backoff()
    now = 0.0
    delays = []
    for _ in range(10):
        delays.append(backoff.next_seconds(now))
        now += delays[-1] + 0.1
    assert delays[:4] == [0.5, 1.0, 2.0, 4.0]
    assert delays[-1] == GREATEST_DELAY_SECONDS
    assert backoff.next_seconds(now + 2 * STEADY_SECONDS) == pytest.approx(0.5)
