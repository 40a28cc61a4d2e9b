"""What children say: line by line, bounded, and the suite goes on when nobody listens."""

import asyncio
import io
from pathlib import Path

import pytest

from suite import output
from suite.output import LONGEST_LINE_BYTES, Log, Terminal, follow, relay


async def test_lines_come_whole_and_an_endless_one_in_pieces() -> None:
    source = asyncio.StreamReader()
    source.feed_data("grü".encode()[:-1])
    source.feed_data("ü".encode()[1:] + b"\r\nsecond\n\n" + b"x" * (3 * LONGEST_LINE_BYTES) + b"\nlast")
    source.feed_eof()
    lines: list[str] = []
    await relay(source, lines.append)
    assert lines[:3] == ["grü", "second", ""]
    assert "".join(lines[3:-1]) == "x" * (3 * LONGEST_LINE_BYTES)
    assert max(len(line) for line in lines) <= 2 * LONGEST_LINE_BYTES
    assert lines[-1] == "last"


def test_a_log_file_is_bounded_and_begins_again(folder: Path) -> None:
    log = Log(folder / "chat.log", name="chat", terminal=Terminal(io.StringIO()))
    line = "y" * 100_000
    for _ in range(2 * output.LOG_BYTES // len(line) + 3):
        log.write(line)
    log.close()
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(sizes) == {"chat.log", "chat.log.1"}
    assert max(sizes.values()) <= output.LOG_BYTES + len(line) + 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_costs_lines_of_the_file_and_nothing_else(folder: Path) -> None:
    path, stream = folder / "chat.log", io.StringIO()
    log = Log(path, name="chat", terminal=Terminal(stream))
    for line, is_full in (("one", True), ("two", True), ("three", False), ("four", False), ("five", True), ("six", True)):
        log.close()
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/full" if is_full else folder / "kept")
        log.write(line)
    log.close()
    assert (folder / "kept").read_text() == "three\nfour\n"
    assert list(log.last_lines) == ["one", "two", "three", "four", "five", "six"]
    said = stream.getvalue().splitlines()
    assert [line.split()[-1] for line in said if line.startswith("chat ")] == list(log.last_lines)
    assert [line for line in said if "cannot" in line] == [
        f"{path} cannot be written (No space left on device); until it can, lines of chat stand here only"
    ] * 2


def test_a_log_file_that_was_deleted_begins_again(folder: Path) -> None:
    stream = io.StringIO()
    log = Log(folder / "chat.log", name="chat", terminal=Terminal(stream))
    log.write("y" * output.LOG_BYTES)
    (folder / "chat.log").unlink()
    log.write("after")
    log.close()
    assert [path.name for path in folder.iterdir()] == ["chat.log"]
    assert (folder / "chat.log").read_text() == "after\n"
    assert [line for line in stream.getvalue().splitlines() if "cannot" in line] == []


def test_a_log_file_that_cannot_begin_again_grows_no_further(folder: Path) -> None:
    stream = io.StringIO()
    log = Log(folder / "chat.log", name="chat", terminal=Terminal(stream))
    (folder / "chat.log.1").mkdir()
    for line in ("y" * output.LOG_BYTES, "two", "three", "four"):
        log.write(line)
    log.close()
    assert (folder / "chat.log").stat().st_size == output.LOG_BYTES + 1
    assert len([line for line in stream.getvalue().splitlines() if "cannot be written" in line]) == 1


async def test_what_a_server_appends_to_its_file_is_shown_and_the_file_is_bounded(folder: Path) -> None:
    path = folder / "redis.log"
    path.write_text("old\n")
    seen: list[str] = []
    following = asyncio.create_task(follow(path, seen.append))
    with path.open("ab", buffering=0) as server:
        await asyncio.sleep(0.1)
        server.write(b"one\ntwo\nhal")
        await _until(lambda: len(seen) == 2)
        server.write(b"f\n" + b"z" * output.LOG_BYTES + b"\n")
        await _until(lambda: path.stat().st_size == 0)
        server.write(b"after\n")
        await _until(lambda: seen[-1] == "after")
    following.cancel()
    assert seen[:3] == ["one", "two", "half"]
    assert (folder / "redis.log.1").exists()


async def test_a_servers_file_that_is_deleted_or_emptied_is_followed_from_its_new_beginning(folder: Path) -> None:
    path = folder / "redis.log"
    seen: list[str] = []
    following = asyncio.create_task(follow(path, seen.append))
    await asyncio.sleep(2 * output.FOLLOW_SECONDS)
    path.write_text("a first line\n")
    await _until(lambda: seen == ["a first line"])
    path.write_text("emptied\n")
    await _until(lambda: seen[1:] == ["emptied"])
    path.unlink()
    await asyncio.sleep(2 * output.FOLLOW_SECONDS)
    path.write_text("deleted\n")
    await _until(lambda: seen[2:] == ["deleted"])
    following.cancel()


async def test_a_servers_file_that_cannot_begin_again_is_followed_all_the_same(folder: Path) -> None:
    path = folder / "redis.log"
    path.write_text("")
    (folder / "redis.log.1").mkdir()
    seen: list[str] = []
    following = asyncio.create_task(follow(path, seen.append))
    with path.open("ab", buffering=0) as server:
        await asyncio.sleep(0.1)
        server.write(b"z" * output.LOG_BYTES + b"\n")
        await _until(lambda: len(seen) == 2)  # the endless line comes in pieces
        server.write(b"after\n")
        await _until(lambda: seen[2:] == ["after"])
        (folder / "redis.log.1").rmdir()
        await _until(lambda: path.stat().st_size == 0)
    following.cancel()


def test_a_closed_terminal_is_no_error() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream)
    terminal.say("heard")
    stream.close()
    terminal.say("not heard")


class _Colourful(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_is_for_terminals(folder: Path) -> None:
    for stream, has_colour in ((_Colourful(), True), (io.StringIO(), False)):
        log = Log(folder / "log", name="chat", terminal=Terminal(stream))
        log.write("\x1b[1mbold\x1b[0m")
        log.close()
        assert ("\x1b[" in stream.getvalue()) is has_colour
    assert (folder / "log").read_text() == "bold\nbold\n"


async def _until(condition: object) -> None:
    if not callable(condition):
        raise TypeError("a condition is called")
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the condition is about a file
            await asyncio.sleep(0.05)
