"""Which system account runs Postgres, and what that account may reach.

Postgres refuses to run as root. An ordinary user runs it as itself; root lends it an account that already exists: the
owner of an earlier cluster, else `postgres`, else `nobody`. No account is ever created. The account can enter a folder
only where every folder above grants passage, so passage (the x bit, never r) is added where it is missing, and named.
"""

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from suite.errors import SuiteError

CANDIDATES = ("postgres", "nobody")
PASSAGE = 0o001
READ = 0o004


@dataclass(frozen=True, slots=True)
class Account:
    """An existing account that is not root."""

    name: str
    uid: int
    gid: int

    @property
    def ids(self) -> tuple[int, int]:
        """Uid and gid, as suite.launch takes them."""
        return self.uid, self.gid


def lent_account(cluster: Path) -> Account | None:
    """The account for the cluster, or None when this process is not root and simply runs it itself."""
    if os.geteuid() != 0:
        return None
    owner = cluster.stat().st_uid if cluster.exists() else 0
    for entry in _entries(owner):
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise SuiteError(
        "Postgres does not run as root and neither an account `postgres` nor `nobody` exists here:"
        " start the suite as an ordinary user, or set DATABASE_URL to a server of yours"
    )


def _entries(owner: int) -> list[pwd.struct_passwd]:
    found = [] if owner == 0 else [entry for entry in pwd.getpwall() if entry.pw_uid == owner]
    for name in CANDIDATES:
        try:
            found.append(pwd.getpwnam(name))
        except KeyError:
            continue
    return found


def grant_passage(folder: Path) -> list[Path]:
    """Let every account pass through `folder` and all above it; returns the folders that were changed."""
    changed = []
    for part in (folder, *folder.parents):
        mode = part.stat().st_mode
        if not mode & PASSAGE:
            part.chmod(mode | PASSAGE)
            changed.append(part)
    return changed


def may_others_run(program: Path) -> bool:
    """Whether every account may read and execute the file."""
    return program.stat().st_mode & (READ | PASSAGE) == READ | PASSAGE


def grant_reading(folder: Path) -> None:
    """Make an installed program readable to every account, where the umask of the installation prevented that."""
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        wanted = mode | READ | (PASSAGE if path.is_dir() or mode & 0o100 else 0)
        if wanted != mode:
            path.chmod(wanted)
