"""Begins a migration: `python -m services.runtime.new_revision chat "archived conversations"` writes the next file.

The file's number follows the newest one of the service, so that the files read in their order; it refuses while there is
more than one newest.
"""

import re
import sys
from pathlib import Path

from alembic import command
from alembic.script import ScriptDirectory

from services.runtime.migrations import alembic_config


def new_revision(package: str, noun: str) -> Path:
    """Writes the next migration of `package` ("services.chat"), named number_noun.py, and returns its path.

    Raises ValueError for a noun that makes no file name, and alembic's CommandError where migrations branch.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*([ _][a-z0-9]+)*", noun):
        raise ValueError("the noun must be lowercase words, like `archived conversations`")
    config = alembic_config(package)
    head = ScriptDirectory.from_config(config).get_current_head()
    number = f"{int(head or 0) + 1:04}"
    script = command.revision(config, message=f"{noun.replace('_', ' ').capitalize()}.", rev_id=number, head="head")
    if script is None or isinstance(script, list):
        raise TypeError("alembic wrote no single revision")
    written = Path(script.path)
    return written.rename(written.with_name(f"{number}_{noun.replace(' ', '_')}.py"))


def main() -> None:
    """Reads the service and the noun from the command line."""
    if len(sys.argv) != 3:  # noqa: PLR2004
        sys.exit('usage: python -m services.runtime.new_revision <service> "<noun>"')
    new_revision(f"services.{sys.argv[1]}", sys.argv[2])  # alembic says where it wrote


if __name__ == "__main__":
    main()
