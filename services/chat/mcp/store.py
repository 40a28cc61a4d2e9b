"""Every statement about the MCP servers that users keep.

Owns the sealing of their headers: bound to the row and its user, opened only for a turn. Invariants: a user keeps 20 servers
at most; the headers go to the host that they were given for, and are dropped with it; what is another user's is not there.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from typing import Any, Final, Never

import httpx2
import orjson
import sqlalchemy as sa
import structlog
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.mcp.records import McpServer, ServerChanges, ServerDraft
from services.chat.mcp.schema import LABEL_INDEX, mcp_servers
from services.chat.options import McpServerChoice
from services.chat.refusals import request_id_reused
from services.runtime.database import Database, violated_constraint
from services.runtime.errors import AlreadyExists, NotFound, ResourceExhausted
from services.runtime.ids import new_id
from services.runtime.sealing import Seal, SealError

log = structlog.get_logger(__name__)

MOST_SERVERS: Final = 20
_BELIEVED_SECONDS: Final = 5.0
_MOST_KNOWN: Final = 10_000
# Of the pool's connections: what does not come often must not keep turns from being saved.
_READS_AT_ONCE: Final = 2
_COLUMNS: Final = tuple(mcp_servers.c[field.name] for field in fields(McpServer))
# One creation of a user at a time, so that the count holds.
_LOCK: Final = sa.text("select pg_advisory_xact_lock(hashtextextended('mcp_servers ' || :user_id, 0))")


@dataclass(frozen=True, slots=True)
class Offered:
    """The enabled servers of a user, and the labels of those whose headers cannot be opened any more."""

    servers: Sequence[McpServerChoice]
    sealed_labels: Sequence[str]


_NOTHING_OFFERED: Final = Offered((), ())


class _Serverless:
    """The users of whom it was read that they keep no enabled server, 10,000 at most; believed for five seconds.

    `mark` before the reading: what was changed since is not noted.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, float] = OrderedDict()
        self._changes = 0

    def mark(self) -> int:
        return self._changes

    def note(self, user_id: str, mark: int) -> None:
        if mark == self._changes:
            self._known[user_id] = time.monotonic() + _BELIEVED_SECONDS
            self._known.move_to_end(user_id)
            while len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)

    def forget(self, user_id: str) -> None:
        self._changes += 1
        self._known.pop(user_id, None)

    def __contains__(self, user_id: str) -> bool:
        return self._known.get(user_id, 0.0) > time.monotonic()


class McpServerStore:
    """The servers in the database. Every method is confined to one user and is one transaction.

    What a user changes here, a turn of this process sees at once; another process that knows of no server of the user's
    sees the first within five seconds.
    """

    def __init__(self, database: Database, seal: Seal) -> None:
        self._database = database
        self._seal = seal
        self._serverless = _Serverless()
        self._gate = asyncio.Semaphore(_READS_AT_ONCE)

    @asynccontextmanager
    async def _changing(self, user_id: str) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._database.transaction(user_id=user_id) as connection:
                yield connection
        finally:
            self._serverless.forget(user_id)

    async def keep_server(self, draft: ServerDraft, *, user_id: str, request_id: str | None, request: bytes) -> McpServer:
        """Keeps a server, or returns the one that the request id created before.

        Raises AlreadyExists (LABEL_TAKEN, or REQUEST_ID_REUSED when the id named another `request`), ResourceExhausted.
        """
        server_id = new_id()
        values = {"id": server_id, "user_id": user_id, **_values(draft), **self._sealed(draft.headers, server_id, user_id)}
        if request_id is not None:
            values |= {"request_id": request_id, "request_digest": self._seal.fingerprint(request)}
        async with self._changing(user_id) as connection:
            await connection.execute(_LOCK, {"user_id": user_id})
            if request_id is not None and (created := await _created_by(connection, user_id, request_id)) is not None:
                if not self._seal.is_fingerprint(created["request_digest"], request):
                    raise request_id_reused(request_id)
                return _server_of(created)
            await _check_room(connection, user_id)
            return await _written(connection, mcp_servers.insert().values(values), draft.label)

    async def list_servers(self, *, user_id: str, limit: int, after: str | None) -> list[McpServer]:
        """The servers after a label (in lower case), by label."""
        by_label = sa.func.lower(mcp_servers.c.label)
        statement = sa.select(*_COLUMNS).where(mcp_servers.c.user_id == user_id).order_by(by_label).limit(limit)
        if after is not None:
            statement = statement.where(by_label > after)
        async with self._database.transaction(user_id=user_id) as connection:
            return [_server_of(row) for row in (await connection.execute(statement)).mappings()]

    async def read_server(self, server_id: str, *, user_id: str) -> McpServer:
        """One server. Raises NotFound."""
        async with self._database.transaction(user_id=user_id) as connection:
            row = (await connection.execute(sa.select(*_COLUMNS).where(_is(server_id, user_id)))).mappings().one_or_none()
        return _server_of(row) if row is not None else _not_found(server_id)

    async def change_server(self, server_id: str, changes: ServerChanges, *, user_id: str) -> McpServer:
        """Changes a server. A URL at another origin drops the headers unless new ones come with it.

        Idempotent. Raises NotFound, AlreadyExists (LABEL_TAKEN).
        """
        locked = sa.select(mcp_servers.c.url).where(_is(server_id, user_id)).with_for_update()
        async with self._changing(user_id) as connection:
            url = (await connection.execute(locked)).scalar_one_or_none()
            if url is None:
                _not_found(server_id)
            values = {name: value for name, value in _values(changes).items() if value is not None}
            headers = changes.headers
            if headers is None and changes.url is not None and _origin(changes.url) != _origin(url):
                headers = {}
            if headers is not None:
                values |= self._sealed(headers, server_id.lower(), user_id)
            change = mcp_servers.update().where(_is(server_id, user_id)).values(**values, update_time=sa.func.now())
            return await _written(connection, change, changes.label or "")

    async def delete_server(self, server_id: str, *, user_id: str) -> None:
        """Deletes a server with its secrets. Raises NotFound."""
        async with self._database.transaction(user_id=user_id) as connection:
            gone = await connection.execute(mcp_servers.delete().where(_is(server_id, user_id)))
        if gone.rowcount == 0:
            _not_found(server_id)

    async def offered_servers(self, *, user_id: str) -> Offered:
        """The enabled servers with their headers, for a turn of this user."""
        if user_id in self._serverless:
            return _NOTHING_OFFERED
        mark = self._serverless.mark()
        statement = (
            sa.select(*_COLUMNS, mcp_servers.c.sealed_headers)
            .where(mcp_servers.c.user_id == user_id, mcp_servers.c.is_enabled)
            .order_by(sa.func.lower(mcp_servers.c.label))
            .limit(MOST_SERVERS)
        )
        async with self._gate, self._database.transaction(user_id=user_id) as connection:
            rows = (await connection.execute(statement)).mappings().all()
        if not rows:
            self._serverless.note(user_id, mark)
        found: list[McpServerChoice] = []
        sealed: list[str] = []
        for row in rows:
            try:
                found.append(_choice_of(row, self._opened(row["sealed_headers"], row["id"], user_id)))
            except SealError:
                log.warning("mcp_server.headers_lost", mcp_server_id=row["id"], user_id=user_id)
                sealed.append(row["label"])
        return Offered(found, sealed)

    def _sealed(self, headers: Mapping[str, str], server_id: str, user_id: str) -> dict[str, Any]:
        if not headers:
            return {"header_names": [], "sealed_headers": None}
        sealed = self._seal.seal(orjson.dumps(dict(headers)), context=_context(server_id, user_id))
        return {"header_names": sorted(headers), "sealed_headers": sealed}

    def _opened(self, sealed: bytes | None, server_id: str, user_id: str) -> dict[str, str]:
        if sealed is None:
            return {}
        opened: dict[str, str] = orjson.loads(self._seal.open(sealed, context=_context(server_id, user_id)))
        return opened


async def _created_by(connection: AsyncConnection, user_id: str, request_id: str) -> RowMapping | None:
    statement = sa.select(*_COLUMNS, mcp_servers.c.request_digest).where(
        mcp_servers.c.user_id == user_id, mcp_servers.c.request_id == request_id
    )
    return (await connection.execute(statement)).mappings().one_or_none()


async def _check_room(connection: AsyncConnection, user_id: str) -> None:
    statement = sa.select(sa.func.count()).where(mcp_servers.c.user_id == user_id)
    if (await connection.execute(statement)).scalar_one() >= MOST_SERVERS:
        raise ResourceExhausted(
            f"You keep {MOST_SERVERS} MCP servers, as many as one may: delete some.",
            reasons.ERROR_REASON_LIMIT_REACHED,
            metadata={"kind": "mcp_servers", "limit": str(MOST_SERVERS)},
        )


async def _written(connection: AsyncConnection, statement: sa.sql.dml.Insert | sa.sql.dml.Update, label: str) -> McpServer:
    try:
        return _server_of((await connection.execute(statement.returning(*_COLUMNS))).mappings().one())
    except sa.exc.IntegrityError as error:
        if violated_constraint(error) != LABEL_INDEX:
            raise
        raise AlreadyExists(
            f"You keep another MCP server under the label {label}.",
            reasons.ERROR_REASON_LABEL_TAKEN,
            metadata={"label": label},
        ) from error


def _values(given: ServerDraft | ServerChanges) -> dict[str, Any]:
    tools = given.allowed_tools
    return {
        "label": given.label,
        "url": given.url,
        "allowed_tools": None if tools is None else list(dict.fromkeys(tools)),
        "approval": given.approval,
        "is_enabled": given.is_enabled,
    }


def _server_of(row: RowMapping) -> McpServer:
    return McpServer(**{column.name: row[column.name] for column in _COLUMNS})


def _choice_of(row: RowMapping, headers: Mapping[str, str]) -> McpServerChoice:
    return McpServerChoice(row["label"], row["url"], headers, row["allowed_tools"], row["approval"])


def _is(server_id: str, user_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(mcp_servers.c.id == server_id, mcp_servers.c.user_id == user_id)


def _context(server_id: str, user_id: str) -> bytes:
    return f"mcp_servers {server_id} {user_id}".encode()


def _origin(url: str) -> tuple[str, str, int | None]:
    parsed = httpx2.URL(url)
    return parsed.scheme, parsed.host, parsed.port


def _not_found(server_id: str) -> Never:
    raise NotFound(
        "You have no such MCP server.",
        reasons.ERROR_REASON_MCP_SERVER_NOT_FOUND,
        metadata={"mcp_server_id": server_id},
    )
