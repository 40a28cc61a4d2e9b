"""`python -m suite`: everything on this machine, until Ctrl-C. `make run` is this.

Exit code 0 after an orderly stop, 2 for settings, 1 for anything else that is in the way; then one line says what to do.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Mapping

import psutil

from suite.banner import banner
from suite.checks import problems_of_parts
from suite.errors import SuiteError
from suite.folder import DataFolder
from suite.leftovers import end_marked
from suite.output import Terminal
from suite.plan import Plan
from suite.ports import check_free
from suite.processes import BAD_SETTINGS_STATUS
from suite.settings import SuiteSettings, bad_settings, check_settings, read_environment
from suite.start_up import StartUp
from suite.supervisor import Supervisor


def main() -> int:
    """Run the suite; the exit code."""
    if len(sys.argv) > 1:
        print("usage: python -m suite; every setting is an environment variable, see .env.example", file=sys.stderr)
        return BAD_SETTINGS_STATUS
    try:
        environment = read_environment()
        settings = _settings(environment)
        folder = DataFolder(settings.data)
        with folder.lock():
            end_marked(folder.path)
            check_free(settings.claims())
            _run_plan(Plan(settings, environment, folder, Terminal()))
    except SuiteError as error:
        return _explain(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _settings(environment: Mapping[str, str]) -> SuiteSettings:
    """Where the suite's own settings are wrong, everybody else's are checked too, so that all is said at once."""
    settings, problems = check_settings(environment)
    if settings is None or problems:
        raise SuiteError(bad_settings([*problems, *problems_of_parts(environment)]), exit_code=BAD_SETTINGS_STATUS)
    return settings


def _run_plan(plan: Plan) -> None:
    """Where a part refuses a setting, say everything that is wrong with the settings of all."""
    try:
        asyncio.run(_run(plan))
    except SuiteError as error:
        problems = problems_of_parts(plan.environment) if error.exit_code == BAD_SETTINGS_STATUS else []
        if problems:
            raise SuiteError(bad_settings(problems), exit_code=BAD_SETTINGS_STATUS) from error
        raise


async def _run(plan: Plan) -> None:
    supervisor = Supervisor(plan.terminal)
    supervisor.stop_at_signals()
    start_up = StartUp(plan, supervisor)

    async def start() -> None:
        plan.terminal.say(f"Parley starts; data and logs are in {plan.folder.path}")
        await start_up.run()
        plan.terminal.say(banner(plan, notes=start_up.notes, seconds=_seconds_since_start()))

    await supervisor.run(start)
    plan.terminal.say("Everything has stopped.")


def _seconds_since_start() -> float:
    """Since the process began, its imports included: what the person has waited."""
    return time.time() - psutil.Process().create_time()


def _explain(error: SuiteError) -> int:
    for line in error.last_lines:
        print(f"    {line}", file=sys.stderr)
    print(f"suite: {error}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
