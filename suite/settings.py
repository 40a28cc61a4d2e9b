"""What a person may set about the suite, read once from the environment and `.env`; the environment wins.

Invariant: everything that is wrong is said at once, by the name of its variable and without its value, which may be a
secret. An empty variable is one that is not set.
"""

import difflib
import ipaddress
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from suite.env_file import read_env_file
from suite.errors import SuiteError
from suite.ports import PortClaim
from suite.variables import KNOWN, OF_COMMANDS

ENV_FILE = Path(".env")
LOCAL = "127.0.0.1"
SERVICES = ("auth", "memory", "chat", "sms")  # in the order in which they depend on each other
GREATEST_PORT = 65_535


def _is_postgres(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().startswith(("postgresql://", "postgres://")):
        raise ValueError("must start with postgresql://")
    return value


def _is_redis(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must start with redis://, rediss:// or unix://")
    return value


def _is_address(value: str) -> str:
    host = LOCAL if value == "localhost" else value.removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        raise ValueError("must be an IP address: 127.0.0.1, or 0.0.0.0 for every address of this machine") from None


Port = Annotated[int, Field(ge=1, le=GREATEST_PORT)]
Host = Annotated[str, AfterValidator(_is_address)]
Processes = Annotated[int, Field(ge=1, le=16)]
PostgresUrl = Annotated[SecretStr, AfterValidator(_is_postgres)]
RedisUrl = Annotated[SecretStr, AfterValidator(_is_redis)]


@dataclass(frozen=True, slots=True)
class ServicePlaces:
    """Where the processes of one service listen, and the databases that were given for it."""

    name: str
    port: int
    metrics_port: int
    processes: int
    database_url: str | None = field(repr=False)
    migration_database_url: str | None = field(repr=False)

    @property
    def target(self) -> str:
        """The gRPC target of all its processes."""
        return f"ipv4:{self.endpoints}"

    @property
    def endpoints(self) -> str:
        """host:port of all its processes, separated by commas."""
        return self._addresses(self.port)

    @property
    def metrics_endpoints(self) -> str:
        """host:port of all its processes' metrics, separated by commas."""
        return self._addresses(self.metrics_port)

    def _addresses(self, first_port: int) -> str:
        return ",".join(f"{LOCAL}:{first_port + index}" for index in range(self.processes))

    def claims(self) -> Iterator[PortClaim]:
        """Every port it takes."""
        for index in range(self.processes):
            yield PortClaim(LOCAL, self.port + index, f"PARLEY_{self.name.upper()}_PORT")
            yield PortClaim(LOCAL, self.metrics_port + index, f"PARLEY_{self.name.upper()}_METRICS_PORT")


class SuiteSettings(BaseSettings):
    """The suite's own settings; what services and edge know besides is in suite.variables."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)

    parley_data: Path = Path(".parley")
    parley_host: Host = LOCAL
    parley_certificates: Path | None = None
    parley_edge_port: Port = 8080
    parley_edge_admin_port: Port = 9901
    parley_auth_port: Port = 50051
    parley_auth_metrics_port: Port = 9151
    parley_auth_processes: Processes = 1
    parley_chat_port: Port = 50061
    parley_chat_metrics_port: Port = 9161
    parley_chat_mcp_port: Port = 9261
    parley_chat_processes: Processes = 1
    parley_memory_port: Port = 50071
    parley_memory_metrics_port: Port = 9171
    parley_memory_processes: Processes = 1
    parley_limiter_port: Port = 50091
    parley_limiter_metrics_port: Port = 9191
    parley_sms_port: Port = 50081
    parley_sms_metrics_port: Port = 9181
    parley_sms_processes: Processes = 1
    parley_simulator_port: Port = 8099
    database_url: PostgresUrl | None = None
    auth_database_url: PostgresUrl | None = None
    auth_migration_database_url: PostgresUrl | None = None
    chat_database_url: PostgresUrl | None = None
    chat_migration_database_url: PostgresUrl | None = None
    memory_database_url: PostgresUrl | None = None
    memory_migration_database_url: PostgresUrl | None = None
    sms_database_url: PostgresUrl | None = None
    sms_migration_database_url: PostgresUrl | None = None
    redis_url: RedisUrl | None = None
    openai_api_key: SecretStr | None = None
    openai_base_url: str | None = Field(default=None, pattern=r"^https?://\S+$")

    @property
    def is_simulated(self) -> bool:
        """Whether no provider was named, so that the simulator answers."""
        return self.openai_api_key is None and self.openai_base_url is None

    @property
    def data(self) -> Path:
        """The data folder, absolute."""
        return self.parley_data.expanduser().absolute()

    def service(self, name: str) -> ServicePlaces:
        """One service's part of the settings."""
        urls = [getattr(self, f"{name}_{kind}") for kind in ("database_url", "migration_database_url")]
        own, migration = (None if url is None else url.get_secret_value() for url in urls)
        return ServicePlaces(
            name=name,
            port=getattr(self, f"parley_{name}_port"),
            metrics_port=getattr(self, f"parley_{name}_metrics_port"),
            processes=getattr(self, f"parley_{name}_processes"),
            database_url=own,
            migration_database_url=migration,
        )

    @property
    def mcp_endpoints(self) -> str:
        """host:port where each process of chat serves MCP, separated by commas."""
        return ",".join(f"{claim.host}:{claim.port}" for claim in self._mcp_claims())

    def _mcp_claims(self) -> list[PortClaim]:
        ports = range(self.parley_chat_mcp_port, self.parley_chat_mcp_port + self.parley_chat_processes)
        return [PortClaim(LOCAL, port, "PARLEY_CHAT_MCP_PORT") for port in ports]

    def needs_server(self) -> bool:
        """Whether a service has no database of its own, so that one is prepared on a server."""
        return any(self.service(name).database_url is None for name in SERVICES)

    def claims(self) -> list[PortClaim]:
        """Every port that the suite takes."""
        edge = PortClaim(self.parley_host, self.parley_edge_port, "PARLEY_EDGE_PORT")
        admin = PortClaim(LOCAL, self.parley_edge_admin_port, "PARLEY_EDGE_ADMIN_PORT")
        simulator = [PortClaim(LOCAL, self.parley_simulator_port, "PARLEY_SIMULATOR_PORT")] if self.is_simulated else []
        limiter = [
            PortClaim(LOCAL, self.parley_limiter_port, "PARLEY_LIMITER_PORT"),
            PortClaim(LOCAL, self.parley_limiter_metrics_port, "PARLEY_LIMITER_METRICS_PORT"),
        ]
        services = [claim for name in SERVICES for claim in self.service(name).claims()]
        return [edge, admin, *limiter, *simulator, *services, *self._mcp_claims()]


def read_environment(env_file: Path = ENV_FILE) -> dict[str, str]:
    """The environment on top of `.env`, without empty variables. SuiteError for a `.env` that cannot be right."""
    everything = frozenset(_known().union(*KNOWN.values()))
    merged = {**_not_empty(read_env_file(env_file, known=everything)), **_not_empty(os.environ)}
    return {(name.upper() if name.upper() in _known() else name): value for name, value in merged.items()}


def read_settings(environment: Mapping[str, str]) -> SuiteSettings:
    """The settings, or SuiteError (exit code 2) that names everything which is wrong with them."""
    settings, problems = check_settings(environment)
    if settings is None or problems:
        raise SuiteError(bad_settings(problems), exit_code=2)
    return settings


def check_settings(environment: Mapping[str, str]) -> tuple[SuiteSettings | None, list[str]]:
    """The settings, if each is valid by itself, and every problem with them."""
    problems = list(_unknown(environment))
    own = {name: environment[name.upper()] for name in SuiteSettings.model_fields if name.upper() in environment}
    try:
        settings = SuiteSettings.model_validate(own)
    except ValidationError as error:
        return None, [*problems, *explain(error)]
    return settings, [*problems, *_halves(settings), *_overlaps(settings)]


def bad_settings(problems: list[str]) -> str:
    """The one line."""
    return f"bad settings: {'; '.join(problems)}"


def explain(error: ValidationError) -> list[str]:
    """`VARIABLE: what is wrong`, for each; never the value."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return [f"{'.'.join(map(str, item['loc'])).upper() or 'settings'}: {_plain(item['msg'])}" for item in found]


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ").removeprefix("Input ")


def _not_empty(variables: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if value}


def _known() -> set[str]:
    return {name.upper() for name in SuiteSettings.model_fields}


def _unknown(environment: Mapping[str, str]) -> Iterator[str]:
    """PARLEY_* is ours alone, so a name that nobody knows is a slip of the finger."""
    for name in sorted(environment):
        if name.startswith("PARLEY_") and name not in _known() | OF_COMMANDS:
            near = difflib.get_close_matches(name, _known(), n=1)
            yield f"{name}: no such setting{f', did you mean {near[0]}?' if near else '; see .env.example'}"


def _halves(settings: SuiteSettings) -> Iterator[str]:
    for name in SERVICES:
        service = settings.service(name)
        own, migration = f"{name.upper()}_DATABASE_URL", f"{name.upper()}_MIGRATION_DATABASE_URL"
        if service.database_url and not service.migration_database_url:
            yield f"{migration}: needed with {own}, the URL of the role that owns the tables"
        if service.migration_database_url and not service.database_url:
            yield f"{own}: needed with {migration}, the URL of the service's plain role"


def _overlaps(settings: SuiteSettings) -> Iterator[str]:
    claims = settings.claims()
    for claim in claims:
        if claim.port > GREATEST_PORT:
            yield f"{claim.variable}: its last process would need port {claim.port}"
    said = set()
    for one, other in combinations(claims, 2):
        pair = (one.variable, other.variable)
        if one.port == other.port and one.variable != other.variable and pair not in said:
            said.add(pair)
            yield f"{other.variable}: port {other.port} is taken by {one.variable}, process numbers included"
