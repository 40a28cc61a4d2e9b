"""The way to a service's own Postgres database: a fixed pool, and transactions that know whose they are.

Every transaction says on whose behalf it runs, and row-level security holds it to that: a statement that forgets its
`where user_id` reads and writes nothing of anybody else. `check_role` refuses to start as a role that could step around.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from types import MappingProxyType

from sqlalchemy import URL, ColumnElement, TextClause, exc, func, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

_AS_USER = text("select set_config('parley.user_id', :user_id, true)")
_AS_SERVICE = text("select set_config('parley.scope', 'service', true)")
_ROLE = text(
    "select rolsuper or rolbypassrls as bypasses, exists ("
    " select from pg_class where relnamespace = current_schema()::regnamespace and relkind in ('r', 'p')"
    " and pg_has_role(relowner, 'usage')) as owns from pg_roles where rolname = current_user"
)
STATEMENT_TIMEOUT_SECONDS = 10
CONNECT_TIMEOUT_SECONDS = 5
POOL_WAIT_SECONDS = 5
# A server that vanished without a word (a dead node) is noticed within 15 s; of no meaning to a unix socket.
NOTICE_DEATH: Mapping[str, int] = MappingProxyType(
    {"keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 2, "tcp_user_timeout": 15_000}
)

DATABASE_FAILURES = (exc.DBAPIError, exc.TimeoutError)
"""What a transaction raises when the database does not answer or refuses, for the few who go on without it."""


class UnsafeRoleError(Exception):
    """The role of DATABASE_URL could step around row-level security."""


class Database:
    """A service's database. Transactions commit when their block ends well, and roll back otherwise."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    @asynccontextmanager
    async def transaction(self, *, user_id: str) -> AsyncIterator[AsyncConnection]:
        """A transaction confined to the rows of one user."""
        async with self._transaction(_AS_USER, {"user_id": user_id}) as connection:
            yield connection

    @asynccontextmanager
    async def service_transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction for the service's own work across users: sign-in, jobs, sweeps."""
        async with self._transaction(_AS_SERVICE, {}) as connection:
            yield connection

    @asynccontextmanager
    async def _transaction(self, identify: TextClause, values: Mapping[str, str]) -> AsyncIterator[AsyncConnection]:
        connection = await self._begun(identify, values)
        try:
            yield connection
            await connection.commit()
        finally:
            # Rolls back what was not committed and gives the connection back. Shielded: a task that is cancelled once
            # more meanwhile must not lose the connection to the pool.
            await asyncio.shield(connection.close())

    async def _begun(self, identify: TextClause, values: Mapping[str, str]) -> AsyncConnection:
        """A connection with the identity set. A pooled one that died meanwhile is replaced once: nothing ran on it."""
        try:
            return await self._identified(identify, values)
        except exc.DBAPIError as error:
            if not error.connection_invalidated:
                raise
        return await self._identified(identify, values)

    async def _identified(self, identify: TextClause, values: Mapping[str, str]) -> AsyncConnection:
        connection = await self.engine.connect()
        try:
            await connection.execute(identify, values)
        except BaseException:
            await asyncio.shield(connection.close())
            raise
        return connection

    async def check_role(self) -> None:
        """Raises UnsafeRoleError when the role is a superuser, bypasses row-level security or owns the tables."""
        async with self.engine.connect() as connection:
            row = (await connection.execute(_ROLE)).one()
        if row.bypasses or row.owns:
            raise UnsafeRoleError(
                "DATABASE_URL names a role that row-level security does not confine: use a plain role that neither owns "
                "the tables nor is a superuser."
            )

    async def close(self) -> None:
        """Closes every connection."""
        await self.engine.dispose()


@asynccontextmanager
async def serving_database(url: str, *, pool_size: int) -> AsyncIterator[Database]:
    """The database of a service that serves, until the block ends. Raises UnsafeRoleError like `check_role`."""
    database = open_database(url, pool_size=pool_size)
    try:
        await database.check_role()
        yield database
    finally:
        await database.close()


def interval(seconds: float) -> ColumnElement[timedelta]:
    """So many seconds, in SQL."""
    return func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def violated_constraint(error: exc.IntegrityError) -> str | None:
    """The name of the constraint that refused a statement."""
    name: str | None = getattr(getattr(error.orig, "diag", None), "constraint_name", None)
    return name


def async_url(url: str) -> URL:
    """The URL for SQLAlchemy: any `postgresql://` spelling, spoken by psycopg 3."""
    return make_url(url).set(drivername="postgresql+psycopg")


def open_database(url: str, *, pool_size: int = 10) -> Database:
    """A database with a fixed pool; connects on first use."""
    engine = create_async_engine(
        async_url(url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_WAIT_SECONDS,
        pool_pre_ping=False,
        pool_recycle=1800,
        # Errors carry bound values otherwise: message text in logs.
        hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            **NOTICE_DEATH,
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_SECONDS * 1000}"
            " -c idle_in_transaction_session_timeout=30000 -c timezone=UTC",
        },
    )
    return Database(engine)
