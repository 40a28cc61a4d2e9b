"""What an operator may set about the edge, read once from the environment.

Invariant: a value that Envoy would misread is refused here, by the name of its variable.
"""

import ipaddress
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

LEAST_HEARTBEATS = 3
_GREATEST_PORT = 65535
_COOKIE = re.compile(r"[A-Za-z0-9._-]{1,100}")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Address:
    """A host (name, IPv4 or bracketless IPv6) and a port."""

    host: str
    port: int

    @property
    def is_ip(self) -> bool:
        """Whether the host needs no name service."""
        return _is_ip(self.host)

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Reads `host:port` or `[ipv6]:port`; ValueError says what is wrong with it."""
        host, colon, port = text.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        is_host = _HOST.fullmatch(host) is not None or _is_ip(host)
        if not colon or not is_host or not port.isdecimal() or not 0 < int(port) <= _GREATEST_PORT:
            raise ValueError(f"{text!r} is not host:port with a port between 1 and {_GREATEST_PORT}")
        return cls(host, int(port))


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _addresses(value: object) -> object:
    parts = _split(value)
    if isinstance(parts, tuple | list):
        return tuple(Address.parse(part) if isinstance(part, str) else part for part in parts)
    return parts


Place = Annotated[Address, NoDecode]
Endpoints = Annotated[tuple[Address, ...], NoDecode, Field(min_length=1)]
Names = Annotated[tuple[str, ...], NoDecode]


class EdgeSettings(BaseSettings):
    """Every setting of the edge; each has a default that suits one machine."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    edge_address: Place = Address("127.0.0.1", 8080)
    edge_admin_address: Place = Address("127.0.0.1", 9901)
    # Where each service listens. Names are resolved again and again (headless services of a cluster); addresses are kept.
    auth_endpoints: Endpoints = (Address("127.0.0.1", 50051),)
    chat_endpoints: Endpoints = (Address("127.0.0.1", 50061),)
    memory_endpoints: Endpoints = (Address("127.0.0.1", 50071),)
    sms_endpoints: Endpoints = (Address("127.0.0.1", 50081),)
    # Where the processes of chat serve MCP.
    mcp_endpoints: Endpoints = (Address("127.0.0.1", 9261),)
    # Where the limiters count.
    limiter_endpoints: Endpoints = (Address("127.0.0.1", 50091),)
    # Whether calls are limited at all.
    limits_enabled: bool = True
    # How long a call waits for its verdict; then it goes on without.
    limiter_timeout_seconds: float = Field(default=0.5, ge=0.01, le=10)
    # Proxies of yours before the edge. What the last of so many says of the client's address (X-Forwarded-For) is believed.
    edge_proxies: int = Field(default=0, ge=0, le=10)
    # Whether a name and a password (HTTP Basic) are taken where a call needs an identity.
    basic_auth_enabled: bool = True
    # Whether cookies are.
    cookie_auth_enabled: bool = True
    # Whether tokens of other issuers are; auth knows which (EXTERNAL_ISSUERS_FILE).
    external_tokens_enabled: bool = False
    # Origins of web pages that may call: exact, or `*`. None by default.
    cors_allowed_origins: Names = ()
    # Cookies that may hold an access token, where there is no Authorization header. What changes something also needs an
    # Origin: the edge's own, or one of CORS_ALLOWED_ORIGINS.
    session_cookies: Names = ("session_token", "better-auth.session_token")
    # Host headers that are answered, without port: exact, `*.example.com`, or `*`. Others get 421.
    allowed_hosts: Names = ("*",)
    # Chat's own, which the edge must outlast.
    generation_deadline_seconds: float = Field(default=120, gt=0, le=3600)
    heartbeat_seconds: float = Field(default=15, ge=0.1, le=300)
    # A unary call may wait for a model: longer than the generation's own deadline, so that chat's answer wins.
    request_timeout_seconds: int = Field(default=130, ge=1, le=7200)
    # How long a client may take to send its whole request.
    receive_timeout_seconds: int = Field(default=60, ge=1, le=3600)
    # A stream without an event, heartbeats included, for this long is dead.
    stream_idle_timeout_seconds: int = Field(default=90, ge=1, le=3600)
    # At most what a service takes (8 MiB), so that it is the edge that says 413.
    max_body_bytes: int = Field(default=2 * 1024 * 1024, ge=256 * 1024, le=8 * 1024 * 1024)
    # Greatest unary answer that is turned into JSON: a whole conversation, say.
    max_answer_bytes: int = Field(default=32 * 1024 * 1024, ge=1024 * 1024, le=256 * 1024 * 1024)
    # Streams at once, of one connection and towards one service.
    max_streams: int = Field(default=10_000, ge=100, le=1_000_000)
    max_connections: int = Field(default=20_000, ge=10, le=1_000_000)
    # How often each process is asked for its health; /health is as old as this.
    health_check_interval_seconds: float = Field(default=1.0, ge=0.05, le=60)
    # How old a copy of the signing keys may be: at most what auth reckons with before it signs with a key (CACHE_SECONDS).
    jwks_refresh_seconds: int = Field(default=60, ge=1, le=300)
    # TLS towards clients: PEM files, both or none. Read at the start.
    edge_tls_certificate_file: Path | None = None
    edge_tls_key_file: Path | None = None
    # TLS towards the services, which ask for a certificate of the suite's authority: PEM files, all or none.
    service_tls_ca_file: Path | None = None
    service_tls_certificate_file: Path | None = None
    service_tls_key_file: Path | None = None
    edge_access_log: Literal["off", "json"] = "off"
    # Worker threads of Envoy.
    edge_concurrency: int = Field(default_factory=lambda: min(os.cpu_count() or 1, 4), ge=1, le=256)

    @field_validator("edge_address", "edge_admin_address", mode="before")
    @classmethod
    def _read_address(cls, value: object) -> object:
        return Address.parse(value) if isinstance(value, str) else value

    @field_validator(
        "auth_endpoints",
        "chat_endpoints",
        "memory_endpoints",
        "sms_endpoints",
        "mcp_endpoints",
        "limiter_endpoints",
        mode="before",
    )
    @classmethod
    def _read_endpoints(cls, value: object) -> object:
        return _addresses(value)

    @field_validator("cors_allowed_origins", "session_cookies", "allowed_hosts", mode="before")
    @classmethod
    def _read_names(cls, value: object) -> object:
        return _split(value)

    @field_validator("cors_allowed_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and (not origin.startswith(("http://", "https://")) or origin.count("/") != 2):  # noqa: PLR2004
                raise ValueError(f"{origin!r} is not an origin: write https://host[:port] without a path, or *")
        return value

    @field_validator("session_cookies")
    @classmethod
    def _check_cookies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _COOKIE.fullmatch(name):
                raise ValueError(f"{name!r} is not a cookie's name: letters, digits, dot, dash and underscore")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("names no host: write * to answer every Host")
        if len(set(value)) != len(value):
            raise ValueError("names a host twice")
        for host in value:
            if host != "*" and not _HOST.fullmatch(host.removeprefix("*.")):
                raise ValueError(f"{host!r} is not a host name: write it without scheme and port, as a.b, *.b or *")
        return value

    @model_validator(mode="after")
    def _check_admin(self) -> "EdgeSettings":
        if self.edge_address == self.edge_admin_address:
            raise ValueError("EDGE_ADDRESS and EDGE_ADMIN_ADDRESS are the same")
        return self

    @model_validator(mode="after")
    def _check_certificates(self) -> "EdgeSettings":
        for prefix, kinds in (("edge", ("certificate", "key")), ("service", ("ca", "certificate", "key"))):
            names = [f"{prefix}_tls_{kind}_file" for kind in kinds]
            paths = [path for name in names if (path := getattr(self, name)) is not None]
            if paths and len(paths) < len(names):
                raise ValueError(f"{', '.join(names).upper()} go together: name all or none")
            for path in paths:
                if not path.is_file():
                    raise ValueError(f"{path}, of {names[0].upper()} and its like, is no file")
        return self

    @model_validator(mode="after")
    def _outlasts_chat(self) -> "EdgeSettings":
        deadline, heartbeat = self.generation_deadline_seconds, self.heartbeat_seconds
        if self.request_timeout_seconds <= deadline:
            raise ValueError(
                f"REQUEST_TIMEOUT_SECONDS ({self.request_timeout_seconds}) must be above GENERATION_DEADLINE_SECONDS"
                f" ({deadline:g}), or the edge gives up a reply that chat still writes: raise the one or lower the other"
            )
        least = LEAST_HEARTBEATS * heartbeat
        if self.stream_idle_timeout_seconds < least:
            raise ValueError(
                f"STREAM_IDLE_TIMEOUT_SECONDS ({self.stream_idle_timeout_seconds}) must be at least"
                f" {LEAST_HEARTBEATS} x HEARTBEAT_SECONDS ({heartbeat:g}), or the edge cuts silent streams:"
                f" set it to {math.ceil(least)} or more, or lower HEARTBEAT_SECONDS"
            )
        return self

    @property
    def has_tls(self) -> bool:
        """Whether clients speak TLS to the edge."""
        return self.edge_tls_certificate_file is not None

    def endpoints(self) -> dict[str, tuple[Address, ...]]:
        """Name of each service, as in its proto package, with where it listens."""
        return {
            "auth": self.auth_endpoints,
            "chat": self.chat_endpoints,
            "memory": self.memory_endpoints,
            "sms": self.sms_endpoints,
        }
