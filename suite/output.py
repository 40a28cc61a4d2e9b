"""What the person at the terminal sees, and the same in files: one line at a time, prefixed with who said it.

A log file is bounded: at LOG_BYTES it becomes `<name>.log.1`. Colour goes to a terminal only, never into a file.
"""

import asyncio
import os
import re
import shutil
import sys
from asyncio import StreamReader
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TextIO

LOG_BYTES = 5_000_000
LONGEST_LINE_BYTES = 32_768
REMEMBERED_LINES = 20
FOLLOW_SECONDS = 0.25
COLOURS = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
WIDTH = 10


class Terminal:
    """Writes to one stream. When nobody reads it any more, it says nothing and the suite goes on."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self.is_interactive = self._stream.isatty()
        self.has_colour = self.is_interactive and not os.environ.get("NO_COLOR")
        self._colours: dict[str, int] = {}

    def say(self, text: str) -> None:
        """A line of the suite's own."""
        self._write(f"{text}\n")

    def relay(self, name: str, line: str) -> None:
        """A line of a child."""
        if not self.has_colour:
            self._write(f"{name:<{WIDTH}} | {without_escapes(line)}\n")
            return
        colour = self._colours.setdefault(name, COLOURS[len(self._colours) % len(COLOURS)])
        self._write(f"\x1b[{colour}m{name:<{WIDTH}} |\x1b[0m {line}\n")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal was closed, the pipe's reader has gone
            return


class Log:
    """Where a child's lines go: file, terminal, and the last ones kept for the story of its end."""

    def __init__(self, path: Path, *, name: str, terminal: Terminal) -> None:
        self.path = path
        self.last_lines: deque[str] = deque(maxlen=REMEMBERED_LINES)
        self._name = name
        self._terminal = terminal
        self._sink: BinaryIO | None = None

    def write(self, line: str) -> None:
        """Take one line, without its end."""
        plain = without_escapes(line)
        self.last_lines.append(plain)
        self._terminal.relay(self._name, line)
        sink = self._sink or self.path.open("ab")
        sink.write(f"{plain}\n".encode())
        sink.flush()
        self._sink = sink
        if sink.tell() > LOG_BYTES:
            self.close()
            self.path.replace(self.path.with_suffix(".log.1"))

    def show(self, line: str) -> None:
        """Take one line that stands in the file already."""
        self._terminal.relay(self._name, line)

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._sink is not None:
            self._sink.close()
            self._sink = None


def without_escapes(line: str) -> str:
    """The line without colour and other terminal escapes."""
    return ESCAPES.sub("", line)


async def relay(source: StreamReader, write: Callable[[str], None]) -> None:
    """Pass a child's output on, line by line, until it closes it; a longer line is cut into pieces."""
    rest = b""
    while chunk := await source.read(LONGEST_LINE_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            write(_text(line))
        if len(rest) > LONGEST_LINE_BYTES:
            write(_text(rest))
            rest = b""
    if rest:
        write(_text(rest))


async def follow(path: Path, write: Callable[[str], None]) -> None:
    """Pass on what is appended to a file from now on, and keep the file bounded; ends by cancellation only."""
    position = await asyncio.to_thread(_size, path)
    while True:
        await asyncio.sleep(FOLLOW_SECONDS)
        lines, position = await asyncio.to_thread(_appended, path, position)
        for line in lines:
            write(line)
        if position > LOG_BYTES:
            position = await asyncio.to_thread(_start_afresh, path)


def _size(path: Path) -> int:
    return path.stat().st_size


def _appended(path: Path, position: int) -> tuple[list[str], int]:
    """The whole lines after `position`, and where they end."""
    with path.open("rb") as source:
        source.seek(position)
        data = source.read(LOG_BYTES)
    whole = data[: data.rfind(b"\n") + 1]
    if not whole and len(data) == LOG_BYTES:  # a line without end is passed on in pieces
        whole = data
    return [_text(line) for line in whole.splitlines()], position + len(whole)


def _start_afresh(path: Path) -> int:
    """Copy, then empty: the writer has the file open for appending and goes on at its new end."""
    shutil.copyfile(path, path.with_suffix(".log.1"))
    os.truncate(path, 0)
    return 0


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")
