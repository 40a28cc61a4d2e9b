"""A small real child for the tests of supervision: `python child.py NAME MODE FOLDER`.

It says when it is ready by a file, notes its end in `order`, and misbehaves as its mode says: `good`, `stubborn` (ignores
SIGTERM), `broken` (ends at once), `settings` (ends like a service with a bad setting), `fragile` (ends when a file `break`
appears), `parent` (has a child of its own), `deaf` (good; whoever asks whether it is ready again is not cancelled at once),
`loud` (good; says more than a pipe holds before it is ready).
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

LINES = 3
BAD_SETTINGS = 2


def main(name: str, mode: str, folder: Path) -> int:
    for number in range(LINES):
        print(f"{name} says \x1b[31m{number}\x1b[0m", flush=True)  # noqa: T201  # its output is the point
    if mode in {"broken", "settings"}:
        print("bad settings: CHILD_COLOUR: must be a colour", flush=True)  # noqa: T201
        return BAD_SETTINGS if mode == "settings" else 7
    signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "stubborn" else lambda *_: sys.exit(0))
    if mode == "parent":
        subprocess.Popen(["sleep", "300"])  # noqa: S607  # the system's sleep
    if mode == "loud":
        print("\n".join(["x" * 1_000] * 1_000), flush=True)  # noqa: T201  # its output is the point
    (folder / f"{name}.ready").write_text("")
    try:
        while not (mode == "fragile" and (folder / "break").exists()):
            time.sleep(0.02)
    finally:
        (folder / f"{name}.ready").unlink(missing_ok=True)
        with (folder / "order").open("a") as order:
            order.write(f"{name}\n")
    (folder / "break").unlink()
    return 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
