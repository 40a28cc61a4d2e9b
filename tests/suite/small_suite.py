"""A suite of small children under the real supervisor: `python small_suite.py FOLDER NAME=MODE:LEVEL …`.

It prints READY when all are, and ends as `python -m suite` does.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from suite.errors import SuiteError
from suite.leftovers import MARK
from suite.output import Log, Terminal
from suite.parts import ProgramPart
from suite.processes import Program, Rung
from suite.supervisor import Supervisor

CHILD = Path(__file__).with_name("child.py")
PATIENCE_SECONDS = 20.0


def part(folder: Path, name: str, mode: str, terminal: Terminal) -> ProgramPart:
    async def is_ready() -> bool:
        if mode == "deaf" and (folder / "once").exists():
            return await _loses_a_cancellation(folder)
        return (folder / f"{name}.ready").exists()

    return ProgramPart(
        name,
        program=Program(
            command=(sys.executable, str(CHILD), name, mode, str(folder)),
            environment={**os.environ, MARK: str(folder)},
        ),
        log=Log(folder / f"{name}.log", name=name, terminal=terminal),
        is_ready=is_ready,
        ladder=(Rung(signal.SIGTERM, PATIENCE_SECONDS),),
    )


async def _loses_a_cancellation(folder: Path) -> bool:
    """As a library's wait may that ends in the same moment."""
    (folder / "asked").touch()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return True
    return False


async def run(folder: Path, wanted: list[str]) -> None:
    terminal = Terminal()
    supervisor = Supervisor(terminal)
    supervisor.stop_at_signals()

    async def start() -> None:
        for text in wanted:
            name, _, rest = text.partition("=")
            mode, _, level = rest.partition(":")
            await supervisor.bring_up(part(folder, name, mode, terminal), level=int(level))
        terminal.say("READY")

    await supervisor.run(start)


def main() -> int:
    try:
        asyncio.run(run(Path(sys.argv[1]), sys.argv[2:]))
    except SuiteError as error:
        print("\n".join([*error.last_lines, str(error)]), file=sys.stderr)  # noqa: T201  # the story of its end
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
