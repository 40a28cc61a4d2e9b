"""What the door hands from part to part."""

from dataclasses import dataclass

from services.auth.records import Account


@dataclass(frozen=True, slots=True)
class Standing:
    """What a standing session is to be: its kind, its name in lists, and how long it lasts after its last use."""

    kind: str
    user_agent: str
    lifetime_seconds: float


@dataclass(frozen=True, slots=True)
class StandingSession:
    """A session that stands for credentials, and its account as it is by then; `ended_ids` had to end for it."""

    id: str
    account: Account
    ended_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExternalIdentity:
    """Who somebody is by a verified token of another issuer. `email` only where the issuer has verified it."""

    issuer: str
    subject: str
    email: str | None
    expire_time: float
