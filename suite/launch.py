"""The first instructions of a child: give up root where asked, and die with the parent.

Run by path with `python -I -S`, so it imports the standard library only and costs some 25 ms. It exists because a
`preexec_fn` would fork a process full of threads (gRPC's among them), and because Linux forgets the parent-death signal
when a process changes its user: the order here (user first, then signal, then exec) is the only one that works. Other
systems have no such signal; there the next start ends what a killed run left behind (suite.leftovers).
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence

PR_SET_PDEATHSIG = 1


def launch_command(
    command: Sequence[str], *, death_signal: signal.Signals, account: tuple[int, int] | None = None
) -> list[str]:
    """The command line that runs `command` as `account` (uid, gid) and signals it when this process dies."""
    uid, gid = account or (-1, -1)
    head = [sys.executable, "-I", "-S", os.path.abspath(__file__)]  # noqa: PTH100  # no pathlib: start-up time
    return [*head, str(os.getpid()), str(int(death_signal)), str(uid), str(gid), *command]


def main(arguments: Sequence[str]) -> None:
    """Become the command; never returns."""
    parent, death_signal, uid, gid = (int(argument) for argument in arguments[:4])
    command = list(arguments[4:])
    arm = _death_signal_arm() if sys.platform == "linux" else None  # imported while it still can be read
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if arm is not None and not arm(death_signal):
        sys.exit("the kernel refused the parent-death signal")
    if os.getppid() != parent:  # it died before the signal was armed
        sys.exit("the parent process is gone")
    try:
        os.execvp(command[0], command)  # noqa: S606  # becoming the command is the purpose
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


def _death_signal_arm() -> Callable[[int], bool]:
    import ctypes  # noqa: PLC0415  # only this process needs it

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda number: prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) == 0


if __name__ == "__main__":
    main(sys.argv[1:])
