"""Connections that a busy path keeps: what taking one from the pool costs is paid once, not for every transaction."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.scopes import as_user

if TYPE_CHECKING:
    from services.runtime.database import Database

# So that the pool gets to look at the age of a connection that a lane holds.
_HELD_SECONDS = 300


class UserTransaction:
    """A transaction on a connection of a lane: `connection` is what SQLAlchemy knows of it."""

    __slots__ = ("_driver", "_on_statement", "connection")

    def __init__(
        self,
        connection: AsyncConnection,
        driver: "psycopg.AsyncConnection[Any]",
        on_statement: Callable[[str], None] | None,
    ) -> None:
        self.connection = connection
        self._driver = driver
        self._on_statement = on_statement

    async def fetch_one(self, statement: bytes, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """Runs a statement in psycopg's own form (`%(name)s`) and returns its first row. Raises what SQLAlchemy would."""
        if self._on_statement is not None:
            self._on_statement(statement.decode())
        with _as_sqlalchemy(self.connection):
            cursor = await self._driver.execute(statement, values)
            row: tuple[Any, ...] | None = await cursor.fetchone()
        return row

    async def commit(self) -> None:
        """For the lane: ends the transaction well."""
        if self.connection.in_transaction():
            await self.connection.commit()
        else:
            with _as_sqlalchemy(self.connection):
                await self._driver.commit()


class Lane:
    """A few connections for a path that is run often: without what taking one from the pool costs each time.

    At most `size` transactions at a time; the others wait here, in order and as long as it takes, instead of at the
    connection pool, whose patience is short.
    """

    def __init__(self, database: "Database", *, size: int) -> None:
        self._database = database
        self._gate = asyncio.Semaphore(size)
        self._idle: list[tuple[AsyncConnection, psycopg.AsyncConnection[Any], float]] = []

    @asynccontextmanager
    async def transaction(self, *, user_id: str) -> AsyncIterator[UserTransaction]:
        """As that of the database; statements may also be given to the driver as they are."""
        begin = as_user(user_id)
        async with self._gate:
            connection, driver, since = await self._begun(begin)
            try:
                transaction = UserTransaction(connection, driver, self._database.on_driver_statement)
                yield transaction
                await transaction.commit()
            except BaseException:
                await asyncio.shield(_given_back(connection, driver))
                raise
            if asyncio.get_running_loop().time() - since < _HELD_SECONDS:
                self._idle.append((connection, driver, since))
            else:
                await asyncio.shield(connection.close())

    async def _begun(self, begin: str) -> tuple[AsyncConnection, "psycopg.AsyncConnection[Any]", float]:
        """A connection with the identity set: one that is held, if that lives, or one of the pool."""
        if self._idle:
            held = self._idle.pop()
            connection, driver, _ = held
            try:
                with _as_sqlalchemy(connection):
                    await driver.execute(begin.encode())
            except BaseException as error:
                await asyncio.shield(_given_back(connection, driver))
                # Nothing ran on it: one that died meanwhile is replaced.
                if not isinstance(error, exc.OperationalError):
                    raise
            else:
                return held
        connection = await self._database.begun(begin)
        raw = (await connection.get_raw_connection()).driver_connection
        if not isinstance(raw, psycopg.AsyncConnection):
            raise TypeError("the database is not spoken to by psycopg")
        return connection, raw, asyncio.get_running_loop().time()

    async def close(self) -> None:
        """Gives the connections back."""
        while self._idle:
            connection, driver, _ = self._idle.pop()
            await _given_back(connection, driver)


@contextmanager
def _as_sqlalchemy(connection: AsyncConnection) -> Iterator[None]:
    """The driver's errors as SQLAlchemy raises them: without values, and without the statement."""
    try:
        yield
    except psycopg.Error as error:
        raise exc.DBAPIError.instance(
            None, None, error, psycopg.Error, hide_parameters=True, dialect=connection.dialect
        ) from error


async def _given_back(connection: AsyncConnection, driver: "psycopg.AsyncConnection[Any]") -> None:
    """Rolls back what was not committed, and gives the connection back to the pool, if it is still of use."""
    if driver.closed:
        await connection.invalidate()
    await connection.close()
