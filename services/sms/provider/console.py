"""A provider for work without an account: it writes texts down instead of sending them, and counts them as delivered.

It is the one place where a text and a number are shown, because that is what it is for: in a file that only this user may
read, or on standard output. The logs hold nothing of it.
"""

import datetime as dt
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson

from services.sms.provider.provider import NotTakenError, Taken, Text


class ConsoleProvider:
    """Writes each text as one line of JSON."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    async def send(self, text: Text) -> Taken:
        """Writes it. Raises NotTakenError where the file cannot be written."""
        line = orjson.dumps(
            {
                "time": dt.datetime.now(dt.UTC),
                "message_id": text.message_id,
                "phone_number": text.phone_number,
                "text": text.text,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )
        try:
            self._write(line)
        except OSError as error:
            raise NotTakenError(str(error.errno)) from error
        return Taken(f"console-{text.message_id}", "delivered")

    async def find(self, phone_number: str, text: str, *, since: dt.datetime) -> Sequence[Taken]:  # noqa: ARG002
        """Nothing: it remembers no text, and answers at once."""
        return ()

    async def forget(self, provider_message_id: str) -> None:
        """Nothing: what a console has shown is in the hands of who looks at it."""

    async def close(self) -> None:
        """Nothing is open."""

    def _write(self, line: bytes) -> None:
        if self._path is None:
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            # In one go, so that the lines of several processes do not mix.
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
