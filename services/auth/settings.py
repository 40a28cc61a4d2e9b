"""The settings of auth."""

from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.auth.issuers import BadIssuersError, read_issuers
from services.auth.workloads import BadDigestsError, read_digests
from services.runtime.sealing import SealingSettings
from services.runtime.settings import ServerSettings

DAY_SECONDS = 86_400
CACHE_SECONDS = 300
"""For how long a verifier or an edge may go on with the keys that it fetched."""


def networks(text: str) -> list[IPv4Network | IPv6Network]:
    """The networks in a list that is separated by commas. Raises ValueError."""
    return [ip_network(one.strip()) for one in text.split(",") if one.strip()]


class HashSettings(BaseSettings):
    """What a password hash costs."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    argon2_time_cost: int = Field(default=3, ge=1, le=100)
    """Passes of Argon2id. The defaults are pwdlib's recommended ones (RFC 9106, low memory)."""
    argon2_memory_kib: int = Field(default=65_536, ge=8, le=4_194_304)
    """Memory of Argon2id, in KiB."""
    argon2_parallelism: int = Field(default=4, ge=1, le=64)
    """Lanes of Argon2id."""


class AuthSettings(ServerSettings, SealingSettings, HashSettings):
    """How long tokens, sessions and keys live, and what a password hash costs."""

    workload_digests_file: Path
    """JSON file {"chat": "<SHA-256 of its credential, hex>"}: the services that may ask for tokens."""
    access_token_lifetime_seconds: int = Field(default=900, ge=10, le=3_500)
    """How long an access token is good. Services remember ended sessions for an hour."""
    refresh_token_lifetime_seconds: int = Field(default=30 * DAY_SECONDS, ge=60, le=400 * DAY_SECONDS)
    """How long a session lasts after its last refresh."""
    refresh_grace_seconds: float = Field(default=30, ge=0, le=300)
    """How long a used refresh token is traded once more, for a client that lost the answer. After that, reuse is theft."""
    open_sessions_per_user: int = Field(default=100, ge=1, le=10_000)
    """Open sessions of one user; at the next sign-in the least used one ends."""
    signing_key_rotation_seconds: int = Field(default=30 * DAY_SECONDS, ge=60)
    """How long a key signs."""
    signing_key_publish_ahead_seconds: int = Field(default=3_600, ge=60)
    """How long a key is published before it signs: longer than an access token lives and verifiers cache keys."""
    password_hash_threads: int = Field(default=2, ge=1, le=16)
    """Passwords hashed at the same time; each takes `argon2_memory_kib` of memory."""
    password_hash_queue: int = Field(default=256, ge=1, le=10_000)
    """Passwords that may wait for a thread; beyond, sign-ins are refused with a retry delay."""
    password_hash_wait_seconds: float = Field(default=5, gt=0, le=60)
    """How long one may wait for it: who waits longer has given up, or asks again and makes the queue longer."""
    external_issuers_file: Path | None = None
    """JSON file of other issuers whose tokens are taken (services/auth/issuers.py says how it is written)."""
    sweep_interval_seconds: float = Field(default=600, gt=0)
    """How often what ended, expired or is older than its retention is deleted."""
    chat_target: str = Field(min_length=1)
    """gRPC target of chat, which must confirm the deletion of a user: `dns:///chat:50052`."""
    memory_target: str = Field(min_length=1)
    """gRPC target of memory, which must confirm it too."""
    sms_target: str = ""
    """gRPC target of sms, which must confirm it too and sends verification codes. Empty: it is not deployed."""
    purge_timeout_seconds: float = Field(default=60, gt=0, le=600)
    """How long one service may take to delete what it holds of a user, before it is asked again."""
    job_concurrency: int = Field(default=4, ge=1, le=100)
    """Deletions of users under way at a time, in one process."""
    password_token_lifetime_seconds: int = Field(default=3 * DAY_SECONDS, ge=60, le=30 * DAY_SECONDS)
    """How long a one-time token for setting a password can be used."""
    phone_code_lifetime_seconds: int = Field(default=600, ge=60, le=3_600)
    """How long a verification code can be used."""
    phone_code_resend_seconds: int = Field(default=60, ge=1, le=3_600)
    """How long one waits for another code."""
    phone_codes_per_day: int = Field(default=5, ge=1, le=100)
    """Codes that one user may ask for in a day; twice as many go to one number, whoever asks."""
    audit_retention_seconds: int = Field(default=365 * DAY_SECONDS, ge=DAY_SECONDS, le=3_650 * DAY_SECONDS)
    """How long the audit log is kept, and what is known of deletions that are complete."""
    sign_in_free_failures: int = Field(default=5, ge=1, le=1_000)
    """Failed sign-ins of one name from one address that cost nothing; beyond, each doubles the wait, up to 15 minutes."""
    sign_in_free_failures_per_address: int = Field(default=30, ge=1, le=1_000_000)
    """The same of one address, whoever is tried; up to 5 minutes. More where many people share an address."""
    sign_in_free_failures_per_name: int = Field(default=50, ge=1, le=1_000_000)
    """The same of one name from all addresses but those where somebody signed in with it before; up to a minute."""
    edge_networks: str = "127.0.0.0/8,::1/128"
    """Networks of our own edges, separated by commas: only they are believed what address a client has."""
    edge_proxies: int = Field(default=0, ge=0, le=10)
    """Proxies that stand before the edge and add the client's address to x-forwarded-for."""

    @field_validator("edge_networks")
    @classmethod
    def _check_networks(cls, text: str) -> str:
        networks(text)
        return text

    @field_validator("workload_digests_file")
    @classmethod
    def _check_digests(cls, path: Path) -> Path:
        try:
            read_digests(path)
        except BadDigestsError as error:
            raise ValueError(str(error)) from None
        return path

    @field_validator("external_issuers_file")
    @classmethod
    def _check_issuers(cls, path: Path | None) -> Path | None:
        try:
            return path if path is None or read_issuers(path) else None
        except BadIssuersError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _check_lifetimes(self) -> Self:
        if self.refresh_token_lifetime_seconds < self.access_token_lifetime_seconds:
            raise ValueError("REFRESH_TOKEN_LIFETIME_SECONDS must not be less than ACCESS_TOKEN_LIFETIME_SECONDS")
        least = self.access_token_lifetime_seconds + CACHE_SECONDS
        if self.signing_key_publish_ahead_seconds < least:
            raise ValueError(
                f"SIGNING_KEY_PUBLISH_AHEAD_SECONDS must be at least {least}: ACCESS_TOKEN_LIFETIME_SECONDS and the"
                f" {CACHE_SECONDS} seconds for which verifiers cache keys"
            )
        if self.signing_key_rotation_seconds < self.signing_key_publish_ahead_seconds:
            raise ValueError("SIGNING_KEY_ROTATION_SECONDS must not be less than SIGNING_KEY_PUBLISH_AHEAD_SECONDS")
        return self
