"""A database per service with its two roles, on the embedded server or on one that was given.

Invariant: a service connects as a role that is no superuser, cannot bypass row-level security and owns nothing; a second
role owns the database and is used by migrations only.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
from psycopg import AsyncConnection, sql

from suite.errors import SuiteError

CONNECT_SECONDS = 10
STATEMENT_MILLISECONDS = 30_000
# Asked before looking, because a failed look would stand in the server's log as an error at every first start.
_MAY_LOOK = """
    SELECT has_table_privilege(oid, 'SELECT') FROM pg_class WHERE oid = to_regclass('alembic_version')
"""


@dataclass(frozen=True, slots=True)
class Passwords:
    """The passwords of a service's two roles."""

    owner: str = field(repr=False)
    service: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServiceDatabase:
    """`url` connects as the service's plain role, `migration_url` as the owner of database and tables."""

    url: str = field(repr=False)
    migration_url: str = field(repr=False)
    service_role: str


async def prepare_database(admin_url: str, *, name: str, passwords: Passwords | str) -> ServiceDatabase:
    """Create roles `<name>_owner` and `<name>_service` and database `<name>`, or bring what exists to the same state.

    Idempotent, also when two do it at once. The admin needs CREATEROLE and CREATEDB, not more. A role of that name
    which may bypass row-level security is refused with SuiteError, as is a server that does not answer. One string as
    `passwords` serves both roles.
    """
    if isinstance(passwords, str):
        passwords = Passwords(owner=passwords, service=passwords)
    owner, service = f"{name}_owner", f"{name}_service"
    try:
        async with await _connect(admin_url) as admin:
            await admin.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (f"parley.prepare.{name}",))
            await _prepare_role(admin, owner, passwords.owner)
            await _prepare_role(admin, service, passwords.service)
            await _create_database(admin, name, owner=owner, service=service)
            async with await _connect(with_target(admin_url, database=name)) as inside:
                await _prepare_inside(inside, owner=owner, service=service)
    except psycopg.Error as error:
        raise SuiteError(f"cannot prepare database {name}: {error}") from error
    return ServiceDatabase(
        url=with_target(admin_url, database=name, login=(service, passwords.service)),
        migration_url=with_target(admin_url, database=name, login=(owner, passwords.owner)),
        service_role=service,
    )


def with_target(url: str, *, database: str, login: tuple[str, str] | None = None) -> str:
    """The URL with another database and, if given, another role and password; hosts and options stay."""
    parts = urlsplit(url)
    if not parts.scheme.startswith("postgres"):
        raise SuiteError("a database URL starts with postgresql://", exit_code=2)
    credentials, at, hosts = parts.netloc.rpartition("@")
    if login is not None:
        credentials, at = f"{quote(login[0], safe='')}:{quote(login[1], safe='')}", "@"
    return urlunsplit(("postgresql", f"{credentials}{at}{hosts}", f"/{quote(database, safe='')}", parts.query, ""))


async def is_prepared(database: ServiceDatabase, *, revision: str) -> bool:
    """Whether the tables are at this revision of the migrations and the service's role has been let in."""
    try:
        async with await _connect(database.url) as connection:
            cursor = await connection.execute(_MAY_LOOK)
            if await cursor.fetchone() != (True,):
                return False
            cursor = await connection.execute("SELECT version_num FROM alembic_version")
            return await cursor.fetchall() == [(revision,)]
    except psycopg.Error as error:
        raise SuiteError(f"cannot look into the database of {database.service_role}: {error}") from error


async def _connect(url: str) -> AsyncConnection[tuple[object, ...]]:
    database = urlsplit(url).path.lstrip("/")
    return await AsyncConnection.connect(
        with_target(url, database=database),
        autocommit=True,
        connect_timeout=CONNECT_SECONDS,
        options=f"-c statement_timeout={STATEMENT_MILLISECONDS} -c client_min_messages=warning",
    )


async def _prepare_role(admin: AsyncConnection[tuple[object, ...]], role: str, password: str) -> None:
    cursor = await admin.execute("SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = %s", (role,))
    row = await cursor.fetchone()
    if row is not None and any(row):
        raise SuiteError(f"database role {role} is a superuser or bypasses row-level security: take that from it")
    verb = sql.SQL("CREATE ROLE" if row is None else "ALTER ROLE")
    # Hashed here, so that no server log can show it.
    verifier = admin.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    await admin.execute(sql.SQL("{} {} LOGIN PASSWORD {}").format(verb, sql.Identifier(role), sql.Literal(verifier)))


async def _create_database(admin: AsyncConnection[tuple[object, ...]], name: str, *, owner: str, service: str) -> None:
    cursor = await admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
    words: Mapping[str, sql.Composable] = {
        "database": sql.Identifier(name),
        "owner": sql.Identifier(owner),
        "service": sql.Identifier(service),
    }
    if await cursor.fetchone() is None:
        await _join_owner(admin, owner)
        await admin.execute(sql.SQL("CREATE DATABASE {database} OWNER {owner} TEMPLATE template0").format(**words))
    await admin.execute(sql.SQL("REVOKE ALL ON DATABASE {database} FROM PUBLIC").format(**words))
    await admin.execute(sql.SQL("GRANT CONNECT ON DATABASE {database} TO {service}").format(**words))


async def _join_owner(admin: AsyncConnection[tuple[object, ...]], owner: str) -> None:
    """An admin that is no superuser (as managed servers give) must be a member of a role to create its database."""
    cursor = await admin.execute("SELECT 1 FROM pg_roles WHERE rolname = current_user AND rolsuper")
    if await cursor.fetchone() is None:
        await admin.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(owner)))


async def _prepare_inside(inside: AsyncConnection[tuple[object, ...]], *, owner: str, service: str) -> None:
    await inside.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    await inside.execute(sql.SQL("GRANT USAGE ON SCHEMA public TO {}").format(sql.Identifier(service)))
    cursor = await inside.execute(
        "SELECT 1 FROM pg_available_extensions WHERE name = 'vector' AND installed_version IS NULL"
    )
    if await cursor.fetchone() is not None:
        await _create_vector(inside, owner)


async def _create_vector(inside: AsyncConnection[tuple[object, ...]], owner: str) -> None:
    """A server may keep extensions to superusers; then its operator creates this one, where it is needed."""
    with suppress(psycopg.errors.InsufficientPrivilege):
        await inside.execute("CREATE EXTENSION IF NOT EXISTS vector")
        # Migrations, which run as the owner, let the service use every function; these belong to the admin.
        grant = sql.SQL("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {} WITH GRANT OPTION")
        await inside.execute(grant.format(sql.Identifier(owner)))
