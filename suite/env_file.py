"""The `.env` file: the suite's own, so everything in it must be a setting, written so that it can be read.

A line that is passed over in silence is a setting that somebody believes to have made.
"""

import difflib
import io
from collections.abc import Iterator
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import Binding, parse_stream

from suite.errors import SuiteError


def read_env_file(path: Path, *, known: frozenset[str]) -> dict[str, str | None]:
    """What the file sets; nothing where there is none. SuiteError (exit code 2) names every line that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"cannot read {path}: {error}", exit_code=2) from error
    if problems := list(_problems(text, known)):
        raise SuiteError(f"{path}: {'; '.join(problems)}", exit_code=2)
    return dotenv_values(stream=io.StringIO(text))


def _problems(text: str, known: frozenset[str]) -> Iterator[str]:
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key is not None and binding.value is None):
            yield f"line {_line(binding)}: write NAME=value"
        elif binding.key is not None and binding.key.upper() not in known:
            near = difflib.get_close_matches(binding.key.upper(), known, n=1)
            yield f"line {_line(binding)}: {binding.key} is no setting{f', did you mean {near[0]}?' if near else ''}"


def _line(binding: Binding) -> int:
    """The parser gives the blank lines before a binding to it."""
    said = binding.original.string
    return binding.original.line + said[: len(said) - len(said.lstrip())].count("\n")
