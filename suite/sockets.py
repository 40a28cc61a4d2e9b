"""Where unix sockets live: in the data folder, or in a short private folder when its path is too long for the kernel.

A socket's path has 108 bytes on Linux and 104 on macOS, its end marker included. Every folder returned here belongs to
the suite alone (0700), because whoever can reach a socket can talk to the server behind it.
"""

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from suite.errors import SuiteError

LONGEST_PATH_BYTES = 100
LONGEST_NAME = ".s.PGSQL.5432.lock"


def socket_folder(data: Path, server: str, *, owner: tuple[int, int] | None = None) -> Path:
    """A private folder for the sockets of the server whose data is in `data`; the same one at every start."""
    inside = data / f"{server}.socket"
    folder = inside if fits(inside) else _short_folder(inside)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(folder, owner)
    folder.chmod(0o700)
    if owner is not None:
        os.chown(folder, *owner)
    return folder


def leave(folder: Path) -> None:
    """Remove the folder of a server that has ended, unless something is left in it; the next start makes it again."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def fits(folder: Path) -> bool:
    """Whether the kernel takes the path of a socket in this folder."""
    return len(os.fsencode(folder / LONGEST_NAME)) <= LONGEST_PATH_BYTES


def _short_folder(inside: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(inside)).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"parley-{os.geteuid()}-{digest}"
    if not fits(folder):
        raise SuiteError(
            f"both {inside} and the temporary folder {tempfile.gettempdir()} are too long for unix sockets"
            f" ({LONGEST_PATH_BYTES} bytes): set PARLEY_DATA or TMPDIR to a shorter path",
            exit_code=2,
        )
    return folder


def _check_owner(folder: Path, owner: tuple[int, int] | None) -> None:
    """Somebody else's folder, or a link, under our name in /tmp is a trap."""
    state = folder.lstat()
    allowed = {os.geteuid(), *(owner or ())[:1]}
    if not stat.S_ISDIR(state.st_mode) or state.st_uid not in allowed:
        raise SuiteError(f"{folder} belongs to another user: remove it, or set PARLEY_DATA to another folder")
