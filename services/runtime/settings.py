"""The settings that every service has, and the reading of settings: once, in `__main__`, from the environment.

Configurability is kept small on purpose. A service's own settings subclass these. Secrets have no default and never print.
"""

import re
import sys
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from services.runtime.log import LogFormat
from services.runtime.tls import TlsSettings

S = TypeVar("S", bound=BaseSettings)

_ADDRESS = re.compile(r"(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):(\d{1,5})")
_LAST_PORT = 65_535


def _address(value: str) -> str:
    match = _ADDRESS.fullmatch(value)
    if match is None or int(match[1]) > _LAST_PORT:
        raise ValueError("must be host:port, like 127.0.0.1:50051")
    return value


def _postgres_url(value: SecretStr) -> SecretStr:
    try:
        scheme = make_url(value.get_secret_value()).drivername
    except (ArgumentError, ValueError):
        scheme = ""
    if not scheme.startswith("postgres"):
        raise ValueError("must be a URL, like postgresql://role:password@host:5432/database")
    return value


Address = Annotated[str, AfterValidator(_address)]
PostgresUrl = Annotated[SecretStr, AfterValidator(_postgres_url)]


class ServerSettings(TlsSettings):
    """What it takes to be a process of the suite."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    listen_address: Address
    """Where gRPC is served, host:port."""
    metrics_address: Address
    """Where Prometheus metrics are served, host:port."""
    database_url: PostgresUrl
    """The service's own database, as the plain role that row-level security confines."""
    database_pool_size: int = Field(default=16, ge=4, le=200)
    """Connections that a process keeps, some of them for its busiest paths alone. Fixed: overflow connections cost Postgres
    more than a short wait costs a call.
    """
    drain_wait_seconds: float = Field(default=0.5, ge=0, le=60)
    """After NOT_SERVING is told and before new calls are refused: time for load balancers to notice."""
    drain_seconds: float = Field(default=10, ge=0, le=600)
    """How long open calls may go on at a stop."""
    slow_call_seconds: float = Field(default=2, gt=0)
    """Calls slower than this are logged as `rpc.slow`."""
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    """Least level of our own log lines."""
    log_format: LogFormat = "auto"
    """`text`, `json`, or `auto`: text in a terminal."""


class PeerSettings(TlsSettings):
    """What it takes to verify identities and to call other services; every service but auth."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    auth_target: str = Field(min_length=1)
    """gRPC target of auth: `dns:///auth:50051`, or `ipv4:127.0.0.1:50051,127.0.0.1:50052`."""
    workload_credential_file: str = Field(min_length=1)
    """File with the secret by which auth knows this service."""
    ended_sessions_grace_seconds: float = Field(default=60, ge=5)
    """How long identities are accepted after auth was last heard. A partition from auth cannot hide a logout for longer."""
    peer_timeout_seconds: float = Field(default=5, gt=0)
    """Deadline of a call to another service, unless the call says otherwise or its caller has less time left."""


def read_settings(settings_type: type[S]) -> S:
    """The settings from the environment; ends the process with code 2 when one is missing or malformed."""
    try:
        return settings_type()
    except ValidationError as error:
        print(f"bad settings: {explain(error)}", file=sys.stderr)  # noqa: T201
    except SettingsError as error:
        # A list or mapping that is not JSON; names the field.
        print(f"bad settings: {error}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


def explain(error: ValidationError) -> str:
    """Every bad variable and what is wrong with it, in one line, without any value: a value may be a secret."""
    found = [(".".join(map(str, item["loc"])).upper(), item["msg"]) for item in error.errors(include_input=False)]
    return "; ".join(f"{variable}: {problem}" for variable, problem in found)


class RedisSettings(BaseSettings):
    """How a service reaches Redis."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    redis_url: SecretStr
    """The Redis of the suite. It may be away; it must be named."""
    redis_timeout_seconds: float = Field(default=0.1, gt=0, le=5)
    """How long one operation on Redis may take, connecting included. Longer costs more than doing without."""
    redis_retry_seconds: float = Field(default=1, gt=0, le=60)
    """After a failure Redis is left alone for this long."""
    redis_connections: int = Field(default=20, ge=1, le=1000)
    """Connections to Redis that a process may hold."""

    @field_validator("redis_url")
    @classmethod
    def _names_a_redis(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        return url
