"""What children say: line by line, bounded, and the suite goes on when nobody listens."""

import asyncio
import io
from pathlib import Path

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
