"""The data folder: where everything that must survive a restart lives, and the lock that keeps a second suite out.

Invariant: one suite per folder, by a lock of the kernel that ends with the process however it ends.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from suite.errors import SuiteError
from suite.sockets import fits, socket_folder


class FolderTakenError(SuiteError):
    """A suite uses the folder."""


class DataFolder:
    """The places inside the data folder. `lock()` must hold while anything in it is used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.postgres = path / "postgres"
        self.redis = path / "redis"
        self.credentials = path / "credentials"
        # The edge keeps a socket beside its configuration, both made anew at every start.
        beside = path / "edge"
        self.edge = beside if fits(beside) else socket_folder(path, "edge")
        self.logs = path / "logs"
        # What the console provider of sms writes instead of sending it.
        self.texts = path / "texts.jsonl"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder and keep it for this process; SuiteError when it cannot be written or is taken."""
        try:
            descriptor = self._open_lock()
        except OSError as error:
            raise SuiteError(
                f"cannot write to the data folder {self.path}: {error.strerror}: set PARLEY_DATA to a folder of yours",
                exit_code=2,
            ) from error
        try:
            self._take(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _open_lock(self) -> int:
        for folder in (self.path, self.credentials, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
            raise FolderTakenError(
                f"another suite (process {holder}) uses {self.path}: stop it, or set PARLEY_DATA to another folder"
            ) from None
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
