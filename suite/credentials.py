"""Secrets made once and kept in the data folder: workload credentials of the services, passwords of their databases.

Also the keys under which chat keeps the secrets of users, and auth its signing keys.

Files are readable by this user alone. A service is given its own credential only; auth is given digests, never a credential.
"""

import base64
import hashlib
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from suite.databases import Passwords
from suite.private_files import write_private

CREDENTIAL_BYTES = 32


def _credential() -> str:
    return secrets.token_urlsafe(CREDENTIAL_BYTES)


def _sealing_key() -> str:
    return base64.b64encode(secrets.token_bytes(CREDENTIAL_BYTES)).decode()


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

    def sealing_key(self, service: str) -> str:
        """The key under which the service keeps secrets at rest; what is sealed is lost with it."""
        return self._secret(self._folder / f"{service}.sealing-key", make=_sealing_key)

    def _secret(self, path: Path, *, make: Callable[[], str] = _credential) -> str:
        if not path.exists():
            write_private(path, make())
        path.chmod(0o600)
        return path.read_text().strip()
