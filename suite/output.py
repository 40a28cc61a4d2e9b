"""What the person at the terminal sees, and the same in files: one line at a time, prefixed with who said it.

A log file is bounded: at LOG_BYTES it becomes `<name>.log.1`. Colour goes to a terminal only, never into a file.
Whatever is wrong with a file, a child is heard: one that nobody reads would stop at its next full pipe.
"""

import asyncio
import os
import re
import shutil
import sys
from asyncio import StreamReader
from collections import deque
from collections.abc import Callable
from contextlib import suppress
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
        self._is_written = True

    def write(self, line: str) -> None:
        """Take one line, without its end. A file that cannot be written costs its lines, is told once, and tried again."""
        plain = without_escapes(line)
        self.last_lines.append(plain)
        self._terminal.relay(self._name, line)
        try:
            self._append(f"{plain}\n".encode())
        except OSError as error:
            self.close()
            self._tell(error)
        else:
            self._is_written = True

    def _append(self, line: bytes) -> None:
        sink = self._opened()
        # Before the line, not after it: a file that cannot begin again must not grow by one with each try.
        if sink.tell() >= LOG_BYTES:
            self.close()
            with suppress(FileNotFoundError):  # somebody deleted it
                self.path.replace(self.path.with_suffix(".log.1"))
            sink = self._opened()
        sink.write(line)
        sink.flush()

    def _opened(self) -> BinaryIO:
        self._sink = self._sink or self.path.open("ab")
        return self._sink

    def _tell(self, error: OSError) -> None:
        if self._is_written:
            said = f"{self.path} cannot be written ({error.strerror}); until it can, lines of {self._name} stand here only"
            self._terminal.say(said)
        self._is_written = False

    def show(self, line: str) -> None:
        """Take one line that stands in the file already."""
        self._terminal.relay(self._name, line)

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        sink, self._sink = self._sink, None
        if sink is not None:
            with suppress(OSError):  # what a full disk did not take is tried once more, and refused again
                sink.close()


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
    """Pass on what is appended to a file from now on, and keep the file bounded; ends by cancellation only.

    A file that is deleted or emptied begins anew; one that cannot be read or copied just now is looked at again.
    """
    position = await asyncio.to_thread(_size, path)
    while True:
        await asyncio.sleep(FOLLOW_SECONDS)
        lines, position = await asyncio.to_thread(_appended, path, position)
        for line in lines:
            write(line)
        if position > LOG_BYTES:
            position = await asyncio.to_thread(_start_afresh, path, position)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _appended(path: Path, position: int) -> tuple[list[str], int]:
    """The whole lines after `position`, and where they end."""
    try:
        with path.open("rb") as source:
            if source.seek(0, os.SEEK_END) < position:
                position = 0
            source.seek(position)
            data = source.read(LOG_BYTES)
    except FileNotFoundError:
        return [], 0
    except OSError:
        return [], position
    whole = data[: data.rfind(b"\n") + 1]
    if not whole and len(data) == LOG_BYTES:  # a line without end is passed on in pieces
        whole = data
    return [_text(line) for line in whole.splitlines()], position + len(whole)


def _start_afresh(path: Path, position: int) -> int:
    """Copy, then empty: the writer has the file open for appending and goes on at its new end."""
    try:
        shutil.copyfile(path, path.with_suffix(".log.1"))
        os.truncate(path, 0)
    except OSError:
        return position
    return 0


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")
