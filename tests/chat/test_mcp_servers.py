"""McpServerService: the servers that a user keeps, and their secrets, which go in and never come out."""

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from psycopg import sql
from sqlalchemy import event
from structlog.testing import capture_logs

from parley.chat.v1 import mcp_server_pb2, mcp_server_pb2_grpc
from services.chat.mcp.addresses import Addresses
from services.chat.mcp.store import MOST_SERVERS, McpServerStore
from services.chat.mcp_servicer import McpServerServicer
from services.runtime.database import Database, open_database
from services.runtime.sealing import Seal
from services.runtime.server import GrpcServer, Mount
from suite.databases import ServiceDatabase
from tests.chat.mcp_peers import SECRET
from tests.chat.service import refusal
from tests.issuer import Issuer, Metadata

URL = "https://1.1.1.1/mcp"
Create = mcp_server_pb2.CreateMcpServerRequest
Update = mcp_server_pb2.UpdateMcpServerRequest


class User:
    """A signed-in user."""

    def __init__(self, stub: mcp_server_pb2_grpc.McpServerServiceStub, metadata: Metadata, user_id: str) -> None:
        self.id = user_id
        self._stub = stub
        self._more: dict[str, Any] = {"metadata": metadata, "timeout": 10}

    async def create(self, label: str = "notes", url: str = URL, **fields: Any) -> mcp_server_pb2.McpServer:
        return await self._stub.CreateMcpServer(Create(label=label, url=url, **fields), **self._more)

    async def update(self, server_id: str, *, mask: list[str] | None = None, **fields: Any) -> mcp_server_pb2.McpServer:
        asked = Update(mcp_server_id=server_id, update_mask=None if mask is None else FieldMask(paths=mask), **fields)
        return await self._stub.UpdateMcpServer(asked, **self._more)

    async def get(self, server_id: str) -> mcp_server_pb2.McpServer:
        return await self._stub.GetMcpServer(mcp_server_pb2.GetMcpServerRequest(mcp_server_id=server_id), **self._more)

    async def delete(self, server_id: str) -> mcp_server_pb2.DeleteMcpServerResponse:
        asked = mcp_server_pb2.DeleteMcpServerRequest(mcp_server_id=server_id)
        return await self._stub.DeleteMcpServer(asked, **self._more)

    async def list(self, **fields: Any) -> mcp_server_pb2.ListMcpServersResponse:
        return await self._stub.ListMcpServers(mcp_server_pb2.ListMcpServersRequest(**fields), **self._more)


class Service:
    """The service on a real server and database."""

    def __init__(self, database: Database, issuer: Issuer, channel: grpc.aio.Channel, store: McpServerStore) -> None:
        self.database = database
        self.store = store
        self._issuer = issuer
        self._stub = mcp_server_pb2_grpc.McpServerServiceStub(channel)

    def user(self) -> User:
        user_id = str(uuid.uuid4())
        return User(self._stub, self._issuer.as_user(user_id), user_id)

    async def headers_of(self, user: User) -> dict[str, dict[str, str]]:
        """What the user's servers would be sent."""
        offered = await self.store.offered_servers(user_id=user.id)
        return {one.label: dict(one.headers) for one in offered.servers}


@asynccontextmanager
async def running(database: ServiceDatabase, issuer: Issuer, *, allow_private: bool = False) -> AsyncIterator[Service]:
    pool = open_database(database.url, pool_size=8)
    addresses = Addresses(allow_private=allow_private, timeout_seconds=2)
    store = McpServerStore(pool, Seal([b"k" * 32]))
    mount = Mount(
        mcp_server_pb2_grpc.add_McpServerServiceServicer_to_server,
        McpServerServicer(store, addresses),
        mcp_server_pb2.DESCRIPTOR.services_by_name["McpServerService"],
    )
    server = GrpcServer(address="127.0.0.1:0", mounts=[mount], verifier=issuer.verifier("chat"))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as channel:
        yield Service(pool, issuer, channel, store)
    await server.stop(wait_seconds=0, drain_seconds=0.1)
    await pool.close()
    addresses.close()


@pytest.fixture
async def service(database: ServiceDatabase, issuer: Issuer) -> AsyncIterator[Service]:
    async with running(database, issuer) as service:
        yield service


@pytest.fixture
def user(service: Service) -> User:
    return service.user()


class _Keeping(logging.Handler):
    def __init__(self, records: list[Any]) -> None:
        super().__init__(logging.DEBUG)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


@pytest.fixture
def said() -> Iterator[list[Any]]:
    """Every log line, ours and those of libraries, at any level."""
    records: list[Any] = []
    handler = _Keeping(records)
    logging.getLogger().addHandler(handler)
    with capture_logs() as lines:
        yield [lines, records]
    logging.getLogger().removeHandler(handler)


async def test_a_server_is_kept_and_told_without_its_secrets(service: Service, user: User) -> None:
    created = await user.create(headers={"Authorization": f"Bearer {SECRET}", "X-Team": "7"}, allowed_tools=["add", "add"])
    assert (created.label, created.url, list(created.header_names)) == ("notes", URL, ["Authorization", "X-Team"])
    assert (list(created.allowed_tools), created.approval, created.enabled) == (["add"], "never", True)
    assert created.create_time == created.update_time
    assert SECRET not in str(created)
    assert await user.get(created.id) == created
    assert list((await user.list()).mcp_servers) == [created]
    assert await service.headers_of(user) == {"notes": {"Authorization": f"Bearer {SECRET}", "X-Team": "7"}}


async def test_a_secret_is_in_no_table_no_log_line_and_no_refusal(
    user: User, database: ServiceDatabase, said: list[Any]
) -> None:
    created = await user.create(headers={"x-key": SECRET}, request_id="once")
    await user.create(headers={"x-key": SECRET}, request_id="once")
    await user.update(created.id, headers={"x-key": f"{SECRET}-2"})
    refused = await refusal(user.create("other", headers={"x-key": f"{SECRET}\u00e9"}))
    again = await refusal(user.create(headers={"x-key": f"other {SECRET}"}, request_id="once"))
    wrong = await refusal(user.create("other", f"https://u:{SECRET}@1.1.1.1/"))
    taken = await refusal(user.create("NOTES", headers={"x-key": SECRET}))
    assert SECRET not in f"{refused} {again} {wrong} {taken}"
    assert SECRET not in json.dumps(said[0], default=str)
    assert not [record for record in said[1] if SECRET in f"{record.getMessage()} {record.args} {record.exc_text}"]
    async with await psycopg.AsyncConnection.connect(database.migration_url) as connection:
        names = await (
            await connection.execute("select table_name from information_schema.tables where table_schema = 'public'")
        ).fetchall()
        assert ("mcp_servers",) in names
        for (name,) in names:
            everything = sql.SQL("select t::text from {} t").format(sql.Identifier(name))
            rows = await (await connection.execute(everything)).fetchall()
            assert not [row for row in rows if SECRET in str(row) or SECRET.encode().hex() in str(row)], name


async def test_the_same_request_id_creates_once_whenever_it_comes(user: User) -> None:
    first = await user.create(request_id="r1", headers={"x-key": SECRET})
    assert await user.create(request_id="r1", headers={"x-key": SECRET}) == first
    made = await asyncio.gather(*(user.create("many", request_id="r2") for _ in range(5)))
    assert len({one.id for one in made}) == 1
    reused = await refusal(user.create(request_id="r1", headers={"x-key": "another"}))
    assert (reused.code, reused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_a_label_is_taken_whatever_its_case(service: Service, user: User) -> None:
    await user.create("Notes")
    other = await user.create("other")
    for call in (user.create("notes"), user.update(other.id, label="NOTES")):
        taken = await refusal(call)
        assert (taken.code, taken.reason) == (grpc.StatusCode.ALREADY_EXISTS, "LABEL_TAKEN")
    assert (await user.update(other.id, label="OTHER")).label == "OTHER"
    await service.user().create("notes")


async def test_a_user_keeps_so_many_and_not_one_more_also_at_once(user: User) -> None:
    made = await asyncio.gather(*(user.create(f"s{index}") for index in range(MOST_SERVERS + 5)), return_exceptions=True)
    assert len([one for one in made if isinstance(one, mcp_server_pb2.McpServer)]) == MOST_SERVERS
    refused = await refusal(user.create("more"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED")
    assert refused.metadata == {"kind": "mcp_servers", "limit": "20"}


async def test_only_what_is_named_or_set_changes(service: Service, user: User) -> None:
    created = await user.create(headers={"x-key": SECRET}, allowed_tools=["add"], approval="always")
    off = await user.update(created.id, enabled=False)
    assert (off.enabled, off.label, off.approval, list(off.allowed_tools)) == (False, "notes", "always", ["add"])
    assert off.update_time.ToNanoseconds() > created.update_time.ToNanoseconds()
    changed = await user.update(
        created.id, mask=["allowed_tools", "enabled"], label="ignored", enabled=True, allowed_tools=[]
    )
    assert (changed.label, list(changed.allowed_tools), changed.enabled) == ("notes", [], True)
    assert await service.headers_of(user) == {"notes": {"x-key": SECRET}}
    bare = await user.update(created.id, mask=["headers"])
    assert list(bare.header_names) == []
    assert await service.headers_of(user) == {"notes": {}}


async def test_the_headers_go_to_the_host_that_they_were_given_for(service: Service, user: User) -> None:
    created = await user.create(headers={"x-key": SECRET})
    await user.update(created.id, url="https://1.1.1.1/other")
    assert await service.headers_of(user) == {"notes": {"x-key": SECRET}}
    moved = await user.update(created.id, url="https://8.8.8.8/mcp")
    assert list(moved.header_names) == []
    assert await service.headers_of(user) == {"notes": {}}
    again = await user.update(created.id, url="https://1.1.1.1/mcp", headers={"x-key": "new"})
    assert list(again.header_names) == ["x-key"]
    assert list((await user.update(created.id, url="https://1.1.1.1:8443/mcp")).header_names) == []


async def test_pages_go_on_where_the_last_ended(user: User) -> None:
    for label in ("b", "A", "c", "D", "e"):
        await user.create(label)
    first = await user.list(page_size=2)
    second = await user.list(page_size=2, page_token=first.next_page_token)
    third = await user.list(page_size=2, page_token=second.next_page_token)
    assert [[one.label for one in page.mcp_servers] for page in (first, second, third)] == [["A", "b"], ["c", "D"], ["e"]]
    assert third.next_page_token == ""
    for token in ("nonsense", "WyJtY3Bfc2VydmVycyIsIlx1MDAwMCJd"):
        assert (await refusal(user.list(page_token=token))).reason == "INVALID_PAGE_TOKEN"


async def test_the_list_is_one_statement_however_long(service: Service, user: User) -> None:
    statements: list[str] = []
    event.listen(
        service.database.engine.sync_engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_rest: statements.append(statement),
    )
    counts = []
    for number in range(2):
        await user.create(f"s{number}")
        statements.clear()
        await user.list()
        counts.append(len(statements))
    assert counts == [2, 2]  # who it is for, and the list


async def test_turns_of_a_user_without_servers_ask_once_until_one_is_kept_or_enabled(service: Service, user: User) -> None:
    statements: list[str] = []
    event.listen(
        service.database.engine.sync_engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_rest: statements.append(statement),
    )
    for _ in range(10):
        assert await service.headers_of(user) == {}
    assert len([one for one in statements if "mcp_servers" in one]) == 1
    created = await user.create("one")
    assert set(await service.headers_of(user)) == {"one"}
    await user.update(created.id, enabled=False)
    assert [await service.headers_of(user) for _ in range(2)] == [{}, {}]
    await user.update(created.id, enabled=True)
    assert set(await service.headers_of(user)) == {"one"}


async def test_what_is_another_users_is_not_there(service: Service, user: User) -> None:
    created, other = await user.create(), service.user()
    for server_id in (created.id, str(uuid.uuid4())):
        for call in (other.get(server_id), other.update(server_id, label="mine"), other.delete(server_id)):
            refused = await refusal(call)
            assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "MCP_SERVER_NOT_FOUND")
            assert refused.metadata == {"mcp_server_id": server_id}
    assert list((await other.list()).mcp_servers) == []
    assert (await user.get(created.id)).label == "notes"
    async with service.database.transaction(user_id=other.id) as connection:
        assert (await connection.exec_driver_sql("select count(*) from mcp_servers")).scalar_one() == 0


async def test_a_deleted_server_is_gone_with_its_secrets(user: User, database: ServiceDatabase) -> None:
    created = await user.create(headers={"x-key": SECRET})
    await user.delete(created.id.upper())
    assert (await refusal(user.delete(created.id))).reason == "MCP_SERVER_NOT_FOUND"
    async with await psycopg.AsyncConnection.connect(database.migration_url) as connection:
        assert await (await connection.execute("select count(*) from mcp_servers")).fetchone() == (0,)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"label": ""}, "label"),
        ({"label": "with space"}, "label"),
        ({"label": "x" * 33}, "label"),
        ({"url": ""}, "url"),
        ({"url": "http://1.1.1.1/"}, "url"),
        ({"url": "https://localhost/"}, "url"),
        ({"url": "https://169.254.169.254/latest"}, "url"),
        ({"url": "https://1.1.1.1/" + "x" * 2_000}, "url"),
        ({"approval": "sometimes"}, "approval"),
        ({"allowed_tools": ["t"] * 101}, "allowed_tools"),
        ({"headers": {f"x-{index}": "v" for index in range(17)}}, "headers"),
        ({"headers": {"x-key": "v" * 4_001}}, "headers['x-key']"),
        ({"headers": {"Host": "v"}}, "headers"),
        ({"headers": {"Mcp-Session-Id": "v"}}, "headers"),
        ({"headers": {"content-length": "0"}}, "headers"),
        ({"headers": {"transfer-encoding": "chunked"}}, "headers"),
        ({"headers": {"x key": "v"}}, "headers"),
        ({"headers": {"x-key": "a\r\nx-other: b"}}, "headers"),
        ({"headers": {"x-key": "a\x00b"}}, "headers['x-key']"),
        ({"headers": {"x-key": "é"}}, "headers"),
        ({"headers": {"x-key": "1", "X-Key": "2"}}, "headers"),
    ],
)
async def test_what_cannot_be_right_is_refused_by_its_field(user: User, fields: dict[str, Any], wrong: str) -> None:
    refused = await refusal(user.create(**{"label": "notes", "url": URL, **fields}))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert set(refused.fields) == {wrong}


async def test_an_update_is_held_to_the_same(user: User) -> None:
    created = await user.create()
    for fields, wrong in (
        ({"url": "https://10.0.0.1/"}, "url"),
        ({"headers": {"Host": "v"}}, "headers"),
        ({"mask": ["id"]}, "update_mask"),
        ({"mask": ["label"]}, "label"),
        ({"mask": ["enabled"]}, "enabled"),
    ):
        assert (await refusal(user.update(created.id, **fields))).fields == [wrong]
    assert (await refusal(user.get("not-a-uuid"))).fields == ["mcp_server_id"]


async def test_an_operator_may_allow_private_addresses(database: ServiceDatabase, issuer: Issuer) -> None:
    async with running(database, issuer, allow_private=True) as service:
        assert (await service.user().create(url="http://127.0.0.1:3001/mcp")).url == "http://127.0.0.1:3001/mcp"
