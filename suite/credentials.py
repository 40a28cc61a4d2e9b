"""Secrets made once and kept in the data folder: workload credentials of the services, passwords of their databases.

Files are readable by this user alone. A service is given its own credential only; auth is given digests, never a credential.
"""

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path

import orjson

from suite.databases import Passwords
from suite.private_files import write_private

CREDENTIAL_BYTES = 32


class Credentials:
    """The credentials folder. Every method returns the same at every start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def workload_file(self, service: str) -> Path:
        """The file with the secret by which auth knows the service."""
        path = self._folder / service
        self._secret(path)
        return path

    def digests_file(self, services: Sequence[str]) -> Path:
        """The file by which auth checks those secrets: SHA-256, hexadecimal, by service."""
        digests = {name: hashlib.sha256(self._secret(self._folder / name).encode()).hexdigest() for name in services}
        path = self._folder / "digests.json"
        write_private(path, orjson.dumps(digests, option=orjson.OPT_INDENT_2).decode())
        return path

    def database_passwords(self, service: str) -> Passwords:
        """The passwords of the roles that own and use the service's database."""
        owner, plain = (self._secret(self._folder / f"{service}.{role}-password") for role in ("owner", "service"))
        return Passwords(owner=owner, service=plain)

    def _secret(self, path: Path) -> str:
        if not path.exists():
            write_private(path, secrets.token_urlsafe(CREDENTIAL_BYTES))
        path.chmod(0o600)
        return path.read_text().strip()
