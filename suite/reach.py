"""The services' databases, for a command beside the suite: those of a running one, of one that is stopped, or given by URL.

Invariant: a command connects as a service's own plain role, and never moves a database to another revision.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from suite.credentials import Credentials
from suite.databases import ServiceDatabase, is_prepared, with_target
from suite.errors import SuiteError
from suite.folder import DataFolder, FolderTakenError
from suite.plan import newest_revision
from suite.postgres import EmbeddedPostgres, server_url
from suite.settings import read_settings


@asynccontextmanager
async def reached(environment: Mapping[str, str], services: Sequence[str]) -> AsyncIterator[Mapping[str, str]]:
    """The URL of each service's database, while the block lasts; Postgres is started for it where the suite does not run.

    `<SERVICE>_DATABASE_URL` comes first, then DATABASE_URL and the embedded server with the passwords of the data folder.
    SuiteError where there is no database of this release.
    """
    async with AsyncExitStack() as stack:
        given = {name: url for name in services if (url := environment.get(f"{name.upper()}_DATABASE_URL"))}
        missing = [name for name in services if name not in given]
        found = {**given, **(await _of_folder(environment, missing, stack) if missing else {})}
        for name, url in found.items():
            await _check(name, url)
        yield found


async def _of_folder(environment: Mapping[str, str], services: Sequence[str], stack: AsyncExitStack) -> dict[str, str]:
    settings = read_settings(environment)
    folder = DataFolder(settings.data)
    if not folder.credentials.exists():
        raise SuiteError(
            f"there is no suite in {folder.path}: set PARLEY_DATA to its data folder, start it once (make run), or give"
            f" {' and '.join(f'{name.upper()}_DATABASE_URL' for name in services)}",
            exit_code=2,
        )
    if settings.database_url is not None:
        server = settings.database_url.get_secret_value()
    else:
        server = await _embedded(folder, stack)
    credentials = Credentials(folder.credentials)
    return {
        name: with_target(
            server,
            database=f"parley_{name}",
            login=(f"parley_{name}_service", credentials.database_passwords(name).service),
        )
        for name in services
    }


async def _embedded(folder: DataFolder, stack: AsyncExitStack) -> str:
    """The server of the suite that runs, or one of our own, which keeps a suite from starting meanwhile."""
    if not (folder.postgres / "cluster").exists():
        raise SuiteError(f"there is no database in {folder.path}: start the suite there once (make run)", exit_code=2)
    try:
        stack.enter_context(folder.lock())
    except FolderTakenError:
        return server_url(folder.postgres)
    server = await EmbeddedPostgres.start(folder.postgres, log_file=folder.logs / "postgres.log")
    stack.push_async_callback(server.stop)
    return server.admin_url


async def _check(name: str, url: str) -> None:
    database = ServiceDatabase(url=url, migration_url="", service_role=name)
    if not await is_prepared(database, revision=newest_revision(name)):
        raise SuiteError(f"the database of {name} is not that of this release: start this release once, or migrate it")
