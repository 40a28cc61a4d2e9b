"""The one error the suite shows to the person at the terminal.

Its text is a single line that says what is wrong and what to do; whoever catches it prints it and ends.
"""

from collections.abc import Sequence


class SuiteError(Exception):
    """The suite cannot start or go on.

    `exit_code` 2 means that a setting is at fault, 1 that the machine is; `last_lines` are the last words of the child.
    """

    def __init__(self, message: str, *, exit_code: int = 1, last_lines: Sequence[str] = ()) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code
        self.last_lines = tuple(last_lines)
