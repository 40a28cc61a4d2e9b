"""Files that hold secrets: written whole or not at all, readable by this user alone from their first byte on."""

import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Write or replace the file with mode 0600."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as sink:
        sink.write(text)
    draft.replace(path)
