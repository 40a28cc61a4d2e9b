"""Processes that a killed run left behind, ended before their ports, sockets and files are used again.

A process is ended only if it is surely ours: its command line must name the file or folder that the caller owns, or its
environment must carry the mark that every child of a suite on this data folder is given.
"""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from suite.errors import SuiteError
from suite.processes import Rung

MARK = "STARTED_BY_SUITE_ON"
MARKED_SECONDS = 2.0
KILL_SECONDS = 5.0


def end_leftover(pid: int, *, naming: str, ladder: Sequence[Rung]) -> bool:
    """End the process if its command line contains `naming`; True when there was one. Blocks for the ladder at most."""
    process = _find(pid, naming)
    if process is None:
        return False
    for rung in ladder:
        _send(process, rung.signal)
        if not _still_running([process], rung.seconds):
            return True
    _send(process, signal.SIGKILL)
    if _still_running([process], KILL_SECONDS):
        raise SuiteError(f"process {pid} of an earlier run does not end: kill it, then start again")
    return True


def end_marked(folder: Path) -> int:
    """End every process with the mark of this data folder; returns how many there were. Blocks for seconds at most."""
    marked = [process for process in psutil.process_iter() if _mark(process) == str(folder)]
    for process in marked:
        _send(process, signal.SIGTERM)
    late = _still_running(marked, MARKED_SECONDS)
    for process in late:
        _send(process, signal.SIGKILL)
    immortal = _still_running(late, KILL_SECONDS)
    if immortal:
        raise SuiteError(f"process {immortal[0].pid} of an earlier run does not end: kill it, then start again")
    return len(marked)


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):  # ended meanwhile, or somebody else's
        return None


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _find(pid: int, naming: str) -> psutil.Process | None:
    if pid <= 0 or pid == os.getpid():
        return None
    try:
        process = psutil.Process(pid)
        command = process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return process if any(naming in argument for argument in command) else None


def _still_running(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that have not ended after the time. One that ended and that nobody reaps has ended (psutil waits for it)."""
    give_up = time.monotonic() + seconds
    while running := [process for process in processes if _is_running(process)]:
        if time.monotonic() > give_up:
            break
        time.sleep(0.02)
    return running


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
