"""What the store hands out: plain values, no rows.

Secrets among them never show in a repr, so that none can reach a log by accident.
"""

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Account:
    """A user. `credential_version` grows with every new password; tokens on behalf of the user name `standing_id`."""

    id: str
    username: str
    email: str
    phone_number: str | None = field(repr=False)
    is_active: bool
    is_admin: bool
    credential_version: int
    standing_id: str
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class Credentials:
    """An account with the hash of its password."""

    account: Account
    password_hash: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Origin:
    """Who does something, and from where: None where nobody is signed in, or the address is not known."""

    actor_id: str | None = None
    address: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class UserFilter:
    """Which accounts a list is of; None does not matter. `prefix` begins a username or an email address."""

    prefix: str
    is_active: bool | None
    is_admin: bool | None


@dataclass(frozen=True, slots=True)
class PasswordToken:
    """A one-time token, told once."""

    token: str = field(repr=False)
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class ServiceDeletion:
    """How far one service is with a deletion."""

    service: str
    confirm_time: datetime | None
    attempts: int
    last_reason: str


@dataclass(frozen=True, slots=True)
class Deletion:
    """How far the deletion of a user is."""

    user_id: str
    request_time: datetime
    complete_time: datetime | None
    services: tuple[ServiceDeletion, ...]


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Something that was noted: neither secrets nor content."""

    id: str
    event_time: datetime
    kind: str
    user_id: str | None
    actor_id: str | None
    address: str | None = field(repr=False)
    details: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session that has neither ended nor expired."""

    id: str
    user_agent: str
    create_time: datetime
    last_used_time: datetime
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session to be started, with the digest of its first refresh token and the refresh lifetime."""

    user_agent: str
    refresh_digest: bytes = field(repr=False)
    lifetime_seconds: float


@dataclass(frozen=True, slots=True)
class StartedSession:
    """A session that was started or refreshed; `ended_ids` are sessions that had to end for it."""

    account: Account
    session_id: str
    expire_time: datetime
    ended_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReusedToken:
    """A refresh token came back after its grace time: its session was ended."""

    session_id: str
    user_id: str


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A signing key as stored: the private key sealed or, by an earlier release, as PKCS#8 DER."""

    kid: str
    activate_time: datetime
    private_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a user prefers; None where the default holds. Without times there are none at all."""

    user_id: str
    language: str | None = None
    tts_voice: str | None = None
    auto_reply_enabled: bool | None = None
    notifications_enabled: bool | None = None
    conversation_timeout_seconds: int | None = None
    model: str | None = None
    reasoning_effort: str | None = None
    memory_enabled: bool | None = None
    instructions: str | None = None
    create_time: datetime | None = None
    update_time: datetime | None = None
